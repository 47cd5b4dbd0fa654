"""Which ready stage goes next, and whether there is room for it. Nothing here can move a key.

The longest way to the end goes first. While stages take a moment only, they may queue in Ray beyond the
cores (its scheduler is faster than the driver's loop). Longer ones wait in the driver, where a more
urgent one can go before them; and a stage of several workers, which needs its cores free at once, finds
them kept free when its inputs come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from cluster.errors import BadConfig
from pipelines.plan import CACHED, Step
from pipelines.pool import Pool, demand
from pipelines.sweep import PRUNED
from tasks.base import Runtime

QUICK_SECONDS = 0.5
QUICK_ROW = 6
"""So many stages in a row that took less: the rest is queued ahead of the cores."""


class Placement:
    """Order and admission for the steps of a plan on a pool.

    Args:
        state_of: a stage's present state.
        ranks: of the stages of a sweep: the lowest first, after all others.

    Raises:
        BadConfig: a stage asks for more than the pool can ever give.
    """

    def __init__(
        self, steps: dict[str, Step], pool: Pool, state_of: Callable[[str], str], ranks: Mapping[str, int] | None = None
    ) -> None:
        self._ranks = ranks or {}
        self._steps = steps
        self._pool = pool
        self._state_of = state_of
        self._took: deque[float] = deque(maxlen=QUICK_ROW)
        self._weights = _weights(steps)
        self._groups = [name for name, step in steps.items() if step.node.task.runtime.workers > 1]
        for name, step in steps.items():
            if step.state not in (CACHED, PRUNED) and pool.fixed and pool.slots > 1:
                _check(name, step.node.task.runtime, pool)

    def took(self, seconds: float) -> None:
        """Note how long a stage took."""
        self._took.append(seconds)

    def sort(self, names: list[str]) -> None:
        """The most urgent first."""
        names.sort(key=lambda name: (self._ranks.get(name, -1), -self._weights[name]))

    def room(self, running: Iterable[Runtime]) -> Room:
        """The room beside what runs now."""
        quick = len(self._took) == QUICK_ROW and max(self._took) < QUICK_SECONDS
        return Room(self._pool, list(running), quick, self._cores_to_keep)

    def _cores_to_keep(self) -> float:
        """Cores of the groups that start as soon as what runs now has ended; 0 for none."""
        cores = 0.0
        for name in self._groups:
            node = self._steps[name].node
            parents = [self._state_of(p) for p in node.parents if p in self._steps]
            soon = "running" in parents and all(state in ("done", "cached", "running") for state in parents)
            if soon and self._state_of(name) == "pending":
                cores += demand(node.task.runtime)[0]
        return cores


class Room:
    """What is free while a round of stages is placed."""

    def __init__(self, pool: Pool, running: list[Runtime], quick: bool, cores_to_keep: Callable[[], float]) -> None:
        self._pool = pool
        self._limit = pool.slots * 4 + 4 if quick else pool.slots
        self._cores_to_keep = cores_to_keep
        self._busy = bool(running)
        self._group = any(runtime.workers > 1 for runtime in running)
        self._cores = sum(demand(runtime)[0] for runtime in running)
        self._gpus = sum(demand(runtime)[1] for runtime in running)

    def full_for(self, runtime: Runtime) -> bool:
        """No room: and none may overtake, or a large stage would starve."""
        if not self._pool.fixed or not self._busy:
            return False
        cores, gpus = demand(runtime)
        self._group = self._group or runtime.workers > 1
        limit = self._pool.slots if self._group else self._limit
        return self._cores + cores > limit or bool(gpus and self._gpus + gpus > self._pool.gpus)

    def kept_from(self, runtime: Runtime) -> bool:
        """There is room, but a group that is about to start will need it."""
        if not self._pool.fixed or runtime.workers > 1:
            return False
        keep = self._cores_to_keep()
        return bool(keep) and self._cores + demand(runtime)[0] + keep > self._pool.slots

    def take(self, runtime: Runtime) -> None:
        """A stage was placed."""
        cores, gpus = demand(runtime)
        self._cores += cores
        self._gpus += gpus
        self._busy = True


def _weights(steps: dict[str, Step]) -> dict[str, float]:
    """Seconds (from the last time, or a guess) from the start of a stage to the end of the run through it."""
    weights: dict[str, float] = {}
    below: dict[str, float] = {}
    for name, step in reversed(steps.items()):
        own = step.expected_seconds or (60.0 if step.node.task.runtime.workers > 1 else 5.0)
        weights[name] = own + below.get(name, 0.0)
        for parent in step.node.parents:
            below[parent] = max(below.get(parent, 0.0), weights[name])
    return weights


def _check(name: str, runtime: Runtime, pool: Pool) -> None:
    cores, gpus = demand(runtime)
    if cores > pool.slots:
        raise BadConfig(
            f"stage {name} asks for {cores:g} CPU cores, the Ray cluster has {pool.slots:g}",
            "lower placement.workers or placement.cpus",
        )
    if gpus > pool.gpus:
        raise BadConfig(
            f"stage {name} asks for {gpus:g} GPUs, the Ray cluster has {pool.gpus:g}",
            "lower placement.workers or placement.gpus",
        )
