"""Where the time of a step goes: waiting for data, forward, backward, optimizer, communication, the rest.

Parts follow one another (`mark`), and time inside a collective is taken out of the part that it interrupts: so they sum
to the step. Communication is all that this rank spends in collectives, waiting for slower ranks included: our own sums
and DeepSpeed's reductions and gathers.

On a GPU the host runs ahead of the device, so parts are times between CUDA events. They are placed in measured steps
only, and reading them waits for the device once. Collectives that DeepSpeed runs beside the computation, on streams of
their own, take time of the step only where it waits for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

PARTS = ("data", "forward", "backward", "optimizer", "communication", "other")
COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "all_gather",
    "all_gather_base",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
)
"""Of DeepSpeed's backend; one that calls another counts once."""


class StepClock:
    """Times one step after another; see the module's docstring."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._on = False
        self._inside = 0
        self._now = "other"
        self._marks: list[tuple[str, Any]] = []

    def begin(self, measure: bool = True) -> None:
        """A step begins, with the wait for its data."""
        self._on, self._inside, self._marks = measure, 0, []
        self.mark("data")

    def mark(self, part: str) -> None:
        """One of PARTS begins, and what went on ends."""
        self._now = part
        self._place(part)

    def seconds(self) -> dict[str, float]:
        """The step ends: seconds of each of PARTS; empty where it was not measured. On a GPU this waits for it."""
        if not self._on:
            return {}
        self._place("end")
        if self._cuda:
            self._marks[-1][1].synchronize()
        total = dict.fromkeys(PARTS, 0.0)
        for (part, began), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            total[part] += began.elapsed_time(ended) / 1000 if self._cuda else ended - began
        self._on = False
        return total

    def _place(self, part: str) -> None:
        if not self._on:
            return
        if not self._cuda:
            self._marks.append((part, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((part, event))

    def _counts(self) -> bool:
        """Whether a collective that is called now holds up the step."""
        return self._on and (not self._cuda or torch.cuda.current_stream() == torch.cuda.default_stream())

    def in_collective(self, call: Callable[[], Any]) -> Any:
        """Make a collective's call, or wait for one; a call inside of another counts with it."""
        if self._inside or not self._counts():
            return call()
        self._inside += 1
        self._place("communication")
        try:
            return call()
        finally:
            self._place(self._now)
            self._inside -= 1

    @contextmanager
    def timing_deepspeed(self) -> Iterator[None]:
        """DeepSpeed's collectives count as communication, until the context is left."""
        from deepspeed.comm import comm

        backend = comm.cdb  # what all of `deepspeed.comm` calls; its methods, on this instance alone
        names = [name for name in COLLECTIVES if hasattr(backend, name)]
        for name in names:
            setattr(backend, name, self._timed(getattr(backend, name)))
        try:
            yield
        finally:
            for name in names:
                delattr(backend, name)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            work = self.in_collective(lambda: function(*args, **kwargs))
            return _TimedWork(self, work) if isinstance(work, dist.Work) else work

        return call


class _TimedWork:
    """A collective under way, whose `wait` counts as communication."""

    def __init__(self, clock: StepClock, work: dist.Work) -> None:
        self._clock, self._work = clock, work

    def wait(self, *args: Any) -> Any:
        return self._clock.in_collective(lambda: self._work.wait(*args))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
