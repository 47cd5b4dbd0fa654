"""The parametric laws as data: each as a log-sum-exp of linear forms, its parameters as the papers name them.

`chinchilla`    L = E + A/N^α + B/D^β                              Hoffmann et al. 2022, equation 2
`over_training` the same with one exponent: L = E + (a·M^η + b·M^−η)·C^−η, M = D/N    Gadre et al. 2024, equation 4
`kaplan_N`      L = (N_c/N)^α_N                                    Kaplan et al. 2020, equation 1.1
`kaplan_D`      L = (D_c/D)^α_D                                    equation 1.2
`kaplan_C`      L = (C_c/C_min)^α_C                                equation 1.3
`kaplan_ND`     L = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D                equation 1.5
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tasks.scaling.newton import LogSumExp, Term
from tasks.scaling.points import Points
from tasks.scaling.starts import exponents, linear_coefficients, projected

Named = dict[str, np.ndarray]


@dataclass(frozen=True)
class Form:
    """One law, ready to be fitted to points."""

    name: str
    parameters: tuple[str, ...]
    model: LogSumExp
    starts: np.ndarray
    """[starts, dimensions of θ]"""
    tried: int
    """Starts that these were chosen from."""
    named: Callable[[np.ndarray], Named]
    """θ [batch, dimensions] → each parameter [batch], as the paper writes it, and what follows from them."""
    mask: Callable[[np.ndarray | None], np.ndarray] | None = None
    """Draws [batch, points] (None: every point once) → weights: where only a frontier of the points is fitted."""


def _centred(column: np.ndarray) -> tuple[np.ndarray, float]:
    logs = np.log(column)
    middle = float(logs.mean())
    return logs - middle, middle


def optimal_exponents(alpha: np.ndarray, beta: np.ndarray) -> Named:
    """N_opt ∝ C^exponent_N and D_opt ∝ C^exponent_D of E + A/N^α + B/D^β under C ∝ N·D."""
    return {"exponent_N": beta / (alpha + beta), "exponent_D": alpha / (alpha + beta)}


def chinchilla(points: Points) -> Form:
    x, x0 = _centred(points.params)
    y, y0 = _centred(points.tokens)
    target, one = np.log(points.loss), np.ones(len(points))
    model = LogSumExp(
        [
            Term((0, 3), np.column_stack([one, -x])),
            Term((1, 4), np.column_stack([one, -y])),
            Term((2,), one[:, None]),
        ],
        target,
        5,
        prefactors=(0, 1, 2),
    )

    def named(theta: np.ndarray) -> Named:
        a, b, e, alpha, beta = theta.T
        with np.errstate(over="ignore"):
            return {
                "E": np.exp(e),
                "A": np.exp(a + alpha * x0),
                "B": np.exp(b + beta * y0),
                "alpha": alpha,
                "beta": beta,
                **optimal_exponents(alpha, beta),
            }

    names = ("E", "A", "B", "alpha", "beta")
    return Form("chinchilla", names, model, projected(x, y, target), 68 * 68, named)


def over_training(points: Points) -> Form:
    """Chinchilla's law with α = β = 2η: over-training at a fixed ratio M shifts the line, not the slope."""
    x, x0 = _centred(points.params)
    y, y0 = _centred(points.tokens)
    target, one = np.log(points.loss), np.ones(len(points))
    model = LogSumExp(
        [
            Term((0, 3), np.column_stack([one, -x])),
            Term((1, 3), np.column_stack([one, -y])),
            Term((2,), one[:, None]),
        ],
        target,
        4,
        prefactors=(0, 1, 2),
    )
    grid = exponents(200)
    columns = (np.ones((len(grid), len(points))), np.exp(-np.outer(grid, x)), np.exp(-np.outer(grid, y)))
    found = linear_coefficients(columns, points.loss, np.ones_like(columns[0]))
    starts = np.column_stack([np.log(np.maximum(found, 1e-4 * points.loss.mean()))[:, [1, 2, 0]], grid])

    def named(theta: np.ndarray) -> Named:
        a, b, e, shared = theta.T
        eta, per = shared / 2, shared / 2 * np.log(points.flops_factor)  # N = (C/6M)^½, D = (C·M/6)^½, by 6·N·D
        with np.errstate(over="ignore"):
            return {
                "E": np.exp(e),
                "a": np.exp(a + shared * x0 + per),
                "b": np.exp(b + shared * y0 + per),
                "eta": eta,
            }

    return Form("over_training", ("E", "a", "b", "eta"), model, starts[::4], len(grid), named)


