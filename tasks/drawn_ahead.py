"""Batches of consecutive steps, drawn in one go and handed out one by one.

What a numpy call costs besides its work is as much as the work itself where a batch is small. A sample depends on
(seed, epoch, index) alone, so batches are the same however many of them are drawn at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Batch = dict[str, np.ndarray]
BLOCK_TOKENS = 1 << 15
"""Of the batches drawn at once, about: their arrays still fit into a core's cache."""
MOST_STEPS = 64


class DrawnAhead:
    """`batch(step)`: the batch of a step, from a block of several where batches are small.

    Args:
        draw: positions int64 [B] of the stream → a batch, all of its arrays [B, …], no row depending on another.
        positions: step → the positions of its rows.
        row_tokens: of a row.
        steps: of the run: none is drawn beyond. 0: nobody knows yet.
    """

    def __init__(
        self, draw: Callable[[np.ndarray], Batch], positions: Callable[[int], range], row_tokens: int, steps: int
    ) -> None:
        self._draw, self._positions, self._row_tokens, self._steps = draw, positions, row_tokens, steps
        self._block: Batch = {}
        self._rows: dict[int, slice] = {}
        """Rows of the block, by step."""

    def __call__(self, step: int) -> Batch:
        if step not in self._rows:
            self._draw_from(step)
        rows = self._rows[step]
        return {name: array[rows] for name, array in self._block.items()}

    def _draw_from(self, step: int) -> None:
        parts, self._rows, total = [], dict[int, slice](), 0
        last = min(step + MOST_STEPS, self._steps if self._steps > step else step + MOST_STEPS)
        for number in range(step, last):
            own = self._positions(number)
            if parts and (total + len(own)) * self._row_tokens > BLOCK_TOKENS:
                break
            self._rows[number] = slice(total, total + len(own))
            parts.append(np.arange(own.start, own.stop, dtype=np.int64))
            total += len(own)
        self._block = self._draw(np.concatenate(parts))
