"""Approach 1 (Hoffmann et al. 2022, section 3.1): the envelope of the training curves, then power laws.

At each of many budgets the model whose curve is lowest is the optimal one; N_opt and D_opt are straight lines in
log C. A minimum at the smallest or largest model that was run at a budget only says that the optimum lies beyond, and
would bend the line towards the models that happen to be there: such budgets are left out.

Where the points make no curves (each model size once), budgets are bins of equal width in log C, and within a bin,
whose points differ in budget, losses are compared after the trend of loss with budget is taken off.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.scaling.curves import Curves, curves
from tasks.scaling.estimate import Fit, NotIdentified, check_design, intervals, resamples
from tasks.scaling.points import Points

GRID = 300
"""Budgets at which the envelope is read; the paper has 1,500, of curves that are dense in steps."""
BATCH = 200


def fit_approach_1(points: Points, *, bootstrap: int = 4000, seed: int = 0) -> Fit:
    """N_opt ∝ C^exponent_N and D_opt ∝ C^exponent_D through the envelope's minima.

    Raises:
        NotIdentified: params and tokens move together, or fewer than three budgets have a minimum between the models
            that were run.
    """
    check_design(points, 3)
    found = curves(points, GRID)
    if found is None:
        return _fit_bins(points, bootstrap, seed)
    all_curves = np.ones((1, len(found.log_n)))
    chosen, inner = _envelope(found, all_curves)
    used = np.flatnonzero(inner[0])
    models = len(np.unique(chosen[0, used]))
    if len(used) < 3 or models < 3:
        raise NotIdentified(
            f"the envelope of {len(found.log_n)} curves has {models} model sizes between the smallest and the largest "
            "of their budgets; a line needs three",
            "measure more model sizes at each budget, smaller and larger ones",
        )
    log_n, log_d = found.log_n[chosen[0]], found.log_d[chosen[0], np.arange(GRID)]
    weights = inner.astype(float)
    params = _lines(found.log_c, log_n[None], np.nan_to_num(log_d)[None], weights)
    draws: dict[str, np.ndarray] = {}
    if bootstrap:
        counts = resamples(len(found.log_n), bootstrap, seed)
        parts = []
        for start in range(0, bootstrap, BATCH):
            part = counts[start : start + BATCH]
            best, ok = _envelope(found, part)
            enough = ok.sum(1) >= 3
            best, ok = best[enough], ok[enough].astype(float)
            d = np.nan_to_num(found.log_d[best, np.arange(GRID)])
            parts.append(_lines(found.log_c, found.log_n[best], d, ok))
        draws = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    warnings = []
    if models < 6:
        warnings.append(f"the envelope consists of {models} model sizes: its steps are coarse, prefer approach 2 or 3")
    left = GRID - len(used)
    if left > GRID // 10:
        warnings.append(f"{left} of {GRID} budgets have their minimum at an edge of the models that were run: left out")
    lowest = found.loss.min(0)
    rows = [
        {"flops": float(np.exp(found.log_c[i])), "params": float(np.exp(log_n[i])), "tokens": float(np.exp(log_d[i])),
         "loss": float(lowest[i])}
        for i in used[:: max(1, len(used) // 40)]
    ]  # fmt: skip
    return line_fit(
        "approach_1", params, draws, found.log_c[used], log_n[used], rows, warnings, bootstrap,
        more={"curves": len(found.log_n), "model_sizes": models},
    )  # fmt: skip


def _envelope(found: Curves, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest curve at each budget, and whether it lies between others. [batch, grid] each."""
    loss = np.where(counts[:, :, None] > 0, found.loss[None], np.inf)
    covered = np.isfinite(loss)
    best = loss.argmin(1)
    first = covered.argmax(1)
    last = covered.shape[1] - 1 - covered[:, ::-1].argmax(1)
    # another size, not only another run of the edge's
    inner = (found.log_n[best] > found.log_n[first] + 1e-3) & (found.log_n[best] < found.log_n[last] - 1e-3)
    return best, inner & (covered.sum(1) >= 3)


