"""Sweeps: cheapest first, pruned by what is made, and the same decisions again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.store import Store
from pipelines import run
from pipelines.session import Request, make_plan
from tests.recipes.toy_sweep import LOG, sweep


@pytest.fixture
def go(tmp_path: Path) -> Any:
    def call(most: int, **options: Any) -> Any:
        LOG.clear()
        names = ("after", "costs")
        made = sweep(most, **{k: v for k, v in options.items() if k in names})
        rest = {k: v for k, v in options.items() if k not in names}
        return run(made, store=str(tmp_path / "store"), tracking="off", address="inline", recipe="sweep", **rest)

    return call


def states(result: Any) -> dict[str, str]:
    return {name: entry["state"] for name, entry in result.record.status["stages"].items()}


def total(result: Any) -> int:
    return int((result.path("total") / "total.txt").read_text())


def test_the_cheapest_first_and_no_more_than_needed(go) -> None:
    result = go(6)
    assert result.state == "done"
    assert LOG == [1, 2, 3]
    assert states(result) == {
        "trial-6": "pruned",
        "trial-5": "pruned",
        "trial-4": "pruned",
        "trial-3": "done",
        "trial-2": "done",
        "trial-1": "done",
        "total": "done",
    }
    assert total(result) == 6
    assert result.record.status["stages"]["trial-5"]["reason"] == "6 is spent"


def test_the_artifact_cites_the_runs_it_used(go) -> None:
    result = go(6)
    keys = {name: entry["key"] for name, entry in result.record.status["stages"].items()}
    manifest = result.artifacts["total"]
    assert manifest["inputs"]["trials"] == [keys[f"trial-{n}"] for n in (3, 2, 1)]
    assert set(manifest["input_content"]) == {keys[f"trial-{n}"] for n in (1, 2, 3)}


def test_again_the_same_decisions_and_nothing_to_do(go, tmp_path) -> None:
    go(6)
    again = go(6)
    assert again.state == "nothing"
    assert LOG == []
    plan = make_plan(Request(sweep(6), recipe="sweep"), Store(str(tmp_path / "store")))
    assert {name: step.state for name, step in plan.steps.items()}["trial-4"] == "pruned"
    assert plan.as_json()["counts"] == {"cached": 4, "run": 0, "stale": 0, "pruned": 3}


def test_what_a_larger_sweep_adds_makes_the_sum_anew(go) -> None:
    first = go(6)
    second = go(10)
    assert LOG == [4]
    assert states(second)["trial-3"] == "cached"
    assert (total(first), total(second)) == (6, 10)
    third = go(6)  # what is there is used, however it came to be made
    assert third.state == "nothing" or states(third)["total"] == "cached"
    assert total(third) == 10


def test_a_run_that_is_made_again_leaves_the_sum_if_its_bytes_are_the_same(go) -> None:
    go(6)
    forced = go(6, force=["trial-2"])
    assert LOG == [2]
    assert states(forced)["total"] == "cached"


def test_a_run_that_changed_makes_the_sum_stale(go, tmp_path) -> None:
    go(6)
    plan = make_plan(Request(sweep(6, costs=(1, 2, 3, 7)), recipe="sweep"), Store(str(tmp_path / "store")))
    assert plan.steps["total"].state == "stale"
    assert plan.steps["total"].changes == ["input trials: other stages are planned"]


def test_what_stands_behind_a_pruned_run_is_pruned(go) -> None:
    result = go(6, after=5)
    assert result.state == "done"
    assert states(result)["after"] == "pruned"
    assert result.record.status["stages"]["after"]["reason"] == "needs trial-5, which is not made: 6 is spent"
    assert states(go(6, after=3))["after"] == "done"


def test_one_run_and_the_rest_pruned(go) -> None:
    result = go(1)
    assert LOG == [1]
    assert total(result) == 1
