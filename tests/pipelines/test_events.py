"""Live figures on real Ray: an actor that is killed starts again, or is given up with one notice and the run goes on;
a cluster without tokens is joined without one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.connect import connect, shutdown
from pipelines.events import EventLine
from pipelines.pool import _stage
from tests.pipelines.conftest import ROOT, TOY
from tests.pipelines.test_cli import check_error
from tests.pipelines.test_submit import RAY, free_port


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Any]:
    import ray

    mine = connect(None, import_paths=[str(ROOT), str(ROOT / "tests" / "recipes")])
    yield ray
    if mine:
        shutdown()


def events_of(line: EventLine, ray: Any, push: bool) -> list[dict[str, Any]]:
    """What comes first, within a minute; `push` sends something again and again."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if push:
            line.hub.push.remote([{"type": "metric"}])
        call = line.call()
        if call is not None and ray.wait([call], timeout=0.5)[0] and (found := line.take()):
            return found
        time.sleep(0.1)
    raise AssertionError("nothing came")


def test_an_actor_whose_process_is_killed_starts_again(ray_here: Any) -> None:
    line = EventLine()
    assert events_of(line, ray_here, push=True)[0] == {"type": "metric"}
    ray_here.kill(line.hub, no_restart=False)
    assert {event["type"] for event in events_of(line, ray_here, push=True)} == {"metric"}
    line.close()


def test_one_that_is_gone_is_given_up_with_one_notice(ray_here: Any) -> None:
    line = EventLine()
    ray_here.kill(line.hub)
    (event,) = events_of(line, ray_here, push=False)
    assert event["type"] == "notice" and "ActorDiedError" in event["message"]
    assert (line.hub, line.call(), line.trailing()) == (None, None, [])


def test_a_stage_ends_when_its_last_events_have_arrived(ray_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def __init__(self) -> None:
            self.events: list[Any] = []

        async def push(self, events: list[Any]) -> None:
            import asyncio

            await asyncio.sleep(1.0)
            self.events.extend(events)

        async def arrived(self) -> list[Any]:
            return self.events

    def execute(payload: bytes, sink: Any) -> dict[str, Any]:
        sink([{"type": "metric", "last": payload.decode()}])
        return {"ok": True}

    monkeypatch.setattr("pipelines.pool.execute", execute)
    monkeypatch.setattr("cluster.connect.see_own_gpus", lambda: None)  # of a Ray task; here it is this process's
    hub = ray_here.remote(num_cpus=0)(Slow).remote()
    assert _stage(b"yes", hub) == {"ok": True}
    assert ray_here.get(hub.arrived.remote()) == [{"type": "metric", "last": "yes"}]
    assert _stage(b"no", None) == {"ok": True}


def test_a_run_goes_on_without_live_figures(ray_here: Any, toy_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(EventLine):
        def __init__(self, *, joined: bool) -> None:
            super().__init__(joined=joined)
            ray_here.kill(self.hub)

    monkeypatch.setattr("pipelines.pool.EventLine", Gone)
    result = toy_run({"train": {"steps": 3}}, address=None)
    assert result.state == "done"
    (entry,) = result.record.status["notices"]
    assert entry["message"].startswith("no live progress, metrics or decisions")


@pytest.fixture(scope="module")
def open_cluster() -> Iterator[str]:
    """A cluster without tokens, of one node that says it has a GPU."""
    port, kind = free_port(), '{"accelerator_type:T4": 1}'
    process = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=2", "--num-gpus=1", f"--resources={kind}"),
            *(f"--port={port}", "--include-dashboard=false", f"--dashboard-agent-listen-port={free_port()}"),
        ],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.3)
    yield f"127.0.0.1:{port}"
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)


TOKEN = {"RAY_AUTH_TOKEN": "0" * 64}


@pytest.mark.parametrize("mode", ["", "token"], ids=["as-the-cluster-is", "told-to-use-it"])
def test_a_token_where_the_cluster_has_none(
    command: Any, text: Path, open_cluster: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver goes without; one that insists has no live figures, says so once, and ends well."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    words = (TOY, f"source={text}", "train.steps=3", "tracking=off", "--store", "store", "--address", open_cluster)
    done = command("run", *words, **TOKEN, **({"RAY_AUTH_MODE": mode} if mode else {}))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(command("status", "latest", "--store", "store", "--json").stdout)
    train = next(stage for stage in found["stages"] if stage["stage"] == "train")
    if not mode:
        assert found["notices"] == [] and train["last"] == {"sum": 6 * 4}
        return
    (entry,) = found["notices"]
    assert "RAY_AUTH_MODE=disabled" in entry["remedy"] and "last" not in train
    assert done.stdout.count("no live progress, metrics or decisions") == 1


def test_what_cannot_fit_on_the_nodes_of_a_cluster_is_refused(command: Any, tmp_path: Path, open_cluster: str) -> None:
    (tmp_path / "articles.jsonl").write_text('{"text": "A short article."}\n')
    words = ("gpt2", "corpus=articles.jsonl", "scale=base", "model=gpt2-1558M", "placement.gpus=1", "tracking=off")
    refused = command("run", *words, "--store", "store", "--address", open_cluster, RAY_AUTH_MODE="disabled")
    check_error(refused, 2, "gpt2-1558M", "the T4 of node type", "has 14.6 GiB", "--skip-memory-check")
    assert not (tmp_path / "store" / "runs").exists()
