"""Where the fits of E + A/N^α + B/D^β start: a dense grid of exponents, the rest solved for (variable projection).

Given α and β the law is linear in E, A and B. So of the usual five-dimensional grid of starts (Hoffmann et al. 2022:
4,500 of a, b, e, α, β) two dimensions are enough: for each of 68 × 68 pairs of exponents the best non-negative
coefficients come from a 3 × 3 system, by relative residuals; the best are reweighted by the robust loss. These, the
valleys of what is left, and a coarse grid go to Newton (`tasks.scaling.newton`).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from tasks.scaling.newton import DELTA

SIDE = 68
"""Exponents a side: 68 × 68 = 4,624 starts."""
LOWEST, HIGHEST = 0.01, 2.5
ROBUST = 400
"""Starts whose coefficients are solved for by the robust loss."""
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
    return _non_negative(gram, right, weights.sum(1))


def _non_negative(gram: np.ndarray, right: np.ndarray, total: np.ndarray) -> np.ndarray:
    """The best feasible set of coefficients for each system; `total` is the weighted sum of squares of the target."""
    starts, size = right.shape
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


def projected(log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray, side: int = SIDE) -> np.ndarray:
    """θ = (a, b, e, α, β) of the starts worth following, best first; logarithms are centred by the caller.

    Args:
        log_n, log_d, log_loss: [points].
        side: exponents a side of the grid.
    """
    grid, loss = exponents(side), np.exp(log_loss)
    by_n, by_d = np.exp(-np.outer(grid, log_n)), np.exp(-np.outer(grid, log_d))
    first, second = np.repeat(np.arange(side), side), np.tile(np.arange(side), side)
    # least squares of relative residuals: sums over a grid of products are products of matrices
    w = 1 / loss**2
    gram = np.empty((side * side, 3, 3))
    gram[:, 0, 0] = w.sum()
    gram[:, 0, 1] = gram[:, 1, 0] = (by_n @ w)[first]
    gram[:, 0, 2] = gram[:, 2, 0] = (by_d @ w)[second]
    gram[:, 1, 1], gram[:, 2, 2] = (by_n**2 @ w)[first], (by_d**2 @ w)[second]
    gram[:, 1, 2] = gram[:, 2, 1] = ((by_n * w) @ by_d.T).ravel()
    right = np.column_stack(
        [np.full(side * side, (w * loss).sum()), (by_n @ (w * loss))[first], (by_d @ (w * loss))[second]]
    )
    found = _non_negative(gram, right, np.full(side * side, float(len(loss))))
    floor = 1e-4 * loss.mean()

    def residuals(coefficients: np.ndarray, rows: np.ndarray) -> np.ndarray:
        value = coefficients[:, 1:2] * by_n[first[rows]]
        value += coefficients[:, 2:] * by_d[second[rows]]
        value += coefficients[:, :1]
        np.maximum(value, 1e-12, out=value)
        return np.abs(np.log(value) - log_loss)

    every = np.arange(side * side)
    score = _huber(residuals(found, every))
    surface = score.reshape(side, side)
    edge = np.pad(surface, 1, constant_values=np.inf)
    around = [edge[1 + i : 1 + i + side, 1 + j : 1 + j + side] for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    valleys = np.flatnonzero((surface[None] <= np.stack(around)).all(0).ravel())
    coarse = (np.arange(3, side, 11)[:, None] * side + np.arange(3, side, 11)[None]).ravel()
    # the weights that make squares of the robust loss, wider at first, where least squares already does well
    rows = np.unique(np.concatenate([np.argsort(score)[:ROBUST], valleys, coarse]))
    coefficients = found[rows]
    columns = (np.ones((len(rows), len(loss))), by_n[first[rows]], by_d[second[rows]])
    for wide in (10 * DELTA, 3 * DELTA):
        weights = wide / np.maximum(residuals(coefficients, rows), wide)
        coefficients = linear_coefficients(columns, loss, weights)
    order = np.argsort(_huber(residuals(coefficients, rows)))
    taken = list(dict.fromkeys([*order[:POLISHED], *np.flatnonzero(np.isin(rows, [*valleys, *coarse]))]))
    logs = np.log(np.maximum(coefficients[taken], floor))
    chosen = rows[taken]
    return np.column_stack([logs[:, 1], logs[:, 2], logs[:, 0], grid[first[chosen]], grid[second[chosen]]])


def _huber(residual: np.ndarray) -> np.ndarray:
    psi = np.minimum(residual, DELTA)
    return (psi * (residual - psi / 2)).sum(1)
