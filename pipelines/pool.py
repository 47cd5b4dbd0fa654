"""Where stages run: as Ray tasks, or one after another in this process.

Both pools take jobs and give back outcomes and events through `wait`; neither tries again on its own
(`max_retries=0`): that is the executor's decision.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from cluster.aside import aside
from cluster.store import Store
from pipelines.events import TRAILING_SECONDS, EventLine
from pipelines.worker import Event, Job, execute, pack
from tasks.base import Runtime

Outcome = dict[str, Any]


class Pool(Protocol):
    slots: float
    """CPU cores that stages can be placed on."""
    gpus: float
    fixed: bool
    """Whether the cluster is all there is (False where an autoscaler may add nodes)."""

    def submit(self, job: Job) -> int: ...
    def wait(self, timeout: float) -> tuple[list[tuple[int, Outcome]], list[Event]]: ...
    def cancel(self, ticket: int, *, force: bool) -> None: ...
    def trailing(self) -> list[Event]: ...
    def close(self) -> None: ...


def demand(runtime: Runtime) -> tuple[float, float]:
    """CPU cores and GPUs that a stage occupies, all its workers together."""
    return runtime.workers * runtime.cpus, runtime.workers * runtime.gpus


class InlinePool:
    """Runs each job in this process when `wait` is called: for `memory://` stores and for debuggers."""

    slots = 1.0
    gpus = 0.0
    fixed = True

    def __init__(self, store: Store, on_events: Callable[[list[Event]], None]) -> None:
        self._store = store
        self._on_events = on_events
        self._jobs: deque[tuple[int, Job]] = deque()
        self._next = 0

    def submit(self, job: Job) -> int:
        self._next += 1
        self._jobs.append((self._next, job))
        return self._next

    def wait(self, timeout: float) -> tuple[list[tuple[int, Outcome]], list[Event]]:
        if not self._jobs:
            return [], []
        ticket, job = self._jobs.popleft()
        return [(ticket, execute(pack(job), self._on_events, capture=False, store=self._store))], []

    def cancel(self, ticket: int, *, force: bool) -> None:
        self._jobs = deque(item for item in self._jobs if item[0] != ticket)

    def trailing(self) -> list[Event]:
        return []

    def close(self) -> None:
        self._jobs.clear()


@contextlib.contextmanager
def ray_log(store: Store, folder: str) -> Iterator[None]:
    """What Ray says in this process meanwhile goes into `ray.log` of the run's folder; on a remote store at the end."""
    if store.local_root is not None:
        with aside(Path(store.local_root) / folder / "ray.log"):
            yield
        return
    with tempfile.TemporaryDirectory(prefix="triptych-") as temporary:
        path = Path(temporary) / "ray.log"
        try:
            with aside(path):
                yield
        finally:
            if path.is_file():
                with contextlib.suppress(Exception):  # a log that cannot be uploaded must not fail the run
                    name = f"{folder}/ray.log"
                    store.write_bytes(name, (store.read_bytes(name) or b"") + path.read_bytes())


def _stage(payload: bytes, hub: Any) -> Outcome:
    import ray

    from cluster.connect import see_own_gpus

    see_own_gpus()
    last: list[Any] = []

    def sink(events: list[Event]) -> None:
        if hub is not None:
            last[:] = [hub.push.remote(events)]

    outcome = execute(payload, sink)
    if last:  # or the driver may have the result, and ask for the last events, while they are still on their way
        ray.wait(last, timeout=TRAILING_SECONDS)
    return outcome


class RayPool:
    """Stages as Ray tasks, each with its resources; a stage of several workers holds none itself."""

    def __init__(self, *, fixed: bool) -> None:
        import ray

        from cluster.connect import resources

        self._ray = ray
        self._line = EventLine(joined=not fixed)
        self._remote = ray.remote(max_retries=0)(_stage)
        self._placed: dict[str, Any] = {}
        self._tickets: dict[Any, int] = {}
        self._refs: dict[int, Any] = {}
        self._next = 0
        found = resources()
        self.fixed = fixed
        self.slots = found.get("CPU", 0.0)
        self.gpus = found.get("GPU", 0.0)

    def submit(self, job: Job) -> int:
        ref = self._function(job).remote(pack(job), self._line.hub)
        self._next += 1
        self._tickets[ref] = self._next
        self._refs[self._next] = ref
        return self._next

    def _function(self, job: Job) -> Any:
        """The remote function with the resources of a stage; one of several workers holds none itself."""
        runtime = job.runtime
        several = runtime.workers > 1
        options: dict[str, Any] = {
            "name": job.task.__class__.__name__,
            "num_cpus": 0 if several else runtime.cpus,
            "num_gpus": 0 if several else runtime.gpus,
        }
        if runtime.memory_gb and not several:
            options["memory"] = int(runtime.memory_gb * 1e9)
        if runtime.resources and not several:
            options["resources"] = dict(runtime.resources)
        placed = repr(options)
        if placed not in self._placed:
            self._placed[placed] = self._remote.options(**options)
        return self._placed[placed]

    def wait(self, timeout: float) -> tuple[list[tuple[int, Outcome]], list[Event]]:
        call = self._line.call()
        refs = [*self._tickets, *([call] if call is not None else [])]
        if not refs:
            time.sleep(timeout)
            return [], []
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=timeout)
        if ready and len(refs) > 1:
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        outcomes: list[tuple[int, Outcome]] = []
        events: list[Event] = []
        for ref in ready:
            if ref == call:
                events.extend(self._line.take())
                continue
            ticket = self._tickets.pop(ref)
            del self._refs[ticket]
            outcomes.append((ticket, self._get(ref)))
        return outcomes, events

    def _get(self, ref: Any) -> Outcome:
        from ray import exceptions

        try:
            return self._ray.get(ref)
        except exceptions.TaskCancelledError:
            return _failed("cancelled", "TaskCancelledError", "cancelled")
        except exceptions.OutOfMemoryError as error:
            return _failed("memory", type(error).__name__, _first(error))
        except exceptions.RayTaskError as error:
            return _failed("bug", type(error).__name__, str(error))
        except exceptions.RayError as error:
            return _failed("worker", type(error).__name__, _first(error))

    def cancel(self, ticket: int, *, force: bool) -> None:
        if ticket in self._refs:
            self._ray.cancel(self._refs[ticket], force=force, recursive=True)

    def trailing(self) -> list[Event]:
        """Events that stages sent just before they ended."""
        return self._line.trailing()

    def close(self) -> None:
        self._line.close()


def _failed(kind: str, name: str, message: str) -> Outcome:
    return {"ok": False, "error": {"class": kind, "type": name, "message": message, "remedy": "", "traceback": ""}}


def _first(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
