"""Training curves: the points of one model along its compute, and loss interpolated on them.

A curve is what one run says at several budgets (`run` column), or, where runs make no curves, the runs of one model
size at several budgets: both give the loss of that size at any budget between. Interpolation is linear in the
logarithms and never extrapolates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tasks.scaling.points import Points

FEWEST = 3
"""Curves that make an envelope."""


class Curves(NamedTuple):
    """Curves on a common grid of budgets, sorted by model size."""

    log_n: np.ndarray
    """[curves]"""
    log_c: np.ndarray
    """[grid]"""
    loss: np.ndarray
    """[curves, grid]; inf where a curve does not reach"""
    log_d: np.ndarray
    """[curves, grid]: log tokens on the curve at that budget"""


def curves(points: Points, grid: int) -> Curves | None:
    """The curves of the points on `grid` budgets spaced evenly in log C; None where there are fewer than three."""
    _, size = np.unique(np.round(np.log(points.params), 4), return_inverse=True)
    found = _orders(points, size)
    if points.run is not None:
        _, run = np.unique(points.run, return_inverse=True)
        # a name that several sizes share (a seed, a group) is not one curve; one a row is no curve
        own = _orders(points, run * (size.max() + 1) + size)
        found = own if len(own) >= FEWEST else found
    if len(found) < FEWEST:
        return None
    low = sorted(float(np.log(points.flops[o[0]])) for o in found)
    high = sorted(float(np.log(points.flops[o[-1]])) for o in found)
    first, last = low[2], high[-3]  # budgets that three curves may reach
    if not last > first:
        return None
    log_c = np.linspace(first, last, grid)
    found.sort(key=lambda o: float(np.median(points.params[o])))
    loss, log_d = np.full((len(found), grid), np.inf), np.full((len(found), grid), np.nan)
    for row, order in enumerate(found):
        x = np.log(points.flops[order])
        inside = (log_c >= x[0] - 1e-9) & (log_c <= x[-1] + 1e-9)
        loss[row, inside] = np.exp(np.interp(log_c[inside], x, np.log(points.loss[order])))
        log_d[row, inside] = np.interp(log_c[inside], x, np.log(points.tokens[order]))
    log_n = np.array([float(np.log(np.median(points.params[o]))) for o in found])
    return Curves(log_n, log_c, loss, log_d)


def _orders(points: Points, group: np.ndarray) -> list[np.ndarray]:
    """Indices of each group's points by their budgets, of groups that have two or more."""
    found = []
    for number in np.unique(group):
        chosen = np.flatnonzero(group == number)
        # several runs of one budget: the best one is the curve
        order = chosen[np.lexsort((points.loss[chosen], points.flops[chosen]))]
        log_c = np.log(points.flops[order])
        order = order[np.concatenate([[True], np.diff(log_c) > 1e-3])]
        if len(order) >= 2:
            found.append(order)
    return found
