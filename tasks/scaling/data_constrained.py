"""Repeated data (Muennighoff et al. 2023, equation 5): what tokens seen again, and parameters beyond them, are worth.

    L = E + A/N'^α + B/D'^β
    D' = U_D + U_D·R_D*·(1 − exp(−R_D/R_D*)),   R_D = D/U_D − 1      (repetitions of U_D unique tokens)
    N' = U_N + U_N·R_N*·(1 − exp(−R_N/R_N*)),   R_N = N/U_N − 1      (U_N: the optimal size for U_D unique tokens)

As in the paper E, A, B, α, β come from runs that repeat nothing, and R_D*, R_N* from the others: two numbers, by damped
Gauss-Newton steps on the reweighted Huber loss, for all resamples at once.
"""

from __future__ import annotations

import numpy as np

from cluster.errors import BadData
from tasks.scaling import forms
from tasks.scaling.diagnostics import diagnose
from tasks.scaling.estimate import Fit, NotIdentified, check_design, intervals, resamples
from tasks.scaling.newton import DELTA, minimise, refit
from tasks.scaling.points import Points

ONCE = 1.01
"""Epochs up to which a run repeats nothing."""
LARGEST = 1e4
"""R* beyond which repetition costs nothing that the data could show."""


def fit_data_constrained(points: Points, *, bootstrap: int = 1000, seed: int = 0, delta: float = DELTA) -> Fit:
    """Fit the seven parameters.

    Raises:
        BadData: no column of unique tokens.
        NotIdentified: no run repeats data, too few do not, or the loss does not show what repetition costs.
    """
    if points.unique_tokens is None:
        raise BadData(
            "the data-constrained form needs the unique tokens of each run", "name their column: --unique-tokens"
        )
    if (points.unique_tokens > points.tokens * ONCE).any():
        bad = np.flatnonzero(points.unique_tokens > points.tokens * ONCE)
        raise BadData(f"unique tokens exceed the tokens that were seen ({points.named(bad)})")
    epochs = points.tokens / points.unique_tokens
    once, again = np.flatnonzero(epochs <= ONCE), np.flatnonzero(epochs > ONCE)
    if len(again) < 4:
        raise NotIdentified(f"{len(again)} runs repeat data: R_D* cannot be told", "measure runs of several epochs")
    base_points = points.take(once)
    check_design(base_points, 5)
    base = forms.chinchilla(base_points)
    ends = minimise(base.model, base.starts, delta=delta)
    best = ends.theta[ends.objective.argmin()]
    thetas = best[None]
    weights = np.ones((1, len(points)))
    if bootstrap:
        # single-epoch runs and repeated ones are drawn each among themselves
        drawn = np.zeros((bootstrap, len(points)))
        drawn[:, once] = resamples(len(once), bootstrap, seed)
        drawn[:, again] = resamples(len(again), bootstrap, seed + 1)
        more = refit(base.model, best, drawn[:, once], delta=delta)
        thetas, weights = np.concatenate([thetas, more.theta]), np.concatenate([weights, drawn])
    law = {name: value[:, None] for name, value in base.named(thetas).items()}
    repeated = points.take(again)
    warnings: list[str] = []
    excess = np.maximum(repeated.params / _optimal_params(law, repeated)[0] - 1, 0)
    free_n = bool((excess > 0.05).sum() >= 4)
    if not free_n:
        warnings.append(
            "R_N* is not identified: hardly a model is larger than its unique tokens call for; it is left out"
        )
    R, objective = _search(law, repeated, weights[:, again], free_n, delta)
    r_d, r_n = np.exp(R[0])
    if r_d >= LARGEST * 0.99:
        raise NotIdentified(
            "R_D* is not identified: repeated tokens look as good as new ones up to the epochs that were run",
            "measure more epochs",
        )
    values = {name: float(law[name][0, 0]) for name in ("E", "A", "B", "alpha", "beta")}
    values["R_D"] = float(r_d)
    draws = {name: law[name][1:, 0] for name in values if name in law}
    draws["R_D"] = np.exp(R[1:, 0])
    if free_n:
        values["R_N"] = float(r_n)
        draws["R_N"] = np.exp(R[1:, 1])
    se, ci = intervals(draws)
    if ci.get("R_D", (0.0, 0.0))[1] >= LARGEST * 0.9:
        warnings.append("R_D* has no upper limit in the data: measure more epochs")
    if values["E"] < 1e-3 * float(points.loss.min()):
        warnings.append("E is not identified: its estimate is zero")
    first = {name: value[:1] for name, value in law.items()}
    predicted = np.empty(len(points))
    predicted[once] = np.exp(base.model.predict(best[None])[0])
    predicted[again] = np.exp(_log_loss(first, repeated, R[:1], free_n)[0][0])
    jacobian = np.zeros((len(points), 5 + 1 + free_n))
    jacobian[once, :5] = base.model.jacobian(best)
    jacobian[again, 5:] = np.stack(_log_loss(first, repeated, R[:1], free_n)[1], -1)[0]
    return Fit(
        "data_constrained",
        values,
        {},
        float(objective[0] + ends.objective.min()),
        se,
        ci,
        warnings,
        {
            "form": "data_constrained",
            "points": len(points),
            "repeated": len(again),
            "largest_epochs": float(epochs.max()),
            "bootstrap": bootstrap,
            **diagnose(points, predicted, jacobian),
        },
        draws,
        predicted,
    )


