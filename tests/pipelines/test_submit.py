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


def test_a_config_file_with_lists_globs_components_and_dashes_travels(
    head: str, command: Any, text: Path, own_recipe: Path, tmp_path: Path
) -> None:
    """Paths of the file are the client's; words are over it; the job starts from the same settings."""
    (tmp_path / "many.py").write_text(MANY)
    (tmp_path / "settings.yaml").write_text("sources: [text.txt, te*.txt]\nby_name: {a-b: 2.0e-05}\ncounter: letters\n")
    call = ["submit", "many.py:many", "counter=words", "--config", "settings.yaml"]
    sent = command(*call, "tracking=off", "--store", "store", "--address", head)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    name = sent.stdout.split()[1]
    record = json.loads((tmp_path / "store" / "runs" / name / "run.json").read_text())
    assert record["config"]["sources"] == [str(text), str(tmp_path / "te*.txt")]
    assert record["config"]["by_name"] == {"a-b": 2e-05}
    assert record["config"]["counter"] == "words"
    assert record["words"] == ["counter=words"] and record["file"] == str(tmp_path / "settings.yaml")
    assert record["command"].startswith("triptych submit many.py:many")


MANY = """
import glob
from pipelines import Pipeline
from modeling.config import Config
from toy import Count, Join, Read


class ManyConfig(Config):
    sources: tuple[str, ...]
    by_name: dict[str, float] = {}
    counter: str = "words"


def many(c: ManyConfig) -> Pipeline:
    assert c.by_name == {"a-b": 2e-05}
    files = [file for source in c.sources for file in glob.glob(source)]
    reads = [Read(source=file, name=f"read-{n}") for n, file in enumerate(files)]
    counts = [Count(corpus=read, counter=c.counter, name=f"count-{n}") for n, read in enumerate(reads)]
    return Pipeline(counts, report=Join(parts=tuple(counts), name="join"))
"""


def test_a_job_that_waits_is_shown_and_cancelled_and_one_that_dies_early_is_told(
    head: str, command: Any, text: Path, own_recipe: Path
) -> None:
    base = ["toy.py:toy", f"source={text}", "tracking=off", "--store", "store", "--address", head, "--no-wait"]
    code = own_recipe.read_text()
    own_recipe.write_text(code.replace("import json\n", WAITS, 1))
    name = command("submit", *base).stdout.split()[1]
    found = json.loads(command("status", name, "--store", "store", "--json").stdout)
    assert found["state"] == "submitted" and "its job is" in found["notices"][0]["message"]
    cancelled = command("cancel", name, "--store", "store", "--json")
    assert json.loads(cancelled.stdout) == {"run": name, "state": "cancelled"}, cancelled.stderr

    own_recipe.write_text(code.replace("import json\n", DIES, 1))
    name = command("submit", *base).stdout.split()[1]
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = json.loads(command("status", name, "--store", "store", "--json").stdout)
        if found["state"] != "submitted":
            break
    assert found["state"] == "failed"
    assert "its job failed before the run began" in found["notices"][0]["message"]
    assert "toy.py does not import" in found["notices"][0]["message"]
    assert f"ray job logs --address {head} {name}" in found["notices"][0]["remedy"]


IN_THE_JOB = "import json\nimport os\nimport time\nif 'TRIPTYCH_LABEL' in os.environ:\n    "
WAITS = IN_THE_JOB + "time.sleep(60)\n"
DIES = IN_THE_JOB + "raise RuntimeError('no')\n"
