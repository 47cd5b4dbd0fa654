"""A group of workers for one stage: in this process when there is one, under Ray Train when there are several.

`run_group(fn, payload, workers=N, …)` runs `fn(payload, rank)` on every worker and returns what rank 0
returned. Events that rank 0 emits reach the calling process at once, through a socket that every worker
opens back to it: nothing to start, nothing to poll, across nodes too. The socket is also the life-line.
When the caller goes away, however it ends, its end closes and the workers exit.

Ray Train starts torch's process group from a controller that imports torch for it. Here the workers get
the address from a small backend and join the group themselves, which saves that import.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


OPENMP_SPINS = "10000"
"""How long an idle OpenMP thread spins before it sleeps (GOMP_SPINCOUNT). By default it spins on, and on a
machine with other work to do a step of two threads takes 25 times as long; at this figure it takes twice as
long, and loses a sixth where the machine is free. Read when torch is imported."""


class WorkerLost(RuntimeError):
    """A worker process or its node went away; trying again may help."""


class OutOfMemory(MemoryError):
    """A worker was ended for lack of memory; a smaller micro-batch may help."""


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
) -> Any:
    """Run `fn(payload, rank)` on every worker; return what rank 0 returned (JSON values).

    Args:
        fn: a function at the top level of a module, so that a worker can import it.
        payload: picklable, the same for all ranks.
        cpus, gpus, resources: of each worker.
        on_event: called in this process and thread, in order, with what rank 0 emits.
        should_stop: asked here a few times a second; `RankContext.should_stop` then says so on every rank.
        storage: folder for Ray Train's own notes.
        name: of the Ray Train run. Never used twice: Ray Train would take it for a restart.

    With several workers the process group (`torch.distributed`) exists when `fn` is called.

    Raises:
        WorkerLost, OutOfMemory: a worker went away.
        Exception: otherwise what `fn` raised, as itself.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", OPENMP_SPINS)
    if workers == 1:
        return fn(payload, RankContext(0, 1, on_event, should_stop))
    with _Lines() as lines:
        group = _Group(fn, payload, lines, workers, cpus, gpus, dict(resources or {}), storage, name)
        return group.run(on_event, should_stop)


class _Group:
    """One Ray Train run, seen from the calling process."""

    def __init__(
        self,
        fn: Work,
        payload: Any,
        lines: _Lines,
        workers: int,
        cpus: float,
        gpus: float,
        resources: dict[str, float],
        storage: Path,
        name: str,
    ) -> None:
        self.lines = lines
        self.error: BaseException | None = None
        self.trainer = _trainer(fn, payload, lines.address, workers, cpus, gpus, resources, storage, name)
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
                with suppress(queue.Empty):
                    message = self.lines.received.get(timeout=0.2)
                    if "result" in message:
                        result.append(message["result"])
                    else:
                        on_event(message["event"])
                if should_stop():
                    self.lines.stop()
        except BaseException:
            self.lines.stop()
            self.thread.join(STOP_GRACE_SECONDS)
            self.lines.close()
            self.thread.join(STOP_GRACE_SECONDS)
            raise
        if self.error is not None:
            raise _cause(self.error) from None
        if not result:
            raise WorkerLost("the group ended without a result from rank 0")
        return result[0]


def _trainer(
    fn: Work,
    payload: Any,
    address: tuple[str, int, str],
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
        train_loop_config={"fn": fn, "payload": payload, "address": address, "backend": "nccl" if gpus else "gloo"},
        backend_config=_backend_config(),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=per_worker),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={
                "env_vars": {
                    "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                    "OMP_NUM_THREADS": threads,
                    "GOMP_SPINCOUNT": os.environ["GOMP_SPINCOUNT"],
                    "DS_ACCELERATOR": "cuda" if gpus else "cpu",
                }
            },
        ),
    )


