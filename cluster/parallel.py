"""Ordered parallel maps over Ray: the same results in the same order on any number of workers.

A task's `run` uses these for its inner work. Inside Ray (the process is connected, or is itself a Ray
worker) items become Ray tasks; otherwise they run one after another in this process. Results come in
the order of the items, so what is built from them does not depend on the number of workers or on who
finished first. In flight is bounded, so an iterable larger than memory can be mapped.

A lost worker costs its item alone: the item runs again, at most `LOST_WORKER_RETRIES` times. An
exception of `fn` is never retried; it surfaces as itself at the item's place in the order.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

LOST_WORKER_RETRIES = 2
BUFFERED_PER_ITEM = 4  # results an item of `flat_map_ordered` may hold back before its worker waits

log = logging.getLogger(__name__)


def in_ray() -> bool:
    """Whether this process is connected to a Ray cluster (as a driver or as a worker)."""
    import sys

    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized())


def default_in_flight(cpus: float = 1) -> int:
    """How many items fill the cluster: one per free set of `cpus`, and one more so that none idles."""
    if not in_ray():
        return 1
    import ray

    return int(ray.cluster_resources().get("CPU", 1) / max(cpus, 0.01)) + 1


def map_ordered(
    fn: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    cpus: float = 1,
    max_in_flight: int | None = None,
    here: bool = False,
) -> Generator[Result, None, None]:
    """Yield `fn(item)` for each item, in order.

    Args:
        fn: a picklable function; pure, since it may run twice when a worker is lost.
        items: consumed lazily, never more than `max_in_flight` ahead of the results.
        cpus: CPU cores reserved per item.
        max_in_flight: items at work or waiting to be read; the cluster's size by default.
        here: keep the work on this machine, for items that are local paths.

    Closing the generator, or an exception in the consumer, cancels what is at work.
    """
    if not in_ray():
        for item in items:
            yield fn(item)
        return
    yield from _Flight(fn, cpus, max_in_flight, here, many=False).results(items)


def flat_map_ordered(
    fn: Callable[[Item], Iterable[Result]],
    items: Iterable[Item],
    *,
    cpus: float = 1,
    max_in_flight: int | None = None,
    here: bool = False,
) -> Generator[Result, None, None]:
    """Yield every result of `fn(item)`, an iterable, for each item, in order; arguments as `map_ordered`.

    Results stream: a worker that is `BUFFERED_PER_ITEM` results ahead of the reader waits.
    """
    if not in_ray():
        for item in items:
            yield from fn(item)
        return
    yield from _Flight(fn, cpus, max_in_flight, here, many=True).results(items)


def _call(fn: Callable[[Any], Any], item: Any) -> Any:
    return fn(item)


def _call_many(fn: Callable[[Any], Iterable[Any]], item: Any) -> Iterator[Any]:
    for each in fn(item):  # noqa: UP028 - Ray sends into its generators, which `yield from` would hand to plain iterators
        yield each


class _Flight:
    """The items at work, oldest first."""

    def __init__(self, fn: Any, cpus: float, max_in_flight: int | None, here: bool, many: bool) -> None:
        import ray

        self.cpus, self.many = cpus, many
        self.limit = max(1, max_in_flight or default_in_flight(cpus))
        self.options: dict[str, Any] = {"max_retries": 0, "name": getattr(fn, "__name__", "item")}
        if many:
            self.options |= {"num_returns": "streaming", "_generator_backpressure_num_objects": BUFFERED_PER_ITEM}
        if here:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            node = ray.get_runtime_context().get_node_id()
            self.options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        self.fn = ray.put(fn)  # sent once, however many items there are
        self.remote = ray.remote(_call_many if many else _call)
        self.at_work: deque[tuple[Any, Any]] = deque()

    def start(self, item: Any, cpus: float) -> Any:
        return self.remote.options(num_cpus=cpus, **self.options).remote(self.fn, item)

    def results(self, items: Iterable[Any]) -> Iterator[Any]:
        import ray

        waiting = iter(items)
        try:
            while True:
                while len(self.at_work) < self.limit:
                    try:
                        item = next(waiting)
                    except StopIteration:
                        break
                    self.at_work.append((item, self.start(item, self.cpus)))
                if not self.at_work:
                    return
                yield from self.read_oldest()
                self.at_work.popleft()
        except ray.exceptions.RayTaskError as error:
            if isinstance(cause := getattr(error, "cause", None), Exception):
                raise cause from None
            raise
        finally:
            for _, ref in self.at_work:
                with suppress(Exception):
                    ray.cancel(ref, force=True)

    def read_oldest(self) -> Iterator[Any]:
        """The results of the oldest item; when its worker is lost, run it again and skip what was read."""
        import ray
        from ray import exceptions as gone

        lost = (
            gone.WorkerCrashedError,
            gone.NodeDiedError,
            gone.LocalRayletDiedError,
            gone.ObjectLostError,
            gone.OutOfMemoryError,
        )
        item, ref = self.at_work[0]
        read = 0
        for attempt in range(LOST_WORKER_RETRIES + 1):
            try:
                if not self.many:
                    value = ray.get(ref)
                    yield value
                    return
                for number, each in enumerate(ref):
                    value = ray.get(each)
                    if number >= read:
                        read += 1
                        yield value
                return
            except lost as error:
                if attempt == LOST_WORKER_RETRIES:
                    raise
                log.warning("a worker was lost (%s); running its item again", type(error).__name__)
                # No CPU is asked for: the others may hold them all while they wait for this item to be read.
                ref = self.start(item, 0)
                self.at_work[0] = (item, ref)
