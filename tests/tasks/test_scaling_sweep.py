"""A sweep's rules: sizes and lines, when it stops, and the fit of what was made, on artifacts made by a known law."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tasks.scaling.forecast as sweep_forecast
from cluster.errors import BadConfig, BadData
from modeling.architecture import model_config
from modeling.errors import ConfigError
from modeling.flops import count_by_group, training_flops_per_token
from modeling.shapes import parameter_shapes
from pipelines.display_scaling import sweep_lines
from tasks.base import Artifact, Edge, Runtime
from tasks.scaling.comparison import CompareScaling
from tasks.scaling.forecast import SURFACES, forecast
from tasks.scaling.ladder import Ladder, Rung, nearest_width, rungs
from tasks.scaling.next_run import PretrainNext
from tasks.scaling.points import points_of
from tasks.scaling.stopping import Stopping, unneeded
from tasks.scaling.sweep_fit import FitScaling, repeated, run_name, surest
from tests.tasks.stage import FolderContext

WIDTHS = (32, 48, 64, 80, 96, 112, 128, 160, 192)
LADDER = Ladder(smallest_flops=1e12, largest_flops=1e14, lines=5, spread=5, head_width=16, widths=WIDTHS)
LAW = {"E": 1.8, "A": 60.0, "B": 120.0, "alpha": 0.34, "beta": 0.3}
VOCABULARY = 1024
HEAD = {"name": "language-model", "settings": {}}


def shape(width: int) -> Any:
    block = {"activation": "swiglu", "head_bias": False, "architecture": "decoder", "max_length": 128}
    sizes = LADDER.shape(width, gated=True, two_stacks=False)
    return model_config({"preset": "modern-tiny", **block, **sizes, "vocab_size": VOCABULARY})


def params(width: int) -> int:
    return count_by_group(parameter_shapes(shape(width), HEAD).items())["total"]


SIZES = {width: params(width) for width in LADDER.widths}


FRESH_TOKENS = 1e7
"""Of the corpus that the runs are said to be of."""


def loss(n: float, d: float) -> float:
    return LAW["E"] + LAW["A"] / n ** LAW["alpha"] + LAW["B"] / d ** LAW["beta"]


def model(folder: Path, rung: Rung, noise: float = 0.0) -> Path:
    """A run's artifact as Pretrain writes it, its loss from the law."""
    folder.mkdir(parents=True)
    config = shape(rung.width)
    per_token = training_flops_per_token(config, 128, 1.0)
    assert per_token is not None
    tokens = round(rung.flops / per_token)
    final = {
        "validation_loss": loss(rung.params, tokens) * math.exp(noise),
        "tokens": tokens,
        "steps": tokens // 512,
        "epochs": tokens / FRESH_TOKENS,
    }
    note = {
        "final": final,
        "loop": {"peak_lr": 1e-3, "batch_size": 8},
        "budget": {"flops": rung.flops},
        "length_tokens": 128,
        "parameters": {"total": rung.params, "non_embedding": rung.params - VOCABULARY * rung.width},
        "training_flops": per_token * tokens,
        "objective": {"kind": "causal"},
    }
    (folder / "training.json").write_text(json.dumps(note))
    (folder / "config.json").write_text(json.dumps({"model": config.model_dump(mode="json"), "head": HEAD}))
    return folder


class Several(FolderContext):
    """A context whose fields may hold several folders."""

    def inputs(self, field: str) -> list[Artifact]:
        found = self._inputs[field]
        return [Artifact(key=p.name, kind=field, path=p, config={}, metrics={}, inputs={}) for p in found]


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("swept")
    rng = np.random.default_rng(0)
    planned = rungs(LADDER, SIZES, 128)
    models = [model(folder / f"key-{n}", rung, rng.normal(0, 0.001)) for n, rung in enumerate(planned)]
    edges = tuple(Edge(path.name, "model") for path in models)
    task = FitScaling(runs=edges, variant="decoder", ladder=LADDER, bootstrap=200)
    context = Several(folder / "fit", Runtime(), {"runs": models})
    return context.out, dict(task.run(context))


# ---------------------------------------------------------------- the ladder


