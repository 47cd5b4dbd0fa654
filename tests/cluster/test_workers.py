"""Worker groups under a real Ray: results, live events, stopping, errors by class, and nobody left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.workers import RankContext, WorkerLost, run_group

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
    if payload.get("die") and rank.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
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


def group(payload: dict[str, Any], storage: Path, name: str, on_event=lambda event: None, should_stop=never) -> Any:
    return run_group(
        work, payload, workers=2, cpus=1, gpus=0, on_event=on_event, should_stop=should_stop, storage=storage, name=name
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
    assert events == [{"pid": os.getpid(), "rank": 0}]


def test_two_workers_share_a_process_group_and_stop_when_asked(tmp_path):
    events: list[dict[str, Any]] = []
    result = group(
        {"loop": True}, tmp_path, "stop", events.append, lambda: sum("round" in event for event in events) > 3
    )
    assert result["world_size"] == 2
    assert result["rounds"] > 3
    assert events[0]["rank"] == 0
    assert [event["round"] for event in events[1:]] == list(range(1, len(events)))


def test_the_users_error_comes_back_as_itself(tmp_path):
    with pytest.raises(ValueError, match="row 7 has no label"):
        group({"raise": True, "loop": True}, tmp_path, "raise")


def test_a_killed_worker_is_a_lost_one(tmp_path):
    with pytest.raises(WorkerLost):
        group({"die": True, "loop": True}, tmp_path, "die")


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
    deadline = time.monotonic() + 120
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
