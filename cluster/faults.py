"""What went wrong outside the code: a worker or its node is gone, a rank hangs, memory ran out.

Errors come from torch, CUDA, Ray and the kernel, each with words of its own; here they are told apart, since what
is tried again depends on it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cluster.errors import NoRoom


class WorkerLost(RuntimeError):
    """A worker process or its node went away, or does not answer; trying again may help."""


class OutOfMemory(MemoryError):
    """Memory of the device or of the node ran out; a smaller micro-batch may help."""


_NO_MEMORY = (
    "out of memory",  # CUDA, HIP, XPU; NCCL; Ray's monitor
    "can't allocate memory",  # torch's allocator on CPUs
    "cannot allocate memory",  # the kernel
    "unable to allocate",  # numpy
    "std::bad_alloc",
    "alloc_failed",  # cuBLAS, cuDNN
    "running low on memory",  # Ray's monitor
)
_LATE = (
    "timed out waiting",  # gloo
    "collective operation timeout",  # NCCL's watchdog
)
_LOST_PEER = (
    "connection closed by peer",
    "connection reset by peer",
    "connection was closed",
    "broken pipe",
    *_LATE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for what torch, CUDA, numpy, Ray and the kernel raise when memory is short."""
    names = [kind.__name__ for kind in type(error).__mro__]
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(sign in text for sign in _NO_MEMORY)


def is_lost_peer(error: BaseException) -> bool:
    """True for what a rank raises because another one is gone or silent."""
    text = str(error).lower()
    return type(error).__name__.startswith("Dist") or any(sign in text for sign in _LOST_PEER)


def ran_out_of_time(text: str) -> bool:
    """True for the words of a collective that another rank did not take part in."""
    return any(sign in text.lower() for sign in _LATE)


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory, in this container or on this machine.

    A killed process cannot say why; a count that has grown meanwhile does.
    """
    files = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control", "/proc/vmstat")
    return sum(_counter(Path(file)) for file in files)


def _counter(path: Path) -> int:
    with suppress(OSError, ValueError):
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


def cause_of(error: BaseException) -> BaseException:
    """The failure of a Ray Train run that a person should see, out of those of all its workers.

    When one rank fails, the others' collectives break too: a lost peer is named only where nothing else is.
    """
    from ray.exceptions import RayActorError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    failures = [_unwrap(e) for e in getattr(error, "worker_failures", {}).values()] or [_unwrap(error)]
    short = next((f for f in [*failures, error] if is_out_of_memory(f) or _ended_for_memory(f)), None)
    if short is not None:
        return OutOfMemory(_first_line(short))
    if any(isinstance(f, WorkerGroupStartupTimeoutError) for f in failures):
        return NoRoom(
            "the Ray cluster has no room for the stage's workers, and none came while it waited",
            "add a node, or lower placement.workers or placement.cpus; the same command goes on from the checkpoint",
        )
    own = [f for f in failures if not isinstance(f, RayActorError) and not is_lost_peer(f)]
    if own:
        return own[0]
    lost = next((f for f in failures if isinstance(f, RayActorError)), failures[0])
    return WorkerLost(f"a worker was lost: {_first_line(lost)}")


def _ended_for_memory(error: BaseException) -> bool:
    """Ray's memory monitor ends an actor with an error like any other; only its words say why."""
    return "running low on memory" in str(error)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _unwrap(error: BaseException) -> BaseException:
    for name in ("_base_exc", "base_exc", "cause", "controller_failure", "health_check_failure"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _unwrap(inner)
    return error
