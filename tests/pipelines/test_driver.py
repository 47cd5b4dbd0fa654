"""The driver may be killed at any moment; Ctrl-C cancels cleanly; several drivers share (real Ray)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.store import Store
from pipelines.runs import RunRecord, run_names
from tests.pipelines.conftest import ROOT, TOY

SETTINGS = ("train.steps=40", "train.step_seconds=0.05", "tracking=off")


def start(folder: Path, text: Path, *words: str, store: str = "store") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "run", TOY, f"source={text}", "--store", store, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=180)
    assert process.returncode == code, output
    return output


def bytes_of(store: Store) -> dict[str, dict[str, Any]]:
    """{stage: files with checksums} of the newest run."""
    record = RunRecord.load(store, run_names(store)[-1])
    entries = record.status["stages"]
    return {n: (store.manifest(e["key"]) or {}).get("files", {}) for n, e in entries.items()}


def wait_until(check: Any, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def test_killed_at_random_points_the_same_command_ends_with_the_same_bytes(tmp_path: Path, text: Path) -> None:
    finish(start(tmp_path, text, *SETTINGS, store="undisturbed"))
    rng = random.Random(7)
    for _ in range(3):
        process = start(tmp_path, text, *SETTINGS)
        time.sleep(rng.uniform(1.0, 9.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(start(tmp_path, text, *SETTINGS))
    store = Store(str(tmp_path / "store"))
    assert bytes_of(store) == bytes_of(Store(str(tmp_path / "undisturbed")))
    assert all(not store.verify(store.manifest(key)) for key in store.keys() if store.manifest(key))


def test_killed_in_training_goes_on_from_the_checkpoint(tmp_path: Path, text: Path) -> None:
    store = Store(str(tmp_path / "store"))
    process = start(tmp_path, text, "train.steps=200", "train.step_seconds=0.05", "tracking=off")
    wait_until(lambda: list((tmp_path / "store" / "scratch").rglob("state.json")))
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    record = RunRecord.load(store, run_names(store)[-1])
    assert record.state() == "interrupted"
    output = finish(start(tmp_path, text, "train.steps=200", "train.step_seconds=0.05", "tracking=off"))
    assert f"continuing {record.name}" in output
    assert run_names(store) == [record.name]
    assert "resumed at step" in (store.read_text(f"runs/{record.name}/logs/train.log") or "")


def test_ctrl_c_cancels_cleanly(tmp_path: Path, text: Path) -> None:
    store = Store(str(tmp_path / "store"))
    words = ("train.steps=2000", "train.step_seconds=0.05")
    process = start(tmp_path, text, *words)
    wait_until(lambda: list((tmp_path / "store" / "scratch").rglob("state.json")))
    process.send_signal(signal.SIGINT)
    output = finish(process, 130)
    assert "Traceback" not in output
    record = RunRecord.load(store, run_names(store)[-1])
    assert record.state() == "cancelled"
    assert record.status["stages"]["train"]["state"] == "cancelled"
    assert all(store.holder(entry["key"]) is None for entry in record.status["stages"].values())
    from mlflow import MlflowClient

    facts = record.info["mlflow"]
    assert MlflowClient(facts["uri"]).get_run(facts["run_id"]).info.status == "KILLED"
    child = record.status["stages"]["train"]["mlflow_run"]
    assert MlflowClient(facts["uri"]).get_run(child).info.status == "KILLED"


def test_cancel_and_status_from_another_shell(tmp_path: Path, text: Path, command: Any) -> None:
    process = start(tmp_path, text, "train.steps=2000", "train.step_seconds=0.05", "tracking=off")
    wait_until(lambda: list((tmp_path / "store" / "scratch").rglob("state.json")))

    def trains() -> bool:  # the driver writes its record some moments after a stage has begun
        found = json.loads(command("status", "latest", "--store", "store", "--json").stdout)
        assert found["state"] == "running"
        return {s["stage"]: s["state"] for s in found["stages"]}["train"] == "running"

    wait_until(trains)
    cancelled = command("cancel", "latest", "--store", "store", "--json")
    assert json.loads(cancelled.stdout)["state"] == "cancelled", cancelled.stderr
    finish(process, 130)


def test_a_lost_worker_is_replaced_and_the_decision_recorded(tmp_path: Path, text: Path) -> None:
    output = finish(start(tmp_path, text, "train.steps=10", "train.die_at=4", "tracking=off"))
    store = Store(str(tmp_path / "store"))
    record = RunRecord.load(store, run_names(store)[-1])
    entry = record.status["stages"]["train"]
    assert entry["state"] == "done"
    assert [d["error"] for d in entry["decisions"]] == ["worker"]
    log = store.read_text(f"runs/{record.name}/logs/train.log") or ""
    assert "resumed at step 4" in log
    said = "A worker died or was killed"  # by Ray, into a file
    assert said not in output and said in (store.read_text(f"{record.folder}/ray.log") or "")


@pytest.mark.parametrize("drivers", [2])
def test_drivers_in_several_processes_make_each_stage_once(tmp_path: Path, text: Path, drivers: int) -> None:
    words = ("train.steps=10", "train.step_seconds=0.1", "tracking=off")
    processes = [start(tmp_path, text, *words) for _ in range(drivers)]
    for process in processes:
        finish(process)
    store = Store(str(tmp_path / "store"))
    made = [
        name
        for run in run_names(store)
        for name, entry in RunRecord.load(store, run).status["stages"].items()
        if entry["state"] == "done"
    ]
    assert sorted(made) == ["count-letters", "count-words", "join", "read", "train"]
