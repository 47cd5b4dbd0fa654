"""Where the fits of E + A/N^α + B/D^β start: a dense grid of exponents, the rest solved for (variable projection).

Given α and β the law is linear in E, A and B. So of the usual five-dimensional grid of starts (Hoffmann et al. 2022:
4,500 of a, b, e, α, β) two dimensions are enough: for each of 68 × 68 pairs of exponents the best non-negative
coefficients come from a 3 × 3 system, by relative residuals, then reweighted by the robust loss. The valleys of what is
left, and the whole coarse grid, go to Newton (`tasks.scaling.newton`).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from tasks.scaling.newton import DELTA

SIDE = 68
"""Exponents a side: 68 × 68 = 4,624 starts."""
LOWEST, HIGHEST = 0.01, 2.5
POLISHED = 48
"""Of the starts by rank; with the valleys and the coarse grid about a hundred are followed to their end."""


def exponents(side: int = SIDE) -> np.ndarray:
    return np.geomspace(LOWEST, HIGHEST, side)


def linear_coefficients(columns: tuple[np.ndarray, ...], target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Non-negative least squares of a target on few columns, relative residuals, for many designs at once.

    Every set of columns that may be the positive ones is solved for, and the best feasible one taken.

    Args:
        columns: at most three arrays, [starts, points].
        target: [points] or [starts, points], positive.
        weights: [starts, points] of the squared relative residuals.

    Returns:
        coefficients [starts, columns].
    """
    size, starts = len(columns), len(columns[0])
    scaled = weights / target**2
    gram, right = np.empty((starts, size, size)), np.empty((starts, size))
    for i in range(size):
        left = scaled * columns[i]
        right[:, i] = np.einsum("sn,sn->s", left, np.broadcast_to(target, left.shape))
        for j in range(i, size):
            gram[:, i, j] = gram[:, j, i] = np.einsum("sn,sn->s", left, columns[j])
    total = weights.sum(1)
    best, out = np.full(starts, np.inf), np.zeros((starts, size))
    for count in range(size, 0, -1):
        for chosen in map(list, combinations(range(size), count)):
            part = gram[:, chosen][:, :, chosen]
            part = part + 1e-14 * np.trace(part, axis1=1, axis2=2)[:, None, None] * np.eye(count)
            solved = np.linalg.solve(part, right[:, chosen][..., None])[..., 0]
            error = total - np.einsum("sc,sc->s", solved, right[:, chosen])
            good = (solved > 0).all(1) & (error < best * (1 - 1e-12))
            best[good] = error[good]
            out[good] = 0
            out[np.ix_(good, chosen)] = solved[good]
    return out


def projected(
    log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray, side: int = SIDE, rounds: int = 2
) -> np.ndarray:
    """θ = (a, b, e, α, β) of the starts worth following, best first; logarithms are centred by the caller.

    Args:
        log_n, log_d, log_loss: [points].
        side: exponents a side of the grid.
        rounds: reweightings towards the robust loss.
    """
    grid = exponents(side)
    loss = np.exp(log_loss)
    alpha, beta = (part.ravel() for part in np.meshgrid(grid, grid, indexing="ij"))
    by_n, by_d = np.exp(-np.outer(grid, log_n)), np.exp(-np.outer(grid, log_d))
    first, second = np.repeat(by_n, side, axis=0), np.tile(by_d, (side, 1))
    one = weights = np.ones_like(first)
    floor = 1e-4 * loss.mean()
    for turn in range(rounds + 1):
        found = linear_coefficients((one, first, second), loss, weights)
        value = found[:, :1] + found[:, 1:2] * first
        value += found[:, 2:] * second
        residual = np.abs(np.log(np.maximum(value, 1e-12)) - log_loss)
        if turn < rounds:
            # the weight that makes a square of a Huber loss, wider at first
            wide = 10 * DELTA if turn == 0 else 3 * DELTA
            weights = wide / np.maximum(residual, wide)
    score = np.where(residual <= DELTA, residual**2 / 2, DELTA * (residual - DELTA / 2)).sum(1)
    coefficients = np.log(np.maximum(found, floor))
    theta = np.column_stack([coefficients[:, 1], coefficients[:, 2], coefficients[:, 0], alpha, beta])
    order = np.argsort(score)[:POLISHED]
    surface = score.reshape(side, side)
    edge = np.pad(surface, 1, constant_values=np.inf)
    around = [edge[1 + i : 1 + i + side, 1 + j : 1 + j + side] for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    valleys = np.flatnonzero((surface[None] <= np.stack(around)).all(0).ravel())
    coarse = (np.arange(3, side, 11)[:, None] * side + np.arange(3, side, 11)[None]).ravel()
    chosen = list(dict.fromkeys([*order, *valleys[np.argsort(score[valleys])][:24], *coarse]))
    return theta[chosen]