def test_lines_have_the_sizes_about_their_expected_optimum():
    planned = rungs(LADDER, SIZES, 128)
    assert [r.flops for r in planned] == sorted(r.flops for r in planned)
    lines = {n: [r for r in planned if r.line == n] for n in range(5)}
    assert all(len(line) >= 4 for line in lines.values())
    assert len(planned) >= 20
    assert lines[4][0].flops / lines[0][0].flops == pytest.approx(100)
    for line in lines.values():
        expected = math.sqrt(line[0].flops / 120)
        assert all(expected / 5 <= rung.params <= expected * 5 for rung in line)
    assert lines[0][0].width < lines[4][0].width


def test_a_grid_trains_every_size_at_the_same_ratios():
    ladder = LADDER.model_copy(update={"layout": "grid", "lines": 4})
    planned = rungs(ladder, SIZES, 128)
    assert len(planned) == 4 * len(SIZES)
    assert {round(rung.tokens / rung.params, 3) for rung in planned} == {10, 20, 40, 80}
    assert all(rung.budget[0][0] == "tokens" for rung in planned)


def test_sizes_keep_their_shape_and_training_its_rules():
    shapes = [LADDER.shape(width, gated=False, two_stacks=False) for width in (32, 64, 128, 256)]
    assert [s["layers"] for s in shapes] == [2, 2, 4, 8]
    assert LADDER.shape(128, gated=False, two_stacks=True)["layers"] == 2
    assert LADDER.shape(32, gated=False, two_stacks=True)["layers"] == 1
    sizes = (1000, 45_000, 200_000, 360_000, 3_000_000)  # 0.84, 3, 4.93, 6 and 12.2 sequences
    assert [LADDER.batch(size, 128) for size in sizes] == [1, 3, 4, 6, 12]
    loop = LADDER.loop(128, 853_333, 128)  # 8 sequences
    assert loop["peak_lr"] == 4e-3
    assert LADDER.loop(64, 853_333, 128)["peak_lr"] == 8e-3
    assert nearest_width(params, 1.02 * SIZES[96], LADDER) == 96


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"largest_flops": 1e12}, "largest_flops 1e.12 is not above smallest_flops"),
        ({"widths": (40,)}, "width 40 is no multiple of head_width 16"),
        ({"widths": (32, 32)}, "widths has one twice"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused(change, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        Ladder(**{**LADDER.model_dump(), **change})


def test_a_line_without_a_size_is_named():
    with pytest.raises(ConfigError, match=r"no size for the line of 1e\+12 FLOPs \(sizes: 1,000\)"):
        rungs(LADDER, {32: 1000}, 128)


# ---------------------------------------------------------------- when it stops


def made(planned: list[Rung], which: list[int], noise: float = 0.0, seconds: float = 60.0) -> dict[int, dict[str, Any]]:
    rng = np.random.default_rng(1)
    out = {}
    for n in which:
        rung = planned[n]
        tokens = rung.flops / (6 * rung.params)
        metrics = {
            "validation_loss": loss(rung.params, tokens) * math.exp(rng.normal(0, noise)),
            "tokens": tokens,
            "training_flops": rung.flops,
        }
        out[n] = {"metrics": metrics, "timings": {"seconds": seconds}}
    return out


def decide(planned, found, **settings):
    return unneeded(planned, found, Stopping(**settings), decay_share=0.2, measure="validation_loss")


def test_a_known_exponent_ends_the_sweep_after_a_whole_line():
    planned = rungs(LADDER, SIZES, 128)
    up_to = [n for n, rung in enumerate(planned) if rung.line <= 3]
    late = {n for n, rung in enumerate(planned) if rung.line == 4}
    found = decide(planned, made(planned, up_to), exponent_interval=0.05, least_points=20, prune_below=0)
    assert set(found) == late
    assert "the 95 % interval of the exponent is 0.0" in next(iter(found.values()))
    assert decide(planned, made(planned, up_to[:-1]), exponent_interval=0.05, least_points=99, prune_below=0) == {}
    assert decide(planned, made(planned, up_to), exponent_interval=0.05, least_points=99, prune_below=0) == {}


def test_noise_keeps_the_sweep_going():
    planned = rungs(LADDER, SIZES, 128)
    up_to = [n for n, rung in enumerate(planned) if rung.line <= 3]
    assert decide(planned, made(planned, up_to, noise=0.03), exponent_interval=0.01, prune_below=0) == {}


def test_a_budget_in_flops_counts_what_a_prefix_saves():
    planned = rungs(LADDER, SIZES, 128)
    first = [n for n, rung in enumerate(planned) if rung.line == 0]
    second = [n for n, rung in enumerate(planned) if rung.line <= 1]
    again = {planned[n].width for n in first}
    spent = sum(planned[n].flops for n in second)
    spent -= 0.8 * sum(
        planned[n].flops
        for n in first
        if planned[n].width in again & {planned[m].width for m in second if planned[m].line == 1}
    )
    just = decide(planned, made(planned, second), most_flops=spent * 0.999, exponent_interval=0, prune_below=0)
    assert set(just) == {n for n, rung in enumerate(planned) if rung.line > 1}
    assert "FLOPs are spent" in next(iter(just.values()))
    assert decide(planned, made(planned, second), most_flops=spent * 1.001, exponent_interval=0, prune_below=0) == {}


def test_a_budget_of_time():
    planned = rungs(LADDER, SIZES, 128)
    first = [n for n, rung in enumerate(planned) if rung.line == 0]
    found = decide(planned, made(planned, first), most_core_minutes=len(first), exponent_interval=0)
    assert len(found) == len(planned) - len(first)
    one = made(planned, first)
    assert decide(planned, one, most_core_minutes=8 * len(first), exponent_interval=0, prune_below=0) == {}
    eight = {n: {**manifest, "placement": {"workers": 2, "cpus": 4}} for n, manifest in one.items()}
    assert decide(planned, eight, most_core_minutes=8 * len(first), exponent_interval=0, prune_below=0)


def test_sizes_beside_the_valley_are_left_out():
    wide = Ladder(**{**LADDER.model_dump(), "spread": 60.0})
    planned = rungs(wide, SIZES, 128)
    up_to = [n for n, rung in enumerate(planned) if rung.line <= 3]
    found = decide(planned, made(planned, up_to), exponent_interval=0, prune_below=3)
    assert found
    assert all("times below the optimum" in why for why in found.values())
    assert max(planned[n].params for n in found) < min(
        planned[n].params for n, r in enumerate(planned) if r.line == 4 and n not in found
    )


# ---------------------------------------------------------------- the fit


def test_the_fit_finds_the_law_and_says_what_to_run_next(swept):
    out, metrics = swept
    fit = json.loads((out / "fit.json").read_text())["approach_3"]
    low, high = fit["ci95"]["exponent_N"]
    true = LAW["beta"] / (LAW["alpha"] + LAW["beta"])
    assert low <= true <= high
    sweep = json.loads((out / "sweep.json").read_text())
    assert metrics["points"] == len(sweep["points"]) == len(rungs(LADDER, SIZES, 128))
    assert sorted({point["line"] for point in sweep["points"]}) == [1, 2, 3, 4, 5]
    assert 6.0 < sweep["flops_per_param_token"] < 9.0
    following = sweep["next"]
    assert following["flops"] == pytest.approx(8 * max(p["flops"] for p in sweep["points"]))
    predicted = loss(following["params"], following["tokens"])
    assert following["predicted_loss"] == pytest.approx(predicted, rel=0.003)
    assert following["ci95"][0] < following["predicted_loss"] < following["ci95"][1]
    assert following["params"] * following["tokens"] * sweep["flops_per_param_token"] == pytest.approx(
        following["flops"]
    )
    said = json.loads((out / "next.json").read_text())
    assert said["model"]["width"] == following["width"]
    assert said["loop"]["flops"] == following["flops"]
    assert {"isoflop.svg", "contours.svg"} <= {p.name for p in (out / "plots").iterdir()}


def test_points_cite_their_runs_and_the_command_line_reads_them(swept):
    out, _ = swept
    with (out / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["key"] for row in rows} == {f"key-{n}" for n in range(len(rows))}
    planned = {(r.width, r.line): r for r in rungs(LADDER, SIZES, 128)}
    assert {row["stage"] for row in rows} == {run_name("decoder", *place) for place in planned}


def test_the_next_run_is_the_fits(swept):
    out, _ = swept
    loop = {"precision": "bf16", "steps": 7}
    edges = {"examples": Edge("e", "examples"), "tokenizer": Edge("t", "tokenizer"), "fit": Edge("f", "scaling-fit")}
    stage = PretrainNext(**edges, loop=loop, seed=3).planned(out)
    sweep = json.loads((out / "sweep.json").read_text())
    assert stage.model.width == sweep["next"]["width"]
    assert (stage.loop.flops, stage.loop.steps, stage.loop.precision) == (sweep["next"]["flops"], 0, "bf16")
    assert (stage.loop.schedule, stage.seed) == ("wsd", 3)


def test_a_prediction_is_put_beside_what_came(swept, tmp_path):
    out, _ = swept
    following = json.loads((out / "sweep.json").read_text())["next"]
    rung = Rung(5, following["width"], following["params"], following["flops"], following["tokens"], ())
    check = model(tmp_path / "key-next", rung, noise=0.01)
    fits = tuple(Edge(n, "scaling-fit") for n in ("a", "b"))
    runs = tuple(Edge(n, "model") for n in ("c", "d"))
    other = tmp_path / "other"
    other.mkdir()
    for name in ("fit.json", "sweep.json", "points.csv"):
        (other / name).write_text((out / name).read_text().replace('"variant": "decoder"', '"variant": "other"'))
    context = Several(tmp_path / "comparison", Runtime(), {"fits": [out, other], "runs": [check, check]})
    metrics = CompareScaling(fits=fits, runs=runs, comparable=True).run(context)
    found = json.loads((context.out / "comparison.json").read_text())
    assert metrics["decoder.error"] == pytest.approx(0.01, abs=0.003)
    assert found["predictions"][0]["times_largest"] == pytest.approx(8, rel=0.05)
    assert set(found["variants"]) == {"decoder", "other"}
    assert found["pairs"][0]["exponents"]["exponent_N"]["difference"] == pytest.approx(0)
    said = [line for line in sweep_lines(found) if line.startswith("warning: ")]
    seen = [float(p["tokens"]) / FRESH_TOKENS for p in json.loads((out / "sweep.json").read_text())["points"]]
    often = [epochs for epochs in seen if epochs > 4]
    expected = f"{len(often)} of {len(seen)} runs saw their text more than 4 times, up to {max(often):.1f} times"
    assert [expected in line for line in said[:2]] == [True, True]
    assert repeated([{"epochs": 3.9}, {"epochs": 0.1}]) == []


def test_too_few_runs_and_missing_losses_are_named(tmp_path):
    with pytest.raises(BadConfig, match="2 runs of x cannot tell a law"):
        FitScaling(runs=(Edge("a", "model"), Edge("b", "model")), variant="x")
    planned = rungs(LADDER, SIZES, 128)[:6]
    models = [model(tmp_path / f"m{n}", rung) for n, rung in enumerate(planned)]
    note = json.loads((models[0] / "training.json").read_text())
    del note["final"]["validation_loss"]
    (models[0] / "training.json").write_text(json.dumps(note))
    task = FitScaling(runs=tuple(Edge(p.name, "model") for p in models), variant="x", ladder=LADDER)
    with pytest.raises(BadData, match="a run of x has no validation_loss"):
        task.run(Several(tmp_path / "out", Runtime(), {"runs": models}))


# ---------------------------------------------------------------- which form foretells


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ({"3": [0.1, 0.7], "2": [0.38, 0.57], "1": [0.0, 0.46]}, "2"),
        ({"3": [0.4, 0.5], "2": [0.3, 0.6]}, "3"),
        ({"3": None, "2": None, "1": [0.1, 0.9]}, "1"),
        ({"2": None, "3": None}, "3"),
    ],
)
def test_the_next_run_is_of_the_approach_that_knows_the_exponent_best(intervals, expected):
    fit = {
        f"approach_{name}": {"params": {}, "ci95": {"exponent_N": interval} if interval else {}}
        for name, interval in intervals.items()
    }
    assert surest({**fit, "approach_4": {"refused": "too few"}}) == expected


