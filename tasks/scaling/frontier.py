"""The efficient frontier E + K·C^−γ: the loss of the compute-optimal model of a budget, and where two of them cross."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Frontier(NamedTuple):
    """Numbers, or arrays of one entry a draw."""

    floor: Any
    """E, the irreducible loss."""
    log_k: Any
    gamma: Any

    def loss(self, flops: Any) -> Any:
        with np.errstate(over="ignore", invalid="ignore"):
            return self.floor + np.exp(self.log_k - self.gamma * np.log(flops))

    def compute_for(self, loss: Any) -> Any:
        """FLOPs at which the optimal model reaches a loss; inf where none does, nan where that is not known."""
        left = np.asarray(loss - self.floor, dtype=float)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found = np.exp((self.log_k - np.log(left)) / self.gamma)
        return np.where(left > 0, found, np.where(np.isnan(left), np.nan, np.inf))

    def arrays(self) -> Frontier:
        """Of one draw each where they are numbers."""
        return Frontier(*(np.atleast_1d(np.asarray(part, dtype=float)) for part in self))

    def take(self, chosen: Any) -> Frontier:
        """Some of the draws."""
        return Frontier(*(part[chosen] for part in self))


def crossings(a: Frontier, b: Frontier, grid: np.ndarray, *, a_first: bool) -> np.ndarray:
    """Budgets at which two frontiers cross in one direction.

    The derivative of their difference by log C has one zero at most, so they cross twice at most: once in each
    direction.

    Args:
        a, b: of one entry a draw, finite.
        grid: [budgets] of log C, ascending; two crossings within one cell are not seen.
        a_first: the crossing below which `a` is lower; else that below which `b` is.

    Returns:
        [draws] FLOPs; inf where the crossing would lie above the grid, 0 below it.
    """
    one, other = (Frontier(*(part[:, None] for part in f)) for f in (a, b))

    def is_before(log_c: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            at = [f.floor + np.exp(f.log_k - f.gamma * log_c) for f in (one, other)]
        lower: np.ndarray = (at[0] < at[1]) == a_first
        return lower

    before = is_before(grid[None])
    turns = before[:, :-1] & ~before[:, 1:]
    at = turns.argmax(1)
    low, high = grid[at], grid[at + 1]
    for _ in range(50):  # halves of a cell: far below the spacing of floats
        middle = (low + high) / 2
        still = is_before(middle[:, None])[:, 0]
        low, high = np.where(still, middle, low), np.where(still, high, middle)
    return np.where(turns.any(1), np.exp(low), np.where(before[:, 0], np.inf, 0.0))
