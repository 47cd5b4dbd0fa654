"""A whole run on an object store (moto's S3) with real Ray: the same pipeline, logs, checkpoints, kill and resume."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

from cluster.store import Store
from pipelines.runs import RunRecord, run_names
from tests.cluster.conftest import s3_server  # noqa: F401
from tests.pipelines.test_driver import finish, start


def test_run_kill_resume_and_read_on_s3(tmp_path: Path, text: Path, command: Any, s3_server: str) -> None:  # noqa: F811
    url = f"s3://triptych/{tmp_path.name}"
    words = ("train.steps=60", "train.step_seconds=0.1", "tracking=off")
    process = start(tmp_path, text, *words, store=url)
    store = Store(url)
    end = time.monotonic() + 90
    while not store.list("scratch"):
        assert time.monotonic() < end, "no checkpoint came"
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    output = finish(start(tmp_path, text, *words, store=url))
    assert "continuing" in output
    record = RunRecord.load(store, run_names(store)[-1])
    assert "resumed at step" in (store.read_text(f"{record.folder}/logs/train.log") or "")
    shown = json.loads(command("show", "latest", "train", "--store", url, "--json").stdout)
    assert shown["metrics"] == {"sum": 4 * 60 * 61 // 2}
    assert json.loads(command("verify", "latest", "--store", url, "--json").stdout)["problems"] == {}
    assert "Nothing to do" in finish(start(tmp_path, text, *words, store=url))
    assert not store.list("scratch")