def _optimal_params(law: dict[str, np.ndarray], points: Points) -> np.ndarray:
    """U_N [batch, points]: N_opt of the budget at which U_D unique tokens are optimal."""
    a, b = law["alpha"], law["beta"]
    # at the optimum α·A/N^α = β·B/D^β
    log_n = (np.log(a * law["A"]) - np.log(b * law["B"]) + b * np.log(points.unique_tokens)) / a
    return np.exp(np.minimum(log_n, 60.0))


def _effective(ratio: np.ndarray, log_r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log(1 + R*·(1 − exp(−R/R*))) and its derivative by log R*."""
    r = np.exp(log_r)
    u = ratio / r
    fade = -np.expm1(-u)
    inner = 1 + r * fade
    return np.log(inner), r * (fade - u * np.exp(-u)) / inner


def _log_loss(
    law: dict[str, np.ndarray], points: Points, R: np.ndarray, free_n: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """log L [batch, points] and its derivatives by log R_D* and, if it is free, log R_N*."""
    epochs = points.tokens / points.unique_tokens - 1
    gain_d, slope_d = _effective(epochs, R[:, :1])
    log_d = np.log(points.unique_tokens) + gain_d
    log_n = np.log(points.params)[None]
    slope_n = np.zeros_like(slope_d)
    if free_n:
        base = np.minimum(points.params, _optimal_params(law, points))
        gain_n, slope_n = _effective(points.params / base - 1, R[:, 1:])
        log_n = np.log(base) + gain_n
    first = law["A"] * np.exp(-law["alpha"] * log_n)
    second = law["B"] * np.exp(-law["beta"] * log_d)
    total = law["E"] + first + second
    by = [-law["beta"] * second / total * slope_d]
    if free_n:
        by.append(-law["alpha"] * first / total * slope_n)
    return np.log(total), by


def _search(
    law: dict[str, np.ndarray], points: Points, weights: np.ndarray, free_n: bool, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """log R_D*, log R_N* [batch, 2] and the objective [batch]."""
    target = np.log(points.loss)

    def huber(residual: np.ndarray, w: np.ndarray) -> np.ndarray:
        psi = np.clip(residual, -delta, delta)
        return (w * psi * (residual - psi / 2)).sum(-1)

    grid = np.log(np.geomspace(0.2, LARGEST, 60))
    pairs = np.array([(d, n) for d in grid for n in (grid if free_n else grid[:1])])
    first = {name: value[:1] for name, value in law.items()}
    value, _ = _log_loss(first, points, pairs, free_n)
    start = pairs[huber(target - value, weights[:1]).argmin()]
    R = np.repeat(start[None], len(weights), 0)
    best = huber(target - _log_loss(law, points, R, free_n)[0], weights)
    damping = np.full(len(weights), 1e-2)
    for turn in range(200):
        # a majorising weight that starts wide, so that first steps see all residuals and not their signs alone
        wide = max(delta, 0.03 * 0.9**turn)
        value, by = _log_loss(law, points, R, free_n)
        residual = target - value
        w = weights * delta / np.maximum(np.abs(residual), wide)
        J = np.stack(by, -1)
        g = np.einsum("bn,bnp->bp", w * residual, J)
        H = np.einsum("bn,bnp,bnq->bpq", w, J, J)
        diagonal = np.einsum("bpp->bp", H)
        H = (
            H
            + np.eye(len(by))
            * ((damping[:, None] * diagonal + 1e-12 * diagonal.max(1, keepdims=True) + 1e-300)[:, None])
        )
        step = np.clip(np.linalg.solve(H, g[..., None])[..., 0], -1, 1)
        trial = R.copy()
        trial[:, : len(by)] = np.clip(R[:, : len(by)] + step, np.log(0.01), np.log(LARGEST))
        new = huber(target - _log_loss(law, points, trial, free_n)[0], weights)
        better = new < best
        R = np.where(better[:, None], trial, R)
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-8, 1e8)
        gained = np.where(better, best - new, 0)
        best = np.minimum(best, new)
        if wide == delta and (gained <= 1e-12 * best).all() and (damping > 1e3).all():
            break
    return R, best
