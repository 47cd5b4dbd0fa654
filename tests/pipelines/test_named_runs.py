"""A run's name stands for one plan: its record is continued, never written over by another, and says what ended it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import BadConfig, Unreachable
from cluster.store import Store
from pipelines.gc import collect
from pipelines.runs import RunRecord, run_names


def record_bytes(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "runs" / "x").glob("*.json")}


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"train": {"steps": 9}}, {}, "of toy with other stages, settings or code: train, join"),
        ({}, {"recipe": "other"}, "of recipe toy, not of other"),
    ],
)
@pytest.mark.parametrize("state", ["done", "failed"])
def test_a_name_of_another_plan_is_refused(
    toy_run: Any, tmp_path: Path, change: dict[str, Any], options: dict[str, str], said: str, state: str
) -> None:
    first = {} if state == "done" else {"train": {"fault": "bug"}}
    assert toy_run(first, name="x").state == state
    store = Store(str(tmp_path / "store"))
    before, items = record_bytes(tmp_path / "store"), collect(store, delete=False)["items"]
    with pytest.raises(BadConfig) as raised:
        toy_run({**first, **change} if options else change, name="x", **options)
    assert f"run x exists already ({state}) and is {said}" in raised.value.message
    assert "--name" in raised.value.remedy
    assert record_bytes(tmp_path / "store") == before
    assert collect(store, delete=False)["items"] == items


def test_a_finished_run_of_that_name_has_nothing_to_do(toy_run: Any, tmp_path: Path) -> None:
    assert toy_run(name="x").state == "done"
    before = record_bytes(tmp_path / "store")
    again = toy_run(name="x")
    assert (again.state, again.run, len(again.artifacts)) == ("nothing", "x", 5)
    assert record_bytes(tmp_path / "store") == before


def test_what_is_forced_goes_on_in_the_run_of_that_name(toy_run: Any, tmp_path: Path) -> None:
    toy_run(name="x")
    asked = json.loads((tmp_path / "store" / "runs" / "x" / "run.json").read_text())
    assert toy_run(name="x", force=("train",)).state == "done"
    record = RunRecord.load(Store(str(tmp_path / "store")), "x")
    assert record.status["sessions"] == 2
    assert record.status["stages"]["train"]["state"] == "done"
    assert record.info["plan_steps"] == asked["plan_steps"]


def test_an_unfinished_run_of_that_name_is_continued(toy_run: Any, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    toy_run(name="x")
    record = RunRecord.load(store, "x")
    record.finish("cancelled")
    again = toy_run(name="x", force=("join",))
    assert (again.state, again.run) == ("done", "x")


def test_a_new_name_gets_a_record_though_all_is_cached(toy_run: Any) -> None:
    toy_run()
    assert toy_run(name="x").run == "x"


def test_a_name_that_cannot_be_one_is_refused_before_anything_runs(toy_run: Any, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="cannot be a run's name"):
        toy_run(name="../x")
    assert not (tmp_path / "store" / "runs").exists()


def test_of_two_drivers_that_begin_a_name_one_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    RunRecord.create(store, "x", {"plan": "p"}, {})
    with pytest.raises(BadConfig, match="a run x has begun meanwhile"):
        RunRecord.create(store, "x", {"plan": "q"}, {})


def test_an_unreachable_cluster_leaves_no_run(toy_run: Any, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no Ray cluster answers at 127.0.0.1:1"):
        toy_run(address="127.0.0.1:1")
    assert not (tmp_path / "store" / "runs").exists()


def test_what_ends_a_run_before_its_stages_is_in_its_record(toy_run: Any) -> None:
    with pytest.raises(BadConfig):
        toy_run(store="memory://named", address="auto")
    store = Store("memory://named")
    record = RunRecord.load(store, run_names(store)[-1])
    assert record.state() == "failed"
    assert "lives inside one process" in record.status["notices"][0]["message"]
