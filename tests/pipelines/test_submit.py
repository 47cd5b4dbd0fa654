"""A real Ray head with token authentication: submit, and act on the run from another shell."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import ROOT

RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head started as a user does; `ray stop` would end other Rays of the machine, so only ours is killed."""
    port, dashboard = free_port(), free_port()
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=2"),
            *(f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", dashboard)) == 0:
                break
        time.sleep(0.3)
    yield address
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)


@pytest.fixture
def own_recipe(tmp_path: Path) -> Path:
    """The toy as a user's own files."""
    for name in ("toy.py", "toy_counters.py"):
        (tmp_path / name).write_text((ROOT / "tests" / "recipes" / name).read_text())
    return tmp_path / "toy.py"


def wait_for_state(command: Any, name: str, stage: str, state: str) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        done = command("status", name, "--store", "store", "--json")
        if done.returncode == 0:
            stages = {s["stage"]: s["state"] for s in json.loads(done.stdout)["stages"]}
            if stages.get(stage) == state:
                return
        time.sleep(0.5)
    raise AssertionError(f"{stage} of {name} did not become {state}: {done.stdout}{done.stderr}")


def test_submit_follow_status_logs_rerun(head: str, command: Any, text: Path, own_recipe: Path) -> None:
    base = ["toy.py:toy", f"source={text.name}", "--store", "store", "--address", head]
    sent = command("submit", *base)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    name = sent.stdout.split()[1]
    assert f"submitted {name}" in sent.stdout
    assert "join  done" in sent.stdout
    found = json.loads(command("status", name, "--store", "store", "--json").stdout)
    assert found["state"] == "done"
    assert found["mlflow"]["run_id"]
    assert "attempt 1" in command("logs", name, "train", "--store", "store").stdout
    again = command("rerun", name, "train", "--store", "store")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "train  done" in again.stdout
    assert head in again.stdout  # sent to the same cluster


def test_the_client_may_go_away_and_cancel_comes_from_another_shell(
    head: str, command: Any, text: Path, own_recipe: Path
) -> None:
    base = ["toy.py:toy", f"source={text}", "tracking=off", "--store", "store", "--address", head, "--no-wait"]
    sent = command("submit", *base, "train.steps=2000", "train.step_seconds=0.05")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    name = sent.stdout.split()[1]
    wait_for_state(command, name, "train", "running")
    cancelled = json.loads(command("cancel", name, "--store", "store", "--json").stdout)
    assert cancelled == {"run": name, "state": "cancelled"}


def test_a_failed_job_gives_exit_code_1_and_the_cause(head: str, command: Any, text: Path, own_recipe: Path) -> None:
    base = ["toy.py:toy", f"source={text}", "tracking=off", "--store", "store", "--address", head]
    sent = command("submit", *base, "train.fault=bug")
    assert sent.returncode == 1
    assert "stage train failed" in sent.stdout
    assert "a bug in the toy" in sent.stdout
