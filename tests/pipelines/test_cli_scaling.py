"""`triptych fit` and `triptych budget` as a user types them."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.display_scaling import short, sweep_lines
from pipelines.fits import comparison_metrics
from tasks.scaling.laws import read_law
from tasks.scaling.published import LAWS, published
from tests.tasks.scaling_data import EXPONENT_N, TRUE, isoflops


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    points = isoflops()
    path = tmp_path / "points.csv"
    rows = zip(points.params, points.tokens, points.loss, strict=True)
    path.write_text("N,D,set,loss\n" + "".join(f"{n},{d},web,{loss}\n" for n, d, loss in rows))
    return path


NAMES = ("--params", "N", "--tokens", "D")
NODES = ("--cluster", "nodes.yaml")


def test_fit_prints_all_approaches_and_leaves_pictures_and_a_run(command: Any, csv: Path, tmp_path: Path) -> None:
    words = ("--bootstrap", "100", "--json", "--out", "out", "--store", "store")
    done = command("fit", csv.name, *NAMES, *words, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    three = result["approach_3"]
    assert set(three["params"]) == {"E", "A", "B", "alpha", "beta"}
    assert three["ci95"]["alpha"][0] < TRUE["alpha"] < three["ci95"]["alpha"][1]
    for name in ("approach_1", "approach_2", "approach_3"):
        low, high = result[name]["ci95"]["exponent_N"]
        assert low < EXPONENT_N < high and {"objective", "se", "warnings", "exponent_D"} <= set(result[name])
    assert json.loads((tmp_path / "out" / "fit.json").read_text()) == result
    for name in ("isoflop", "envelope", "contours", "allocation", "residuals-approach_3"):
        assert (tmp_path / "out" / f"{name}.svg").read_text().startswith("<?xml")
    with sqlite3.connect(tmp_path / "store" / "mlflow.db") as base:
        assert base.execute("select name, status from runs").fetchall() == [("points", "FINISHED")]
        found = dict(base.execute("select key, value from metrics where key like 'approach_3.%'"))
        assert found["approach_3.alpha"] == three["params"]["alpha"] and "approach_3.alpha.low" in found
        assert base.execute("select digest from datasets").fetchone()[0] == three["digest"]
    assert len(list((tmp_path / "store").rglob("plots/*.svg"))) >= 5
    # a law of one's own
    plan = json.loads(command("budget", "--flops", "1e22", "--fit", "out/fit.json", "--json").stdout)
    assert plan["ci95"]["params"][0] < plan["params"] < plan["ci95"]["params"][1]
    assert 6 * plan["params"] * plan["tokens"] == pytest.approx(1e22)
    own = plan["laws"]["approach_3"]
    assert list(plan["laws"]) == ["approach_3"] and own["source"] == "out/fit.json"
    assert own["over_trained"] and own["nearest_preset"]["name"].startswith("gpt3")
    words = ("--fit", "out/fit.json", "--law", "all", "--json")
    assert list(json.loads(command("budget", "--flops", "1e22", *words).stdout)["laws"]) == ["approach_3", *LAWS]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """One file of two variants, the second worse by a constant."""
    lines = ["N,D,kind,loss,unit"]
    for seed, (kind, worse) in enumerate((("post norm", 0.0), ("pre norm", 0.1))):
        points = isoflops(seed, budgets=5, sizes=7)
        rows = zip(points.params, points.tokens, points.loss + worse, strict=True)
        lines += [f"{n},{d},{kind},{loss},bits per byte" for n, d, loss in rows]
    path = tmp_path / "both.csv"
    path.write_text("\n".join(lines) + "\n")
    for kind in ("post", "pre"):
        rows = [lines[0], *(line for line in lines[1:] if f",{kind} norm," in line)]
        (tmp_path / f"{kind}.csv").write_text("\n".join(rows) + "\n")
    return path


COMPARED = (*NAMES, "--approach", "3", "--bootstrap", "60")


def test_two_files_are_compared(command: Any, two: Path, tmp_path: Path) -> None:
    words = (*COMPARED, "--compare", "pre.csv", "--json", "--out", "out", "--store", "store")
    done = command("fit", "post.csv", *words, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["approach_3"] == result["variants"]["post"]["approach_3"]
    assert list(result) == ["approach_3", "variants", "comparison"] and list(result["variants"]) == ["post", "pre"]
    found = result["comparison"]["approach_3"]
    (pair,) = found["pairs"]
    assert pair["paired"] and pair["losses"][0]["verdict"] == "post" and found["unit"] == "bits per byte"
    assert pair["losses"][0]["difference"] == pytest.approx(-0.1, abs=0.01)
    assert json.loads((tmp_path / "out" / "fit.json").read_text()) == result
    for name in ("compare", "post/contours", "pre/contours"):
        assert (tmp_path / "out" / f"{name}.svg").read_text().startswith("<?xml")
    assert "loss, bits per byte" in (tmp_path / "out" / "compare.svg").read_text()
    with sqlite3.connect(tmp_path / "store" / "mlflow.db") as base:
        assert base.execute("select name, status from runs").fetchall() == [("post pre", "FINISHED")]
        logged = dict(base.execute("select key, value from metrics"))
        assert {row[0] for row in base.execute("select name from datasets")} == {"post", "pre"}
    assert logged["pre.approach_3.alpha"] == result["variants"]["pre"]["approach_3"]["params"]["alpha"]
    assert logged["comparison.approach_3.post.pre.loss.difference.3e21"] == pair["losses"][0]["difference"]
    assert {"comparison.approach_3.post.pre.alpha.difference.low", "approach_3.alpha"} <= set(logged)
    # what it printed is still a law of one's own: the first file's
    assert read_law(tmp_path / "out" / "fit.json").values == pytest.approx(result["approach_3"]["params"])


def test_values_of_a_column_are_compared(
    two: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["triptych", "fit", "both.csv", *COMPARED, "--tracking", "off", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    monkeypatch.chdir(two.parent)
    text = fit("--by", "kind", "--at", "1e21", "--at", "1e24")
    assert "=== post norm" in text and "post norm against pre norm: approach 3, resampled together" in text
    assert "1e+21 " in text and "1e+24*" in text and "extrapolated" in text
    assert "pre norm needs" in text and "all losses are in bits per byte" in text
    result = json.loads(fit("--by", "kind", "--not-comparable", "--json"))
    assert list(result) == ["variants", "comparison"] and list(result["variants"]) == ["post norm", "pre norm"]
    assert result["comparison"]["approach_3"]["pairs"][0]["losses"] == []
    assert "losses are not comparable" in fit("--by", "kind", "--not-comparable")


def test_fit_for_a_person(command: Any, csv: Path) -> None:
    done = command("fit", csv.name, *NAMES, "--approach", "3", "--bootstrap", "50", "--tracking", "off")
    assert done.returncode == 0, done.stderr
    assert "alpha" in done.stdout and "starts at the optimum" in done.stdout and "approach_1" not in done.stdout


def test_a_run_that_could_not_be_written_is_not_named(command: Any, csv: Path) -> None:
    done = command("fit", csv.name, *NAMES, "--approach", "3", "--bootstrap", "0", "--store", "/proc/no-such-folder")
    assert done.returncode == 0 and "alpha" in done.stdout and "is incomplete" in done.stderr, done.stderr
    assert "MLflow run" not in done.stdout


def test_losses_are_told_with_their_unit(command: Any, two: Path, tmp_path: Path) -> None:
    words = (*NAMES, "--approach", "3", "--bootstrap", "0", "--tracking", "off")
    assert command("fit", "post.csv", *words).stdout.splitlines()[0].endswith(" FLOPs, losses in bits per byte")
    fit = command("fit", "post.csv", *words, "--json").stdout
    assert json.loads(fit)["approach_3"]["unit"] == "bits per byte"
    (tmp_path / "fit.json").write_text(fit)
    planned = command("budget", "--flops", "1e21", "--fit", "fit.json")
    assert " bits per byte\n" in planned.stdout, planned.stderr


def test_variants_of_like_names_keep_their_own_metrics() -> None:
    fit = {"objective": 1.0, "ci95": {}}
    parts = {name: {"approach_3": {"params": {"E": e}, **fit}} for name, e in (("5 %", 1.0), ("+5%", 2.0), ("5", 3.0))}
    found = comparison_metrics({"variants": parts})
    assert {name: e for name, e in found.items() if name.endswith(".E")} == {
        "5.approach_3.E": 1.0,
        "5-2.approach_3.E": 2.0,
        "5-3.approach_3.E": 3.0,
    }


def test_counts_are_rounded_before_their_unit_is_chosen() -> None:
    assert [short(v) for v in (999.7, 999_400, 999_700, 9.999e8, 1.41e12)] == ["999.7", "999K", "1M", "1B", "1.41T"]


def test_forms_that_could_not_foretell_the_last_line_are_not_told() -> None:
    row = {
        "variant": "dec", "times_largest": 8.0, "params": 26e3, "tokens": 7e5, "predicted_loss": 3.5, "ci95": None,
        "measured_loss": 3.4, "unit": "nats per label", "error": -0.03, "by_form": {"approach_3": 3.5},
        "weights": {"approach_3": 1.0}, "held_out": {"approach_3": None, "kaplan_ND": None},
    }  # fmt: skip
    found = {"variants": {}, "predictions": [row], "warnings": []}
    assert len(list(sweep_lines(found))) == 1
    row["held_out"]["approach_3"] = 0.01
    assert list(sweep_lines(found))[2:] == ["    3.5000  weight 1.00, error 1.0 %  approach_3"]


def test_budget_for_a_person(command: Any, tmp_path: Path) -> None:
    (tmp_path / "ray_config.yaml").write_text(
        "max_workers: 4\nhead_node_type: head\navailable_node_types:\n  head: {}\n"
        "  gpus: { resources: { GPU: 8 }, max_workers: 2, labels: { ray.io/accelerator-type: H100 } }\n"
    )
    words = ("budget", "--gpu", "h100", "--count", "8", "--days", "3", "--node-price", "gpus=30")
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "8 H100 for 72 hours" in done.stdout and "3.0 days (1.5 on 2), 2,160 USD" in done.stdout
    assert "epoch" in done.stdout and "chinchilla-1" in done.stdout and "nearest     gpt3-2.7B" in done.stdout
    assert "loss        2.323 nats per token   95 %" in done.stdout
    priced = command("budget", "--flops", "1e21", "--mfu", "0.3", "--precision", "fp16")  # of the cluster's GPUs
    assert priced.returncode == 0 and "on 2" in priced.stdout, priced.stderr
    assert priced.stdout.splitlines()[0] == "1e+21 FLOPs"
    table = command("budget", "--table", "--law", "chinchilla").stdout
    assert "Gopher" in table and "63.5B / 1.32T" in table


def test_the_table_of_laws_in_the_documentation_is_what_they_say() -> None:
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)`.* \| (\S+) on (\S+)(?: tokens)? \|$", text, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(LAWS) and "at 5.76e23 FLOPs" in text
    for name, params, tokens in rows:
        assert (params, tokens) == tuple(map(short, published(name).optimum(5.76e23))), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fit", "gone.csv"), ["gone.csv", "No such file"]),
        (("fit", "points.csv"), ["none of params, tokens and flops", "--params"]),
        (("fit", "points.csv", "--params", "N", "--tokens", "T"), ["no column 'T'"]),
        (("fit", "points.csv", *NAMES, "--approach", "4"), ["--approach '4'", "1, 2, 3"]),
        (("fit", "points.csv", *NAMES, "--where", "set=wiki"), ["leaves no row", "web"]),
        (("fit", "points.csv", *NAMES, "--tracking", "http://127.0.0.1:1"), ["127.0.0.1:1"]),
        (("fit", "line.csv"), ["approach_3: params and tokens move together"]),
        (("fit", "few.csv"), ["3 points cannot tell 5 parameters"]),
        (("fit", "points.csv", *NAMES, "--by", "sett"), ["--by sett", "did you mean 'set'"]),
        (("fit", "points.csv", *NAMES, "--by", "set"), ["all rows", "one value, 'web'", "--compare"]),
        (("fit", "points.csv", *NAMES, "--by", "loss"), ["at most 40 variants"]),
        (("fit", "points.csv", *NAMES, "--compare", "./points.csv"), ["compared already"]),
        (("fit", "points.csv", *NAMES, "--compare", "few.csv", "--by", "set"), ["--by and --compare"]),
        (("fit", "points.csv", *NAMES, "--at", "1e20"), ["--at is given, and nothing to compare"]),
        (("fit", "points.csv", *NAMES, "--compare", "few.csv", "--approach", "kaplan"), ["kaplan cannot be compared"]),
        (("fit", "few.csv", "--compare", "unit.csv"), ["different units", "few in nats", "bits", "--not-comparable"]),
        (("fit", "unit.csv", "--compare", "line.csv", "--approach", "3"), ["unit: approach_3: 3 points"]),
        (("budget",), ["0 budgets are given"]),
        (("budget", "--gpu", "h1oo", "--days", "1"), ["unknown GPU 'h1oo'"]),
        (("budget", "--flops", "1e21", "--law", "gpt"), ["--law 'gpt' is not known"]),
        (("budget", "--flops", "1e21", "--fit", "gone.json"), ["gone.json"]),
        (("budget", "--flops", "1e21", "--cluster", "gone.yaml"), ["gone.yaml"]),
        (("budget", "--flops", "1e21", "--node-price", "gpu=2"), ["no such node type"]),
        (("budget", "--flops", "1e21", "--architecture", "rnn"), ["--architecture 'rnn'"]),
        (("budget", "--flops", "1e20", "--count", "8"), ["--count and --price need --gpu"]),
        (("budget", "--flops", "1e20", "--gpu", "nosuch", "--price", "3"), ["nosuch"]),
        (("budget", "--flops", "1e20", "--precision", "fp8"), ["--precision 'fp8' is not known", "bf16, fp16, fp32"]),
        (("budget", "--flops", "1e20", "--mfu", "0.4"), ["no use for --mfu", "names no GPU", "add --gpu or --cluster"]),
        (("budget", "--flops", "1e20", "--approach", "9"), ["no use for --approach", "--fit is not given"]),
        (("budget", "--flops", "1e20", "--where", "a=b"), ["no use for --where", "--fit is not given"]),
        (("budget", "--flops", "1e20", "--fit", "a.json", "--where", "a=b"), ["a.json holds a fit, not rows"]),
        (("budget", "--table", "--gpu", "l4", "--node-price", "a=1"), ["no use for --gpu, --node-price: --table"]),
        (("budget", "--flops", "1e20", *NODES, "--node-price", "w=-5"), ["'w=-5': expected a positive number"]),
        (("budget", "--flops", "1e20", *NODES, "--node-price", "w=nan"), ["'w=nan': expected a positive number"]),
        (("fit", "points.csv", *NAMES, "--seed", "-1"), ["--seed", "greater than or equal to 0"]),
    ],
)
def test_mistakes_are_named(
    csv: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "line.csv").write_text(
        "params,tokens,loss\n" + "".join(f"{10**k},{20 * 10**k},{5 - 0.1 * k}\n" for k in range(4, 12))
    )
    for name, unit in (("few", "nats"), ("unit", "bits")):
        rows = "".join(f"{row},{unit}\n" for row in ("1e8,2e9,3", "2e8,3e9,2.9", "4e8,5e9,2.8"))
        (tmp_path / f"{name}.csv").write_text("params,tokens,loss,unit\n" + rows)
    (tmp_path / NODES[1]).write_text("available_node_types: { w: { resources: { GPU: 1 } } }\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["triptych", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(("error: ", "Usage: ")), error
    for part in said:
        assert part in error, error
