"""Clean on real Ray: the same bytes on any number of workers, and after a kill -9 anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.store import Store
from pipelines.runs import RunRecord, run_names
from tasks.base import Runtime
from tasks.clean import Clean
from tasks.ingest import Ingest
from tests.tasks.corpora import facts, prose, write_corpus
from tests.tasks.stage import digests, run_stage

ROOT = Path(__file__).resolve().parents[2]
STEPS = ["unicode", "language", "c4", "gopher", "gopher-repetition", "pii"]
STEPS += ["exact-duplicates", "near-duplicates", "length"]
RECIPE = f"""
from pipelines import Pipeline
from tasks.clean import Clean
from tasks.ingest import Ingest


def cleaned(corpus: str) -> Pipeline:
    return Pipeline([Clean(corpus=Ingest(source=corpus, duplicates="keep"), steps={STEPS!r})])
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def texts(count: int) -> list[str]:
    """Some of them repeated, some nearly, some bad."""
    made = [prose(n % (count * 4 // 5)) + (" And one more." if n % 11 == 0 else "") for n in range(count)]
    return made + ["short", "a b " * 99, prose(1).replace(" ", " {")]


def test_workers_do_not_change_the_bytes(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.cleaning.passes.SLICE_BYTES", 30_000)
    corpus = write_corpus(tmp_path / "in", texts(200), texts(20))
    made = {}
    for workers in (1, 2):
        task = Clean(corpus=Ingest(source="x.jsonl"), steps=STEPS, runtime=Runtime(workers=workers))
        made[workers] = run_stage(task, tmp_path / f"workers{workers}", corpus=corpus)
    assert len(list((made[1].scratch / "pass-02").iterdir())) > 3, "several slices"
    assert digests(made[1].out) == digests(made[2].out)
    assert facts(made[1].out)["funnel"][-1]["documents"] < 200
    ray.shutdown()
    task = Clean(corpus=Ingest(source="x.jsonl"), steps=STEPS)
    assert digests(run_stage(task, tmp_path / "alone", corpus=corpus).out) == digests(made[1].out)


def start(folder: Path, store: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "run", "mine.py:cleaned", "corpus=texts.jsonl", "--store", store]
        + ["tracking=off", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output


def bytes_of(store: Path) -> dict[str, Any]:
    found = Store(str(store))
    record = RunRecord.load(found, run_names(found)[-1])
    return {n: (found.manifest(e["key"]) or {}).get("files") for n, e in record.status["stages"].items()}


def test_killed_it_goes_on_from_the_finished_slices(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RECIPE)
    with (tmp_path / "texts.jsonl").open("w") as file:
        for number, text in enumerate(texts(300)):  # 6 MB
            long = prose(number, 260) if len(text) > 300 else ""
            file.write(json.dumps({"text": text + "\n" + long}) + "\n")
    finish(start(tmp_path, "undisturbed", "--address", "inline"))
    process = start(tmp_path, "killed")
    scratch = tmp_path / "killed" / "scratch"
    end = time.monotonic() + 120
    while len(list(scratch.rglob("*.arrow"))) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "no slice appeared"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = Store(str(tmp_path / "killed"))
    assert RunRecord.load(killed, run_names(killed)[-1]).state() == "interrupted"
    finish(start(tmp_path, "killed"))
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "undisturbed")
