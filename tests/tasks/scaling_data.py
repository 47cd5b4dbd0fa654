"""Synthetic measurements of a law that is known."""

from __future__ import annotations

import numpy as np

from tasks.scaling.points import Points, points_of

TRUE = {"E": 1.8, "A": 480.0, "B": 2085.0, "alpha": 0.35, "beta": 0.366}
EXPONENT_N = TRUE["beta"] / (TRUE["alpha"] + TRUE["beta"])


def law(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return TRUE["E"] + TRUE["A"] / params ** TRUE["alpha"] + TRUE["B"] / tokens ** TRUE["beta"]


def optimal_params(flops: np.ndarray) -> np.ndarray:
    total = TRUE["alpha"] + TRUE["beta"]
    g = (TRUE["alpha"] * TRUE["A"] / (TRUE["beta"] * TRUE["B"])) ** (1 / total)
    return g * (flops / 6) ** (TRUE["beta"] / total)


def scatter(count: int, seed: int, noise: float = 0.005) -> Points:
    """Models of any size on any tokens; `noise` is of log loss."""
    rng = np.random.default_rng(seed)
    params = np.exp(rng.uniform(np.log(4e7), np.log(1e10), count))
    tokens = np.exp(rng.uniform(np.log(1e9), np.log(3e11), count))
    return points_of(law(params, tokens) * np.exp(noise * rng.standard_normal(count)), params=params, tokens=tokens)


def isoflops(seed: int = 0, noise: float = 0.002, *, budgets: int = 9, sizes: int = 9, wide: float = 5.0) -> Points:
    """The same sizes at every budget that they suit, as sweeps have it: sizes are a geometric grid."""
    rng = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(6e18, 3e21, budgets), sizes)
    params = optimal_params(flops) * np.tile(np.geomspace(1 / wide, wide, sizes), budgets)
    tokens = flops / (6 * params)
    loss = law(params, tokens) * np.exp(noise * rng.standard_normal(len(flops)))
    return points_of(loss, params=params, tokens=tokens, flops=flops)
