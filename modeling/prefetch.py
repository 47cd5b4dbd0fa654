"""The next batch, made in a thread while a step runs: nobody waits for data, and the batches are the same."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from modeling.step import Batch


class Prefetch:
    """`next_batch` a step ahead: asked for step n, it gives that batch and begins with that of n + 1.

    Batches are functions of the step, so it does not matter when they are made; an error is raised when its step is
    asked for. A context: leaving it waits for the thread.

    Args:
        steps: of the run; no batch after the last one is made. 0: nobody knows yet (a budget in minutes).
    """

    def __init__(self, next_batch: Callable[[int], Batch], steps: int) -> None:
        self._make, self._steps = next_batch, steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="next-batch")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def __call__(self, step: int) -> Batch:
        if self._ahead is None or self._ahead[0] != step:  # the first one, or a step that does not follow
            self._ahead = (step, self._thread.submit(self._make, step))
        batch = self._ahead[1].result()
        more = not self._steps or step + 1 < self._steps
        self._ahead = (step + 1, self._thread.submit(self._make, step + 1)) if more else None
        return batch

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
