"""Running plans: caching, failures, retries by class of error, resuming, several drivers."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.leases import Owner
from cluster.store import Store
from pipelines import Pipeline, run
from pipelines.plan import differences
from pipelines.session import Request, make_plan
from tests.recipes.toy import Count, Read, Seen, Steps, ToyConfig, toy


def states(result: Any) -> dict[str, str]:
    return {name: entry["state"] for name, entry in result.record.status["stages"].items()}


def test_a_run_makes_everything_once_and_then_nothing(toy_run) -> None:
    first = toy_run()
    assert first.state == "done"
    assert set(states(first).values()) == {"done"}
    assert first.path("train").joinpath("sum.txt").read_text() == str(4 * 210)
    again = toy_run()
    assert again.state == "nothing"
    assert again.run == first.run
    assert again.artifacts["train"]["content"] == first.artifacts["train"]["content"]


def test_only_what_changed_and_what_depends_on_it_runs_again(toy_run) -> None:
    toy_run()
    second = toy_run({"train": {"steps": 5}})
    assert states(second) == {
        "read": "cached",
        "count-words": "cached",
        "count-letters": "cached",
        "train": "done",
        "join": "done",
    }


def plan_of(tmp_path: Path, text: Path, force: tuple[str, ...] = (), **config: Any) -> Any:
    request = Request(
        toy(ToyConfig(source=str(text), **config)), recipe="toy", store=str(tmp_path / "store"), force=force
    )
    return make_plan(request, Store(request.store))


def test_plan_names_the_field_that_changed(tmp_path: Path, text: Path, toy_run) -> None:
    assert {s.state for s in plan_of(tmp_path, text).steps.values()} == {"run"}
    toy_run()
    plan = plan_of(tmp_path, text, train={"steps": 7})
    assert plan.steps["train"].state == "stale"
    assert plan.steps["train"].changes == ["config steps: 20 -> 7"]
    assert plan.steps["join"].changes == ["input parts changed (train, count-words, count-letters)"]
    assert plan.steps["read"].state == "cached"
    assert plan.steps["train"].expected_seconds is not None
    text.write_text("other words\n")
    assert any("source text: the cat" in line for line in plan_of(tmp_path, text).steps["read"].changes)


def test_an_item_that_came_or_went_is_named_alone() -> None:
    """A file more in a folder, a step less in a list: not the beginnings of two lists that are both cut."""
    files = [{"checksum": "blake2b:" + str(n) * 40, "name": f"{n}.txt", "size": n} for n in range(4)]
    assert differences({"files": files[:1] + files[2:]}, {"files": files}) == [
        "files[1]: (absent) -> {'name': '1.txt', 'checksum': 'blake2b:" + 18 * "1" + "..."
    ]
    steps = [{"action": "drop", "kind": "pii"}, {"kind": "unicode"}, {"kind": "length", "least": 3}]
    assert differences({"steps": steps}, {"steps": [steps[0], {"kind": "length", "least": 4}]}) == [
        "steps[1].kind: unicode -> length",
        "steps[1].least: (absent) -> 4",
        "steps[2]: {'kind': 'length', 'least': 3} -> (absent)",
    ]
    assert differences([1, 2], [2]) == ["[0]: 1 -> (absent)"] and differences([1, 2], [1, 2]) == []


def test_force_makes_again_and_equal_bytes_keep_what_follows(toy_run) -> None:
    first = toy_run()
    forced = toy_run(force=["count-words"])
    assert states(forced)["count-words"] == "done"
    assert states(forced)["train"] == "cached"
    assert forced.artifacts["count-words"]["folder"] != first.artifacts["count-words"]["folder"]
    assert forced.artifacts["count-words"]["content"] == first.artifacts["count-words"]["content"]


def test_only_makes_a_stage_and_what_it_needs(toy_run) -> None:
    assert set(states(toy_run(only=["count-words"]))) == {"read", "count-words"}


@pytest.mark.parametrize(("fault", "kind"), [("bug", "bug"), ("space", "space")])
def test_a_failure_stops_what_depends_on_it_and_is_not_tried_again(toy_run, fault: str, kind: str) -> None:
    result = toy_run({"train": {"fault": fault}}, keep_going=True)
    assert result.state == "failed"
    assert states(result) == {
        "read": "done",
        "count-words": "done",
        "count-letters": "done",
        "train": "failed",
        "join": "skipped",
    }
    error = result.record.status["stages"]["train"]["error"]
    assert error["class"] == kind
    assert error["log"].endswith("logs/train.log")
    log = result.store.read_text(error["log"])
    assert "Traceback" in log
    repaired = toy_run()
    assert states(repaired)["train"] == "done"


def test_without_keep_going_nothing_new_starts_after_a_failure(tmp_path: Path, text: Path) -> None:
    counted = Count(corpus=Read(source=str(text)))
    broken = Steps(model=counted, steps=2, fault="bug", name="broken")
    others = [Steps(model=counted, steps=n, name=f"other-{n}") for n in (3, 4)]
    options = {"store": str(tmp_path / "store"), "tracking": "off", "address": "inline", "recipe": "stop"}
    result = run(Pipeline([broken, *others]), **options)
    assert result.state == "failed"
    assert states(result)["broken"] == "failed"
    assert states(result)["other-4"] == "skipped"
    going = run(Pipeline([broken, *others]), **{**options, "keep_going": True})
    assert states(going) == {
        "read": "cached",
        "count": "cached",
        "broken": "failed",
        "other-3": "done",
        "other-4": "done",
    }


def test_out_of_memory_halves_the_micro_batch_and_records_it(toy_run) -> None:
    """The one that was in use: here the stage had chosen 16."""
    result = toy_run({"train": {"fault": "memory"}})
    assert result.state == "done"
    decisions = result.record.status["stages"]["train"]["decisions"]
    assert [d["decision"] for d in decisions] == [
        "out of memory: micro-batch 16 → 8, accumulation 1 → 2, batch size 16 as before",
        "out of memory: micro-batch 8 → 4, accumulation 2 → 4, batch size 16 as before",
        "out of memory: micro-batch 4 → 2, accumulation 4 → 8, batch size 16 as before",
    ]
    assert result.artifacts["train"]["placement"]["micro_batch"] == 2


def test_a_loss_that_is_not_finite_is_tried_once_more_from_the_checkpoint(toy_run) -> None:
    result = toy_run({"train": {"fault": "nan"}})
    assert result.state == "failed"
    entry = result.record.status["stages"]["train"]
    assert entry["error"]["class"] == "nan"
    assert [d["decision"] for d in entry["decisions"]] == [
        "not finite: again from the last checkpoint, once",
        "stop: it is not finite again",
    ]
    assert "resumed at step" in result.store.read_text(entry["error"]["log"])


def test_a_second_driver_waits_and_shares(tmp_path: Path, text: Path) -> None:
    """Two drivers on one store: every stage is made once."""
    stages = [Count(corpus=Read(source=str(text)), counter=c, seconds=0.5, name=c) for c in ("words", "letters")]
    results: list[Any] = []

    def go() -> None:
        options = {"store": str(tmp_path / "store"), "tracking": "off", "address": "inline", "recipe": "two"}
        results.append(run(Pipeline(stages), **options))

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.state for r in results] == ["done", "done"]
    made = [name for r in results for name, state in states(r).items() if state == "done"]
    assert sorted(made) == ["letters", "read", "words"]


def test_a_lease_of_a_dead_process_is_taken_over_at_once(tmp_path: Path, text: Path, toy_run) -> None:
    store = Store(str(tmp_path / "store"))
    plan = plan_of(tmp_path, text)
    here = Owner.here("dead")
    dead = Owner(**{**here.__dict__, "pid": 2**22 - 7, "pid_start": "1"})
    store.claim(plan.steps["train"].node.key, dead)
    assert toy_run().state == "done"


def test_changed_bytes_of_a_forced_input_make_the_rest_stale(tmp_path: Path, text: Path, toy_run) -> None:
    """An input that gives other bytes under the same key (a bug, but it happens) is noticed."""
    first = toy_run()
    store = first.store
    node = plan_of(tmp_path, text).steps["count-words"].node
    claim = store.claim(node.key, Owner.here("by hand"), force=True)
    folder = store.attempt_folder(claim)
    (folder / "counts.json").write_text(json.dumps({"a": 1, "b": 2}))
    store.publish(claim, folder, {k: v for k, v in first.artifacts["count-words"].items() if k != "files"})
    plan = plan_of(tmp_path, text)
    assert plan.steps["train"].state == "stale"
    assert "count-words was made again with other bytes" in plan.steps["train"].reason
    assert states(toy_run())["train"] == "done"


def test_memory_store_runs_without_ray(text: Path) -> None:
    config = ToyConfig(source=str(text), counters=("words",))
    result = run(toy(config), store="memory://toy-test", tracking="off", recipe="toy")
    assert result.state == "done"
    assert (result.path("train") / "sum.txt").read_text() == str(4 * 210)


def test_steps_continue_from_their_checkpoint(tmp_path: Path, text: Path) -> None:
    counted = Count(corpus=Read(source=str(text)))
    options = {"store": str(tmp_path / "store"), "tracking": "off", "address": "inline", "recipe": "resume"}
    failed = run(Pipeline(Steps(model=counted, steps=10, fault="nan")), **options)
    assert failed.state == "failed"
    again = run(Pipeline(Steps(model=counted, steps=10, fault="nan")), **options)
    assert again.run == failed.run  # the same plan is continued, not begun anew
    assert "resumed at step" in again.store.read_text(f"runs/{again.run}/logs/steps.log")


def test_code_that_changes_while_the_run_goes_stops_the_stage(tmp_path: Path, text: Path, command: Any) -> None:
    """Or the artifact would not be what its key says."""
    source = Path(__file__).parents[1] / "recipes"
    for name in ("toy.py", "toy_counters.py"):
        (tmp_path / name).write_text((source / name).read_text())
    edit = "def shout(text: str) -> str:\n    import toy\n    from pathlib import Path\n"
    edit += "    Path(toy.__file__).with_name('toy_counters.py').open('a').write('\\n')\n"
    toy_file = tmp_path / "toy.py"
    toy_file.write_text(toy_file.read_text().replace("def shout(text: str) -> str:\n", edit))
    base = ["toy.py:toy", f"source={text}", "upper=true", "tracking=off", "--store", "store", "--address", "inline"]
    done = command("run", *base)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "toy_counters.py has changed since the run began" in done.stdout
    assert command("run", *base).returncode == 0


def test_a_running_task_sees_which_edges_it_has(tmp_path: Path, text: Path) -> None:
    """Fine-tuning tells a pretrained model from none by its field."""
    read = Read(source=str(text))
    count = Count(corpus=read)
    stages = [Seen(corpus=read, name="without"), Seen(corpus=read, model=count, parts=(count, count), name="with")]
    result = run(Pipeline(stages), store=str(tmp_path / "store"), tracking="off", address="inline")
    found = {name: json.loads((result.path(name) / "seen.json").read_text()) for name in ("without", "with")}
    assert found["without"] == {"corpus": True, "model": False, "parts": 0}
    assert found["with"] == {"corpus": True, "model": True, "parts": 2}


class Scribble(Read):
    """Writes over the file that another stage of the plan reads."""

    def external(self) -> dict[str, Any]:
        return {}

    def run(self, ctx: Any) -> dict[str, Any]:
        Path(self.source).write_text("other words\n")
        (ctx.out / "text.txt").write_text("done")
        return {}


def test_a_source_that_changes_after_the_plan_is_not_taken_for_the_planned_one(tmp_path: Path, text: Path) -> None:
    scribble, read = Scribble(source=str(text), name="scribble"), Read(source=str(text))
    options = {"store": str(tmp_path / "store"), "tracking": "off", "address": "inline"}
    result = run(Pipeline([scribble, read]), **options)
    assert states(result) == {"scribble": "done", "read": "failed"}
    error = result.record.status["stages"]["read"]["error"]
    assert error["message"].startswith("the data have changed since the run began: size: ")
    again = run(Pipeline([Read(source=str(text))]), **options)
    assert states(again) == {"read": "done"}