KAPLAN = {"N_c": 4e9, "D_c": 8e11, "alpha_N": 0.12, "alpha_D": 0.1}


def measured(surface, values, noise: float = 0.0):
    """Points of the ladder's plan whose losses are a surface's."""
    rng = np.random.default_rng(2)
    planned = rungs(LADDER, SIZES, 128)
    n = np.array([r.params for r in planned], float)
    d = np.array([r.flops / (6 * r.params) for r in planned])
    return points_of(surface(values, n, d) * np.exp(rng.normal(0, noise, len(n))), params=n, tokens=d)


@pytest.mark.parametrize(
    ("form", "values"),
    [("approach_3", LAW), ("kaplan_ND", KAPLAN)],
)
def test_the_form_that_foretells_the_last_line_foretells_the_next_run(form, values):
    surface = SURFACES[form]
    found = forecast(measured(surface, values, noise=0.001), 2e6, 8e8, bootstrap=100)
    assert found["form"].startswith(form)
    assert found["held_out"][form] < 0.005 < max(found["held_out"].values())
    true = surface(values, 2e6, 8e8)
    assert found["predicted_loss"] == pytest.approx(true, rel=0.01)
    assert found["ci95"][0] < found["predicted_loss"] < found["ci95"][1]
    assert set(found["by_form"]) > set(SURFACES)
    assert sum(found["weights"].values()) == pytest.approx(1)


