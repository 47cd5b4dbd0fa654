"""Worker groups under a real Ray: results, live events, stopping, errors by class, and nobody left behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.faults import WorkerLost
from cluster.workers import RankContext, run_group

pytestmark = pytest.mark.slow
ROOT = str(Path(__file__).resolve().parents[2])


def work(payload: dict[str, Any], rank: RankContext) -> dict[str, Any]:
    """Adds up the ranks over the process group, then does as the payload says."""
    import torch
    import torch.distributed as dist

    total = torch.tensor([float(rank.rank + 1)])
    if rank.world_size > 1:
        dist.all_reduce(total)
    rank.emit({"pid": os.getpid(), "rank": rank.rank})
    if payload.get("raise") and rank.rank == 1:
        raise ValueError("row 7 has no label")
    if payload.get("signal") and rank.rank == 1:
        os.kill(os.getpid(), payload["signal"])
    if payload.get("hang") and rank.rank == 1:
        time.sleep(600)
    rounds = 0
    stop = torch.zeros(1)
    while payload.get("loop") and not stop.item():
        rounds += 1
        rank.emit({"round": rounds})
        time.sleep(0.05)
        stop += rank.should_stop()
        dist.all_reduce(stop)  # ranks hear of it at different times, and must leave together
    return {"total": total.item(), "rounds": rounds, "world_size": rank.world_size}


def never() -> bool:
    return False


def group(
    payload: dict[str, Any],
    storage: Path,
    name: str,
    on_event=lambda event: None,
    should_stop=never,
    patience: float = 600,
) -> Any:
    return run_group(
        work,
        payload,
        workers=2,
        cpus=1,
        gpus=0,
        on_event=on_event,
        should_stop=should_stop,
        storage=storage,
        name=name,
        collective_timeout_seconds=patience,
    )


@pytest.fixture(scope="module", autouse=True)
def ray_here():
    from cluster.connect import connect, shutdown

    mine = connect(None, import_paths=[ROOT])
    yield
    if mine:
        shutdown()


def test_one_worker_runs_in_this_process(tmp_path):
    events: list[dict[str, Any]] = []
    result = run_group(
        work, {}, workers=1, cpus=1, gpus=0, on_event=events.append, should_stop=never, storage=tmp_path, name="one"
    )
    assert result == {"total": 1.0, "rounds": 0, "world_size": 1}
    place = {"rank": 0, "pid": os.getpid(), "host": socket.gethostname()}
    assert events == [{"kind": "ranks", "ranks": [place]}, {"pid": os.getpid(), "rank": 0}]


def test_two_workers_share_a_process_group_and_stop_when_asked(tmp_path):
    events: list[dict[str, Any]] = []
    result = group(
        {"loop": True}, tmp_path, "stop", events.append, lambda: sum("round" in event for event in events) > 3
    )
    assert result["world_size"] == 2
    assert result["rounds"] > 3
    places = [event["ranks"] for event in events if event.get("kind") == "ranks"]
    assert [[place["rank"] for place in ranks] for ranks in places] == [[0, 1]]
    rounds = [event["round"] for event in events if "round" in event]
    assert rounds == list(range(1, len(rounds) + 1))
    assert [event for event in events if "pid" in event] == [{"pid": places[0][0]["pid"], "rank": 0}]


def test_the_users_error_comes_back_as_itself(tmp_path):
    with pytest.raises(ValueError, match="row 7 has no label"):
        group({"raise": True, "loop": True}, tmp_path, "raise")


def test_a_killed_worker_is_a_lost_one(tmp_path):
    with pytest.raises(WorkerLost, match="a worker was lost"):
        group({"signal": signal.SIGKILL, "loop": True}, tmp_path, "die")


@pytest.mark.parametrize(
    ("payload", "words"),
    [({"signal": signal.SIGSTOP}, "rank 1 did not answer for 6 s"), ({"hang": True}, "rank 1 kept the others waiting")],
)
def test_a_rank_that_hangs_is_killed_and_named(tmp_path, payload, words):
    """A stopped process sends no signs of life; one whose work stands still keeps the others' collectives waiting."""
    with pytest.raises(WorkerLost, match=f"{words}.* and was killed"):
        group({**payload, "loop": True}, tmp_path, f"hang-{len(words)}", patience=6)


def test_killing_the_calling_task_leaves_no_worker_behind(tmp_path):
    import ray

    marker = tmp_path / "pid"

    @ray.remote(num_cpus=0, max_retries=0)
    def stage() -> Any:
        def note(event: dict[str, Any]) -> None:
            if "pid" in event:
                marker.write_text(str(event["pid"]))

        return group({"loop": True}, tmp_path, "killed", note)

    task = stage.remote()
    deadline = time.monotonic() + 240
    while not marker.exists() or not marker.read_text():
        assert time.monotonic() < deadline, "no event from rank 0"
        time.sleep(0.1)
    pid = int(marker.read_text())
    ray.cancel(task, force=True)
    with pytest.raises(ray.exceptions.RayError):
        ray.get(task)
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline + 30, "rank 0 outlives its caller"
        time.sleep(0.1)