def _lines(log_c: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Weighted straight lines of log N and log D on log C, for a batch."""
    slope_n, at_n = line(log_c, log_n, weights)
    slope_d, at_d = line(log_c, log_d, weights)
    return {"exponent_N": slope_n, "exponent_D": slope_d, "log_N_0": at_n, "log_D_0": at_d}


def line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept (at x = 0) of weighted least squares. x [grid] or [batch, grid]; others [batch, grid]."""
    x = np.broadcast_to(x, y.shape)
    total = weights.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        mx, my = (weights * x).sum(1, keepdims=True) / total, (weights * y).sum(1, keepdims=True) / total
        slope = (weights * (x - mx) * (y - my)).sum(1) / (weights * (x - mx) ** 2).sum(1)
        return slope, my[:, 0] - slope * mx[:, 0]


def line_fit(
    name: str,
    lines: dict[str, np.ndarray],
    draws: dict[str, np.ndarray],
    log_c: np.ndarray,
    log_n: np.ndarray,
    rows: list[dict[str, Any]],
    warnings: list[str],
    bootstrap: int,
    more: dict[str, Any],
) -> Fit:
    """The common end of approaches 1 and 2: N_opt = k_N · C^exponent_N, D_opt = k_D · C^exponent_D."""

    def named(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            "exponent_N": values["exponent_N"],
            "exponent_D": values["exponent_D"],
            "k_N": np.exp(values["log_N_0"]),
            "k_D": np.exp(values["log_D_0"]),
        }

    at = {key: float(value[0]) for key, value in named(lines).items()}
    residual = log_n - (lines["log_N_0"][0] + at["exponent_N"] * log_c)
    drawn = named(draws) if draws else {}
    se, ci = intervals(drawn)
    if bootstrap and (usable := len(drawn.get("exponent_N", ()))) < bootstrap / 2:
        told = "the intervals are of those alone" if ci else "there are no intervals"
        warnings.append(f"{usable} of {bootstrap} resamples have three budgets with a minimum: {told}")
    total = ((log_n - log_n.mean()) ** 2).sum()
    if "exponent_N" in ci and ci["exponent_N"][1] - ci["exponent_N"][0] > 0.5:
        low, high = ci["exponent_N"]
        warnings.append(f"exponent_N is hardly identified: 95 % interval {low:.2f} to {high:.2f}")
    return Fit(
        name,
        {key: at[key] for key in ("k_N", "k_D")},
        {key: at[key] for key in ("exponent_N", "exponent_D")},
        float((residual**2).sum()),
        se,
        ci,
        warnings,
        {
            **more,
            "bootstrap": bootstrap,
            "minima": rows,
            "residuals": {
                "rms": float(np.sqrt((residual**2).mean())),
                "largest": float(np.abs(residual).max()),
                "r2": float(1 - (residual**2).sum() / total) if total > 0 else 0.0,
            },
        },
        drawn,
    )


def _fit_bins(points: Points, bootstrap: int, seed: int) -> Fit:
    log_c, log_n, log_d = np.log(points.flops), np.log(points.params), np.log(points.tokens)
    count = int(np.clip(len(points) // 8, 4, 20))
    edges = np.linspace(log_c.min(), log_c.max() + 1e-9, count + 1)
    where = np.digitize(log_c, edges) - 1
    middle = log_c - log_c.mean()
    trend = np.polyval(np.polyfit(middle, np.log(points.loss), 2), middle)
    excess = np.log(points.loss) - trend
    members = [np.flatnonzero(where == b) for b in range(count)]

    def minima(draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[bins] index of the lowest point, and whether models on both sides of it were run."""
        best, ok = np.zeros(count, int), np.zeros(count, bool)
        for b, inside in enumerate(members):
            inside = inside[draw[inside] > 0]
            if len(inside) < 4:
                continue
            best[b] = inside[excess[inside].argmin()]
            sizes = log_n[inside]
            ok[b] = sizes.min() < log_n[best[b]] - 1e-3 and log_n[best[b]] + 1e-3 < sizes.max()
        return best, ok

    best, ok = minima(np.ones(len(points)))
    if ok.sum() < 3:
        raise NotIdentified(
            f"{int(ok.sum())} of {count} bins of budget have a best model between smaller and larger ones; "
            "a line needs three",
            "measure models at several budgets each (training curves), or on IsoFLOP lines",
        )
    weights = ok.astype(float)[None]
    lines = _lines(log_c[best][None], log_n[best][None], log_d[best][None], weights)
    draws: dict[str, np.ndarray] = {}
    if bootstrap:
        found = [minima(draw) for draw in resamples(len(points), min(bootstrap, 1000), seed)]
        found = [(b, o) for b, o in found if o.sum() >= 3]
        if found:
            index, on = np.stack([b for b, _ in found]), np.stack([o for _, o in found]).astype(float)
            draws = _lines(log_c[index], log_n[index], log_d[index], on)
    chosen = best[ok]
    rows = [
        {"flops": float(points.flops[i]), "params": float(points.params[i]), "tokens": float(points.tokens[i]),
         "loss": float(points.loss[i])}
        for i in chosen
    ]  # fmt: skip
    warnings = [
        "no training curves (neither a run nor a model size at two budgets, three times): the envelope is read from "
        f"{count} bins of budget, which is coarse"
    ]
    return line_fit(
        "approach_1", lines, draws, log_c[chosen], log_n[chosen], rows, warnings, min(bootstrap, 1000),
        more={"curves": 0, "bins": count},
    )  # fmt: skip
