"""A group of workers for one stage: in this process when there is one, under Ray Train when there are several.

`run_group(fn, payload, workers=N, …)` runs `fn(payload, rank)` on every worker and returns what rank 0
returned. Events that rank 0 emits reach the calling process at once, through the life-lines of `cluster.lines`.

A rank that hangs makes all others wait. It is found by its silence, or, where the process still lives but its work
stands still, by the collectives of the others that run out of time; then it is killed, which ends the group.

Ray Train starts torch's process group from a controller that imports torch for it. Here the workers get
the address from a small backend and join the group themselves, which saves that import.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from cluster.faults import OutOfMemory, WorkerLost, cause_of, oom_kills, ran_out_of_time
from cluster.lines import Address, Line, Lines, Peer, end_process

Event = dict[str, Any]

STOP_GRACE_SECONDS = 10.0
"""How long interrupted workers have to write a checkpoint before their life-line is cut."""

TRAIN_ENVIRONMENT = {
    # Ray Train waits this long between looks at its workers, also at the start and at the end.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


WAIT_FOR_ROOM_SECONDS = 600.0
"""How long a group waits for a node that it finds room on."""
TELL_SECONDS = 20.0
"""A group that has not started by then tells that it waits."""
COLLECTIVE_TIMEOUT_SECONDS = 600.0
"""How long a rank may keep the others waiting (NCCL's own default)."""
BACKSTOP = 1.2
"""Collectives run out of time after so many times that: silence is found first, and tells which rank it is."""
REPORT_SECONDS = 1.0
"""A rank whose collective ran out of time stays so long, for the others to report the same: who does not hangs."""
FAILED_GRACE_SECONDS = 10.0
"""After one rank has failed, so long the others have to fail or end as well."""

OPENMP_SPINS = "10000"
"""How long an idle OpenMP thread spins before it sleeps (GOMP_SPINCOUNT). By default it spins on, and on a
machine with other work to do a step of two threads takes 25 times as long; at this figure it takes twice as
long, and loses a sixth where the machine is free. Read when torch is imported."""


@dataclass
class RankContext:
    """What `fn` knows about its place in the group."""

    rank: int
    world_size: int
    _emit: Callable[[Event], None] = field(repr=False)
    _should_stop: Callable[[], bool] = field(repr=False)

    def emit(self, event: Event) -> None:
        """Hand `event` (JSON values) to the caller's `on_event`. On other ranks than 0 it does nothing."""
        if self.rank == 0:
            self._emit(event)

    def should_stop(self) -> bool:
        """True once the caller wants the group to end early.

        Ranks hear of it at slightly different times: those that talk to each other must agree first, as
        `modeling.loop.fit` does, which goes by rank 0's answer.
        """
        return self._should_stop()


Work = Callable[[Any, RankContext], Any]


def run_group(
    fn: Work,
    payload: Any,
    *,
    workers: int,
    cpus: float,
    gpus: float,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    storage: Path,
    name: str,
    resources: Mapping[str, float] | None = None,
    collective_timeout_seconds: float = COLLECTIVE_TIMEOUT_SECONDS,
    wait_for_room_seconds: float = WAIT_FOR_ROOM_SECONDS,
) -> Any:
    """Run `fn(payload, rank)` on every worker; return what rank 0 returned (JSON values).

    Args:
        fn: a function at the top level of a module, so that a worker can import it.
        payload: picklable, the same for all ranks.
        cpus, gpus, resources: of each worker.
        on_event: called in this process and thread, in order, with what rank 0 emits; and once, when all workers
            are there, with `{"kind": "ranks", "ranks": [{"rank", "pid", "host"}, …]}`.
        should_stop: asked here a few times a second; `RankContext.should_stop` then says so on every rank.
        storage: folder for Ray Train's own notes.
        name: of the Ray Train run. Never used twice: Ray Train would take it for a restart.
        collective_timeout_seconds: a rank that keeps the others waiting for longer is given up.
        wait_for_room_seconds: how long to wait for a node where the cluster has no room.

    With several workers the process group (`torch.distributed`) exists when `fn` is called.

    Raises:
        WorkerLost, OutOfMemory: a worker went away, or did not answer any more.
        NoRoom: the cluster cannot hold the workers, and no node came in time.
        Exception: otherwise what `fn` raised, as itself.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", OPENMP_SPINS)
    if workers == 1:
        on_event(_ranks([(0, os.getpid(), socket.gethostname())]))
        return fn(payload, RankContext(0, 1, on_event, should_stop))
    work = {"fn": fn, "payload": payload, "backend": "nccl" if gpus else "gloo", "timeout": collective_timeout_seconds}
    killed = oom_kills()
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(wait_for_room_seconds)
    with Lines() as lines:
        try:
            trainer = _trainer(work, lines.address, workers, cpus, gpus, dict(resources or {}), storage, name)
            return _Group(trainer, lines, workers, collective_timeout_seconds).run(on_event, should_stop)
        except WorkerLost as lost:
            if oom_kills() > killed:
                raise OutOfMemory(f"the kernel killed a process for lack of memory; {lost}") from None
            raise


def _ranks(places: Iterable[tuple[int, int, str]]) -> Event:
    names = ("rank", "pid", "host")
    return {"kind": "ranks", "ranks": [dict(zip(names, place, strict=True)) for place in sorted(places)]}


class _Group:
    """One Ray Train run, seen from the calling process."""

    def __init__(self, trainer: Any, lines: Lines, workers: int, patience_seconds: float) -> None:
        self.trainer, self.lines, self.workers, self.patience = trainer, lines, workers, patience_seconds
        self.began, self.waits, self.complete = time.monotonic(), False, False
        self.error: BaseException | None = None
        self.given_up: list[str] = []
        self.ended: set[int] = set()
        self.failed_at = 0.0
        # In a thread of its own: there Ray Train leaves SIGINT alone, and this one can hand on events.
        self.thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)

    def _fit(self) -> None:
        try:
            self.trainer.fit()
        except BaseException as error:
            self.error = error

    def run(self, on_event: Callable[[Event], None], should_stop: Callable[[], bool]) -> Any:
        self.thread.start()
        result: list[Any] = []
        try:
            while self.thread.is_alive() or not self.lines.received.empty():
                self._tell(on_event)
                with suppress(queue.Empty):
                    message = self.lines.received.get(timeout=0.2)
                    if "result" in message:
                        result.append(message["result"])
                    else:
                        on_event(message["event"])
                if should_stop():
                    self.lines.stop()
                self._give_up()
        except BaseException:
            self.lines.stop()
            self.thread.join(STOP_GRACE_SECONDS)
            self.lines.close()
            self.thread.join(STOP_GRACE_SECONDS)
            raise
        if self.error is not None:
            cause = cause_of(self.error)
            named = "; ".join(self.given_up) or self._kept_waiting()
            raise (WorkerLost(named) if named and isinstance(cause, WorkerLost) else cause) from None
        if not result:
            raise WorkerLost("the group ended without a result from rank 0")
        return result[0]

    def _tell(self, on_event: Callable[[Event], None]) -> None:
        """Once, where the ranks are; before that, once, that they wait for room."""
        if self.complete:
            return
        if len(self.lines.peers) == self.workers:
            self.complete = True
            on_event(_ranks((p.rank, p.pid, p.host) for p in self.lines.peers.values()))
        elif not self.waits and time.monotonic() - self.began > TELL_SECONDS:
            self.waits = True
            here = f"{len(self.lines.peers)} of {self.workers} workers have started"
            on_event({"kind": "note", "message": f"{here}; waiting, for a node if the cluster has no room"})

    def _give_up(self) -> None:
        """Kill the ranks that keep the others waiting."""
        for peer in self.lines.silent(self.patience):
            if peer.rank not in self.ended:
                self.given_up.append(f"rank {peer.rank} did not answer for {self.patience:g} s and was killed")
            self._end(peer)
        failed = [peer for peer in self.lines.peers.values() if peer.failed]
        if failed and not self.failed_at:
            self.failed_at = time.monotonic()
        if failed and time.monotonic() - self.failed_at > FAILED_GRACE_SECONDS and self.thread.is_alive():
            for peer in list(self.lines.peers.values()):
                if not peer.failed and not peer.gone:
                    self._end(peer)

    def _kept_waiting(self) -> str:
        """Which ranks the others' collectives waited for in vain; empty where none ran out of time."""
        peers = list(self.lines.peers.values())
        if not any(ran_out_of_time(peer.failed) for peer in peers):
            return ""
        silent = " and ".join(str(peer.rank) for peer in peers if not peer.failed)
        return f"rank {silent} kept the others waiting for {BACKSTOP * self.patience:g} s and was killed"

    def _end(self, peer: Peer) -> None:
        if peer.rank not in self.ended:
            self.ended.add(peer.rank)
            end_process(peer)


def _trainer(
    work: Mapping[str, Any],
    address: Address,
    workers: int,
    cpus: float,
    gpus: float,
    resources: dict[str, float],
    storage: Path,
    name: str,
) -> Any:
    os.environ.update({key: value for key, value in TRAIN_ENVIRONMENT.items() if key not in os.environ})
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class Trainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            # The cleaner of placement groups asks the dashboard, and where there is none it holds every
            # run up for twelve seconds at its end. The life-line does its work.
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]

    per_worker = {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **resources}
    threads = str(max(1, int(cpus)))
    return Trainer(
        _work,
        train_loop_config={**work, "address": address},
        backend_config=_backend_config(),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=per_worker),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            # Trying again is the executor's decision, also where the cluster had no room.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            worker_runtime_env={
                "env_vars": {
                    "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                    "OMP_NUM_THREADS": threads,
                    "GOMP_SPINCOUNT": os.environ["GOMP_SPINCOUNT"],
                    "DS_ACCELERATOR": "cuda" if gpus else "cpu",
                    **({} if gpus else {"CUDA_VISIBLE_DEVICES": ""}),  # Ray would leave it all of the node's
                }
            },
        ),
    )