def _backend_config() -> Any:
    """A Ray Train backend that tells each worker where rank 0 listens, and no more."""
    from ray.train.backend import Backend, BackendConfig

    class Rendezvous(Backend):
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

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(context.get_local_rank()))
    line = _Line(config["address"])
    import torch.distributed as dist

    dist.init_process_group(config["backend"], init_method="env://", rank=rank, world_size=world_size)
    result = config["fn"](config["payload"], RankContext(rank, world_size, line.emit, line.stop.is_set))
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        line.send({"result": result})
    line.close()


class _Line:
    """A worker's end of the socket: JSON lines out; `stop` or the end of the caller in."""

    def __init__(self, address: tuple[str, int, str]) -> None:
        host, port, token = address
        self.stop = threading.Event()
        self._closing = False
        self._lock = threading.Lock()
        self._socket = socket.create_connection((host, port), timeout=30)
        self._socket.settimeout(None)
        self.send({"token": token})
        threading.Thread(target=self._listen, name="life-line", daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError):
            while self._socket.recv(16):
                self.stop.set()
        if not self._closing:
            os._exit(1)  # the caller is gone: nobody would take the result, and the stage's lease has ended

    def emit(self, event: Event) -> None:
        self.send({"event": event})

    def send(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        self._closing = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)


class _Lines:
    """The caller's end: listens, takes workers that know the token, collects their messages."""

    def __init__(self) -> None:
        import ray

        self.received: queue.Queue[dict[str, Any]] = queue.Queue()
        self._token = secrets.token_hex(16)
        self._connections: list[socket.socket] = []
        self._stopped = False
        host = ray.util.get_node_ip_address()
        self._server = socket.create_server((host, 0))
        self.address = (host, self._server.getsockname()[1], self._token)
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._read, args=(connection,), name="events", daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError), connection.makefile("rb") as lines:
            first = lines.readline(256)
            if not secrets.compare_digest(str(json.loads(first).get("token")), self._token):
                connection.close()
                return
            self._connections.append(connection)
            if self._stopped:
                connection.sendall(b"stop")
            for line in lines:
                self.received.put(json.loads(line))

    def stop(self) -> None:
        """Tell the workers, now and those still to come, once."""
        if not self._stopped:
            self._stopped = True
            for connection in self._connections:
                with suppress(OSError):
                    connection.sendall(b"stop")

    def close(self) -> None:
        for connection in [self._server, *self._connections]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                connection.close()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cause(error: BaseException) -> BaseException:
    """The failure that a person should see, out of those of all workers.

    When one rank fails, the others' collectives break too: a lost peer is named only where nothing else is.
    """
    from ray.exceptions import OutOfMemoryError as RayOutOfMemory
    from ray.exceptions import RayActorError

    failures = [_unwrap(e) for e in getattr(error, "worker_failures", {}).values()] or [_unwrap(error)]
    text = " ".join(str(failure) for failure in [error, *failures])
    if any(isinstance(f, RayOutOfMemory) for f in failures) or "running low on memory" in text:
        return OutOfMemory("a worker was ended because its node ran out of memory")
    own = [f for f in failures if not isinstance(f, RayActorError) and not _is_lost_peer(f)]
    for failure in own:
        if "can't allocate memory" in str(failure) or "out of memory" in str(failure).lower():
            return OutOfMemory(str(failure).splitlines()[0])
    if own:
        return own[0]
    lost = next((f for f in failures if isinstance(f, RayActorError)), failures[0])
    return WorkerLost(f"a worker was lost: {str(lost).strip().splitlines()[0]}")


def _unwrap(error: BaseException) -> BaseException:
    for name in ("_base_exc", "base_exc", "cause", "controller_failure", "health_check_failure"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _unwrap(inner)
    return error


def _is_lost_peer(error: BaseException) -> bool:
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "connection was closed", "Broken pipe")
    return type(error).__name__.startswith("Dist") or any(sign in text for sign in signs)