def test_forms_are_weighted_by_their_inverse_squared_errors_on_the_last_line():
    found = forecast(measured(SURFACES["approach_3"], LAW, noise=0.01), 2e6, 8e8, bootstrap=100)
    inverse = {name: max(error, sweep_forecast.LEAST_ERROR) ** -2 for name, error in found["held_out"].items()}
    assert found["weights"] == pytest.approx({name: each / sum(inverse.values()) for name, each in inverse.items()})
    logs = [found["weights"][name] * np.log(loss) for name, loss in found["by_form"].items()]
    assert found["predicted_loss"] == pytest.approx(np.exp(sum(logs)))


def test_the_interval_holds_what_the_forms_disagree_on(monkeypatch):
    monkeypatch.setattr(sweep_forecast, "_weights", lambda errors: dict.fromkeys(errors, 1 / len(errors)))
    found = forecast(measured(SURFACES["kaplan_ND"], KAPLAN, noise=0.001), 2e8, 8e10, bootstrap=100)
    low, high = found["ci95"]
    losses = sorted(found["by_form"].values())
    assert losses[-1] / losses[0] > 1.05  # so far out they do
    assert low < losses[0] * 1.02 and high > losses[-1] * 0.98


def test_points_from_before_the_law_begins_count_for_little():
    """The smallest budgets lie above the law, as those of models do that have not learnt to read their context yet."""
    surface = SURFACES["kaplan_ND"]
    points = measured(surface, KAPLAN, noise=0.001)
    begins = points.flops.max() / 12.5
    early = points.flops < begins
    assert 5 < early.sum() < len(early) - 10
    raised = np.where(early, points.loss * (begins / points.flops) ** 0.15, points.loss)
    off = points_of(raised, params=points.params, tokens=points.tokens)
    found = forecast(off, 2e6, 8e8, bootstrap=100)
    assert found["form"].startswith("kaplan_ND from") and found["weights"][found["form"]] > 0.5
    true = surface(KAPLAN, 2e6, 8e8)
    assert abs(found["predicted_loss"] / true - 1) < 0.01 < abs(found["by_form"]["kaplan_ND"] / true - 1)


def test_where_the_last_line_is_most_of_the_points_the_fit_itself_is_taken():
    few = measured(SURFACES["approach_3"], LAW)
    few = few.take(np.flatnonzero(few.flops > 2.5e13))
    found = forecast(few, 2e6, 8e8, bootstrap=0)
    assert found is not None
    assert found["held_out"] == {"approach_3": None, "kaplan_ND": None} and found["ci95"] is None
    assert found["weights"] == {"approach_3": 1.0, "kaplan_ND": 0.0}
    assert found["predicted_loss"] == pytest.approx(found["by_form"]["approach_3"])
