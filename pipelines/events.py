"""The way of events (progress, metrics, decisions) from stages at work to the driver: a small actor on its node.

Live figures are worth having, but not worth a run: where the actor cannot be reached, that is said once, as an event
of its own (`notice`), and the run goes on without them.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from pipelines.worker import Event

DRAIN_SECONDS = 30.0
"""How long one call waits for events."""
MOST_RESTARTS = 5
"""Of the actor's process, should it be killed; what it held is lost."""
PATIENCE_SECONDS = 120.0
"""How long it may take to start again; a busy machine needs tens of seconds for a process."""
PAUSE_SECONDS = 1.0
"""Before the next call after one that failed."""
TRAILING_SECONDS = 10.0
"""How long the last events of a run are waited for."""


class _Hub:
    """The actor."""

    def __init__(self) -> None:
        import asyncio

        self._events: list[Event] = []
        self._ready = asyncio.Event()

    async def push(self, events: list[Event]) -> None:
        self._events.extend(events)
        self._ready.set()

    async def drain(self, timeout: float) -> list[Event]:
        import asyncio

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ready.wait(), timeout)
        self._ready.clear()
        events, self._events = self._events, []
        return events


class EventLine:
    """The driver's end of it.

    Args:
        joined: Ray is a cluster that this process has joined.

    Attributes:
        hub: the actor's handle, for stages to push to; None once it has been given up.
    """

    def __init__(self, *, joined: bool = False) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray = ray
        # On the driver's node: events must not end with another one.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "max_concurrency": 1000, "max_restarts": MOST_RESTARTS, "scheduling_strategy": here}
        self.hub: Any = ray.remote(_Hub).options(**options).remote()
        self._joined = joined
        self._call: Any = None
        self._failing_since = 0.0
        self._not_before = 0.0

    def call(self) -> Any:
        """The open call, to be waited for with others and then taken; None where there is none at the moment."""
        if self._call is None and self.hub is not None and time.monotonic() >= self._not_before:
            self._call = self.hub.drain.remote(DRAIN_SECONDS)
        return self._call

    def take(self) -> list[Event]:
        """What the open call, which is ready, brought."""
        from ray import exceptions

        call, self._call = self._call, None
        try:
            events = self._ray.get(call)
        except exceptions.RayError as error:
            return self._failed(error)
        self._failing_since = 0.0
        return events

    def _failed(self, error: Exception) -> list[Event]:
        from ray import exceptions

        now = time.monotonic()
        self._failing_since, self._not_before = self._failing_since or now, now + PAUSE_SECONDS
        if isinstance(error, exceptions.ActorUnavailableError) and now - self._failing_since < PATIENCE_SECONDS:
            return []  # it starts again
        self.close()
        return [notice(error, self._joined)]

    def trailing(self) -> list[Event]:
        """Events that stages sent just before they ended."""
        if self.hub is None:
            return []
        if self._call is None:
            self._call = self.hub.drain.remote(0.0)
        else:
            self.hub.push.remote([])  # wakes the open call
        ready, _ = self._ray.wait([self._call], timeout=TRAILING_SECONDS)
        return self.take() if ready else []

    def close(self) -> None:
        hub, self.hub, self._call = self.hub, None, None
        if hub is not None:
            with contextlib.suppress(Exception):
                self._ray.kill(hub)


def notice(error: Exception, joined: bool) -> Event:
    """What is said about an actor that is given up, and what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    remedy = "the stages themselves go on; their curves are whole in metrics.jsonl and in the report when they end"
    if joined and os.environ.get("RAY_AUTH_MODE") == "token":
        remedy += "; if the cluster runs without tokens, set RAY_AUTH_MODE=disabled and start again"
    message = f"no live progress, metrics or decisions: Ray's actor that carries them is gone ({reason})"
    return {"type": "notice", "message": message, "remedy": remedy}
