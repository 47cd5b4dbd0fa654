"""A real BERT run killed again and again, at random moments, ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.store import Store
from pipelines.runs import RunRecord, run_names

ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    "quickstart",
    "ingest.max_document_chars=2000",
    "tokenizer.vocab_size=1024",
    "pretrain.steps=400",
    "placement.checkpoint_every_seconds=2",
    "finetune.seeds=1",
    "tracking=off",
)


def start(folder: Path, store: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "run", *WORDS, "--store", store],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def contents(store: Store) -> dict[str, str]:
    record = RunRecord.load(store, run_names(store)[-1])
    entries = record.status["stages"].items()
    return {name: (store.manifest(entry["key"]) or {}).get("content", "missing") for name, entry in entries}


@pytest.mark.soak
def test_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    undisturbed = start(tmp_path, "undisturbed")
    output, _ = undisturbed.communicate(timeout=1800)
    assert undisturbed.returncode == 0, output
    rng = random.Random(20)
    for _ in range(8):
        process = start(tmp_path, "killed")
        time.sleep(rng.uniform(3, 45))
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = start(tmp_path, "killed")
    output, _ = last.communicate(timeout=1800)
    assert last.returncode == 0, output
    assert contents(Store(str(tmp_path / "killed"))) == contents(Store(str(tmp_path / "undisturbed")))