def frontier(column: np.ndarray, loss: np.ndarray) -> Callable[[np.ndarray | None], np.ndarray]:
    """Weights that leave the points no cheaper one of which is as good: of the draws, if there are any."""
    order = np.lexsort((loss, column))
    back = np.argsort(order)

    def mask(draws: np.ndarray | None) -> np.ndarray:
        weights = np.ones((1, len(loss))) if draws is None else draws
        ordered = np.where(weights[:, order] > 0, loss[order], np.inf)
        before = np.minimum.accumulate(ordered, axis=1)
        before = np.column_stack([np.full(len(ordered), np.inf), before[:, :-1]])
        return weights * (ordered < before)[:, back]

    return mask


def kaplan_single(points: Points, of: str) -> Form:
    """A pure power law in N, D or C through the frontier: what is best of all that is no larger."""
    column = {"N": points.params, "D": points.tokens, "C": points.flops}[of]
    x, x0 = _centred(column)
    target = np.log(points.loss)
    model = LogSumExp([Term((0, 1), np.column_stack([np.ones(len(x)), -x]))], target, 2)
    mask = frontier(column, points.loss)
    weights = mask(None)[0]
    design = np.column_stack([np.ones(len(x)), -x]) * weights[:, None]
    start, *_ = np.linalg.lstsq(design, target * weights, rcond=None)
    scale, exponent = f"{of}_c", f"alpha_{of}"

    def named(theta: np.ndarray) -> Named:
        k, alpha = theta.T
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            return {scale: np.exp(k / alpha + x0), exponent: alpha}

    return Form(f"kaplan_{of}", (scale, exponent), model, start[None], 1, named, mask)


def kaplan_joint(points: Points) -> Form:
    x, x0 = _centred(points.params)
    y, y0 = _centred(points.tokens)
    target, one = np.log(points.loss), np.ones(len(points))
    # θ = (k_N, k_D, α_N/α_D, α_D): α_D · LSE(k_N − α_N/α_D · ln N, k_D − ln D)
    terms = [Term((0, 2), np.column_stack([one, -x])), Term((1,), one[:, None], -y)]
    model = LogSumExp(terms, target, 4, scale=3, prefactors=(0, 1))
    s, u = (
        part.ravel() for part in np.meshgrid(np.geomspace(0.02, 1.0, 40), np.geomspace(0.1, 4.0, 40), indexing="ij")
    )
    middle = target.mean()
    columns = (np.exp(-np.outer(u, x)), np.exp(-np.repeat(y[None], len(u), 0)))
    lifted = np.exp((target - middle) / s[:, None])
    found = linear_coefficients(columns, lifted, np.ones_like(lifted))
    logs = np.log(np.maximum(found, 1e-6)) + middle / s[:, None]
    starts = np.column_stack([logs, u, s])
    order = np.argsort(model.objective(starts))
    spread = np.arange(0, len(u), 37)
    chosen = list(dict.fromkeys([*order[:32], *spread]))

    def named(theta: np.ndarray) -> Named:
        k_n, k_d, ratio, alpha_d = theta.T
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            return {
                "N_c": np.exp(k_n / ratio + x0),
                "D_c": np.exp(k_d + y0),
                "alpha_N": alpha_d * ratio,
                "alpha_D": alpha_d,
                "exponent_N": 1 / (1 + ratio),
                "exponent_D": ratio / (1 + ratio),
            }

    return Form("kaplan_ND", ("N_c", "D_c", "alpha_N", "alpha_D"), model, starts[chosen], len(u), named)
