"""`verify` checks all it can; `gc` collects nothing where it cannot know what registered models need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import BadConfig, Unreachable
from cluster.store import Store
from pipelines.gc import collect
from pipelines.status import verify_all


def test_verify_lists_a_damaged_manifest_and_checks_the_rest(toy_run: Any, tmp_path: Path, command: Any) -> None:
    made = toy_run().artifacts
    path = tmp_path / "store" / "artifacts" / made["train"]["key"][:2] / made["train"]["key"] / "artifact.json"
    path.write_text("{")
    (tmp_path / "store" / made["join"]["folder"] / "joined.txt").write_text("other")
    done = command("verify", "--store", "store", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["checked"] == 5 and set(found["problems"]) == {made["train"]["key"], made["join"]["key"]}
    assert "artifact.json" in found["problems"][made["train"]["key"]][0]
    assert "joined.txt" in found["problems"][made["join"]["key"]][0]


def test_verify_takes_the_beginning_of_a_key_and_names_an_unknown_one(toy_run: Any, tmp_path: Path) -> None:
    key = toy_run().artifacts["train"]["key"]
    store = Store(str(tmp_path / "store"))
    assert verify_all(store, key[:12]) == verify_all(store, key) == {key: []}
    with pytest.raises(BadConfig, match="no artifact 0{40} in the store"):
        verify_all(store, "0" * 40)
    with pytest.raises(BadConfig, match="no run 'abcdef12'"):
        verify_all(store, "abcdef12")


def test_gc_stops_where_a_tracking_database_is_not_here(tmp_path: Path, text: Path, toy_run: Any) -> None:
    """With its database away, nobody knows whether a forgotten run's model is registered."""
    away = tmp_path / "elsewhere" / "mlflow.db"
    name = toy_run(tracking=f"sqlite:///{away}", store=str(tmp_path / "store")).run
    store = Store(str(tmp_path / "store"))
    assert collect(store, delete=False)["items"] == []
    away.rename(tmp_path / "kept.db")
    with pytest.raises(Unreachable, match=f"tracking database {away} of run {name} is not here"):
        collect(store, delete=True, forget=[name])
    away.touch()  # as the remedy says
    assert collect(store, delete=True, forget=[name])["items"]


def test_gc_finds_the_database_of_a_store_that_moved(tmp_path: Path, toy_run: Any) -> None:
    toy_run(tracking=None)
    shutil.move(tmp_path / "store", tmp_path / "moved")
    assert collect(Store(str(tmp_path / "moved")), delete=False)["items"] == []


def test_show_of_a_run_lists_its_stages_and_logs_tell_where_there_is_none(
    toy_run: Any, command: Any, tmp_path: Path
) -> None:
    first = toy_run(name="first")
    toy_run({"train": {"steps": 9}}, name="second")
    shown = command("show", "first", "--store", "store").stdout
    for stage, made in first.artifacts.items():
        (line,) = [line.split() for line in shown.splitlines() if line.startswith(f"  {stage} ")]
        assert line[1] == "done" and line[-1] == made["key"][:16]
    for words in ([], ["--json"]):
        done = command("logs", "second", "read", "--store", "store", *words)
        assert done.returncode == 2 and not done.stdout
        assert "stage read was cached in second" in done.stderr and "triptych logs first read" in done.stderr