def _backend_config() -> Any:
    """A Ray Train backend that tells each worker where rank 0 listens, and no more."""
    from ray.train.backend import Backend, BackendConfig

    class Rendezvous(Backend):
        # A worker then sees all GPUs that its group has on the node, and LOCAL_RANK says which one is its own.
        # Otherwise each sees one, as number 0, whatever its LOCAL_RANK.
        share_cuda_visible_devices = True

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            host, port = worker_group.execute_single(0, _free_address)
            worker_group.execute(_set_environment, {"MASTER_ADDR": host, "MASTER_PORT": str(port)})

    class RendezvousConfig(BackendConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return Rendezvous

    return RendezvousConfig()


def _free_address() -> tuple[str, int]:
    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def _set_environment(values: dict[str, str]) -> None:
    os.environ.update(values)


def _work(config: dict[str, Any]) -> None:
    """What Ray Train runs on each worker."""
    import ray.train
    import torch.distributed as dist  # before the line: loading it holds signs of life up, for seconds on a busy node

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(context.get_local_rank()))
    if config["backend"] == "nccl":
        import torch

        torch.cuda.set_device(context.get_local_rank())  # NCCL sends objects from the current device
    line = Line(config["address"], rank, config["timeout"])
    patience = timedelta(seconds=BACKSTOP * config["timeout"])
    dist.init_process_group(config["backend"], init_method="env://", rank=rank, world_size=world_size, timeout=patience)
    try:
        result = config["fn"](config["payload"], RankContext(rank, world_size, line.emit, line.stop.is_set))
        dist.barrier()
    except BaseException as error:
        with suppress(OSError):
            line.send({"failed": str(error)[:500] or type(error).__name__})
        if ran_out_of_time(str(error)):
            time.sleep(REPORT_SECONDS)
        raise
    dist.destroy_process_group()
    if rank == 0:
        line.send({"result": result})
    line.close()
