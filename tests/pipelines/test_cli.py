"""The command as a user types it: mistakes give one clear message and the right exit code."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import ROOT, TOY


def check_error(done: Any, code: int, *said: str) -> None:
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert "Traceback" not in output, output
    for part in said:
        assert part in output, output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "quickstrat"), ["unknown recipe 'quickstrat'", "did you mean 'quickstart'?"]),
        (("run", TOY, "source=text.txt", "trian.steps=3"), ["unknown key 'trian'", "did you mean 'train'?"]),
        (("run", TOY, "source=text.txt", "train.step=3"), ["unknown key 'train.step'", "did you mean 'steps'?"]),
        (("run", TOY, "source=text.txt", "train.steps=many"), ["train.steps", "integer", "'many'"]),
        (("run", TOY, "source=text.txt", "train.steps=0"), ["train.steps", "greater than or equal to 1"]),
        (("run", TOY), ["source: missing"]),
        (("run", TOY, "source=gone.txt"), ["source", "gone.txt does not exist"]),
        (("run", TOY, "oops"), ["'oops' is not of the form key=value"]),
        (("run", TOY.replace("toy.py", "toi.py"), "source=x"), ["does not exist", "did you mean toy.py?"]),
        (("run", TOY.replace(":toy", ":toyy"), "source=x"), ["has no function 'toyy'", "did you mean 'toy'?"]),
        (("run", TOY, "source=text.txt", "--only", "trian"), ["no such stage", "did you mean 'train'?"]),
        (("run", TOY, "source=text.txt", "--config", "gone.yaml"), ["gone.yaml", "No such file"]),
        (("run", TOY, "source=text.txt", "--config", "text.txt"), ["text.txt holds a str"]),
        (("run", TOY, "source=text.txt", "tracking=http://127.0.0.1:1"), ["127.0.0.1:1", "--"]),
        (("run", TOY, "source=text.txt", "--address", "127.0.0.1:1"), ["no Ray cluster answers at 127.0.0.1:1"]),
        (("submit", "quickstart", "--address", "http://127.0.0.1:1"), ["no Ray job server answers"]),
        (("run", TOY, "source=text.txt", "--store", "text.txt"), ["text.txt"]),
        (("run", TOY, "source=text.txt", "--store", "/proc/nowhere"), ["/proc/nowhere"]),
        (("status", "nothing"), ["no run 'nothing'"]),
        (("status", "../../etc"), ["is not the name of a run"]),
        (("why", "nothing", "train"), ["no run 'nothing'"]),
        (
            ("run", TOY, "source=text.txt", "placement.workers=64", "tracking=off"),
            ["asks for 64 CPU cores", "placement"],
        ),
    ],
)
def test_a_wrong_call_is_named_with_its_remedy(
    command: Any, text: Path, words: tuple[str, ...], said: list[str]
) -> None:
    check_error(command(*words), 2, *[part for part in said if part != "--"])


def test_a_recipe_file_with_an_error_names_file_and_line(command: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import json\n\nx = 1 / 0\n")
    check_error(command("plan", "broken.py:f"), 2, "broken.py does not import", "ZeroDivisionError", "line 3")


def test_run_plan_why_show_diff_verify_report(command: Any, tmp_path: Path, text: Path) -> None:
    """The reading commands on a real run, with --json."""
    base = [TOY, f"source={text}", "tracking=off", "--store", "store"]
    inline = [*base, "--address", "inline"]
    planned = json.loads(command("plan", *base, "--json").stdout)
    assert planned["counts"] == {"cached": 0, "run": 5, "stale": 0}
    done = command("run", *inline)
    assert done.returncode == 0, done.stderr
    again = command("run", *inline)
    assert "Nothing to do: all 5 stages are cached" in again.stdout
    changed = command("run", *inline, "train.steps=9")
    assert changed.returncode == 0
    runs = json.loads(command("status", "--store", "store", "--json").stdout)
    assert [r["state"] for r in runs] == ["done", "done"]
    why = json.loads(command("why", runs[1]["run"], "train", "--store", "store", "--json").stdout)
    assert why["changes"] == ["config steps: 20 -> 9"]
    assert why["now"] == "cached"
    diff = json.loads(command("diff", runs[0]["run"], runs[1]["run"], "--store", "store", "--json").stdout)
    assert diff["config"] == ["train.steps: 20 -> 9"]
    assert "config steps: 20 -> 9" in diff["stages"]["train"]
    shown = json.loads(command("show", "latest", "train", "--store", "store", "--json").stdout)
    assert shown["metrics"] == {"sum": 4 * 45}
    assert "sum.txt" in command("show", shown["key"][:10], "--store", "store").stdout
    assert "attempt 1" in command("logs", "latest", "train", "--store", "store").stdout
    verified = command("verify", "--store", "store", "--json")
    assert json.loads(verified.stdout) == {"checked": 7, "problems": {}}
    (tmp_path / "store" / shown["folder"] / "sum.txt").write_text("0")
    damaged = command("verify", "latest", "--store", "store", "--json")
    assert damaged.returncode == 1
    assert list(json.loads(damaged.stdout)["problems"]) == [shown["key"]]
    mended = command("rerun", "latest", "train", "--store", "store", "--address", "inline")
    assert mended.returncode == 0, mended.stderr
    assert command("verify", "--store", "store").returncode == 0
    report = command("report", "latest", "--store", "store").stdout.strip()
    assert "train" in Path(report).read_text()
    repro = command("repro", "latest", "train", "--store", "store", "--json")
    assert repro.returncode == 0, repro.stderr
    assert json.loads(repro.stdout)["equal"] is True


def test_accept_keeps_the_artifact_after_a_change_of_code(command: Any, tmp_path: Path, text: Path) -> None:
    source = Path(TOY.rpartition(":")[0])
    for name in ("toy.py", "toy_counters.py"):
        (tmp_path / name).write_text((source.parent / name).read_text())
    base = ["toy.py:toy", f"source={text}", "tracking=off", "--store", "store", "--address", "inline"]
    assert command("run", *base).returncode == 0
    code = (tmp_path / "toy_counters.py").read_text()
    (tmp_path / "toy_counters.py").write_text(
        code.replace("dict(Counter(text.split()))", "dict(Counter(text.split(None)))")
    )
    planned = json.loads(command("plan", *base[:-2], "--json").stdout)
    by_name = {s["stage"]: s for s in planned["stages"]}
    assert by_name["count-words"]["changes"] == ["code toy_counters:words changed"]
    assert by_name["count-letters"]["state"] == "cached"  # a sibling in the same registry
    assert by_name["train"]["state"] == "stale"
    accepted = command("accept", "latest", "count-words", "--store", "store", "--json")
    assert [item["stage"] for item in json.loads(accepted.stdout)] == ["count-words"]
    assert "Nothing to do" in command("run", *base).stdout


def test_gc_deletes_what_nothing_reaches_and_only_when_told(command: Any, tmp_path: Path, text: Path) -> None:
    base = [TOY, f"source={text}", "tracking=off", "--store", "store", "--address", "inline"]
    command("run", *base)
    first = json.loads(command("status", "--store", "store", "--json").stdout)[0]["run"]
    command("run", *base, "train.steps=9")
    assert json.loads(command("gc", "--store", "store", "--json").stdout)["items"] == []
    dry = json.loads(command("gc", "--store", "store", "--forget", first, "--json").stdout)
    assert {i["kind"] for i in dry["items"]} == {"run", "artifact"}
    assert len([i for i in dry["items"] if i["kind"] == "artifact"]) == 2  # train and join of the first run
    assert command("show", first, "train", "--store", "store").returncode == 0
    command("gc", "--store", "store", "--forget", first, "--delete")
    assert command("show", first, "train", "--store", "store").returncode == 2
    assert "Nothing to do" in command("run", *base, "train.steps=9").stdout


def test_ui_names_a_port_in_use(command: Any, text: Path) -> None:
    assert command("run", TOY, f"source={text}", "--address", "inline").returncode == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        check_error(command("ui", "--port", str(taken.getsockname()[1])), 2, "in use")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "empty"),
        ("broken.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000, mtime=0)[:-20], "broken.jsonl.gz"),
        ("bad.txt", b"good line\n\n\xff\xfe bad\n", "UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "bad.jsonl"),
        ("field.jsonl", b'{"txt": "a"}\n', "text"),
    ],
)
def test_bad_corpora_stop_the_stage_with_a_clear_message(
    command: Any, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    done = command("run", "bert", f"corpus={name}", "tracking=off", "--address", "inline", "--only", "ingest")
    check_error(done, 1 if done.returncode == 1 else 2, name, said)


def test_help_lists_every_command_of_the_contract(command: Any) -> None:
    text = command("--help").stdout
    for name in [
        "run",
        "plan",
        "submit",
        "pack",
        "status",
        "logs",
        "cancel",
        "rerun",
        "why",
        "accept",
        "show",
        "diff",
        "verify",
        "repro",
        "gc",
        "report",
        "ui",
        "recipes",
        "generate",
        "fill",
        "export",
        "fit",
        "budget",
    ]:
        assert f"  {name} " in text
    settings = json.loads(command("recipes", "bert", "--json").stdout)
    assert settings["pretrain.steps"]["type"] == "int"


def test_rerun_downstream_makes_all_that_depends_on_the_stage_again(command: Any, text: Path) -> None:
    command("run", TOY, f"source={text}", "tracking=off", "--store", "store", "--address", "inline")
    rerun = ("rerun", "latest", "count-words", "--store", "store", "--address", "inline")
    states = []
    for words in (rerun, (*rerun, "--downstream")):
        assert command(*words).returncode == 0
        found = json.loads(command("status", "latest", "--store", "store", "--json").stdout)
        states.append({s["stage"]: s["state"] for s in found["stages"]})
    assert states[0] == {"read": "cached", "count-words": "done"}
    assert states[1] == {
        "read": "cached",
        "count-words": "done",
        "train": "done",
        "join": "done",
        "count-letters": "cached",
    }


def test_plan_tells_memory_and_cluster_and_refuses(command: Any, tmp_path: Path) -> None:
    """The table of needs, a forecast for ray_config.yaml, and exit 2 with what would fit."""
    (tmp_path / "articles.jsonl").write_text('{"text": "A short article."}\n')
    call = ["plan", "gpt2", "corpus=articles.jsonl", "scale=base"]
    found = json.loads(command(*call, "--gpu", "l4", "--cluster", str(ROOT / "ray_config.yaml"), "--json").stdout)
    (need,) = found["memory"]
    assert need["stages"] == ["pretrain"] and need["available"] == "one L4" and need["fits"]
    assert sum(need["parts_bytes"].values()) == need["total_bytes"] < need["available_bytes"]
    (choice,) = found["cluster"]
    assert choice["cheapest"]["usd"] <= choice["fastest"]["usd"]
    assert {option["zero_stage"] for option in choice["options"]} == {0, 1, 2, 3}

    (tmp_path / "ray_config.yaml").write_text((ROOT / "ray_config.yaml").read_text())  # read without being asked to
    refused = command(*call, "model=gpt2-1558M", "--gpu", "t4")
    check_error(refused, 2, "gpt2-1558M", "one T4 has 14.6 GiB", "what fits: placement.")
    assert "predicted memory of a worker" in refused.stdout and "cheapest: placement.workers=" in refused.stdout
    check_error(command(*call, "--cluster", "nowhere.yaml"), 2, "--cluster nowhere.yaml")
