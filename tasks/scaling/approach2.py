"""Approach 2 (Hoffmann et al. 2022, section 3.2): a parabola in log N for each IsoFLOP line, then power laws.

A parabola is only the first terms of what the loss is: far from the minimum it is wrong, the more so since the two
sides rise differently, and a grid that is wide or off centre pulls the vertex along. So each parabola is fitted to the
models within `WINDOW` times its minimum, where five are left of them. A vertex outside of the models that were run, or
a parabola that opens downwards, is no minimum: that line is left out, with a warning.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.scaling.approach1 import line, line_fit
from tasks.scaling.curves import curves
from tasks.scaling.estimate import Fit, NotIdentified, check_design, resamples
from tasks.scaling.points import Points

SPREAD = 0.1
"""Largest difference of log C within one IsoFLOP line."""
WINDOW = 4.0
"""A parabola is fitted to models within this factor of its minimum."""
FEWEST = 5
"""Points that a parabola keeps, however far they are."""
FEWEST_SIZES = 4
"""Model sizes of an IsoFLOP line: three make any parabola exact."""
SLICES = 12
"""IsoFLOP lines that are read from training curves where the points make none themselves."""


def fit_approach_2(points: Points, *, bootstrap: int = 4000, seed: int = 0) -> Fit:
    """N_opt ∝ C^exponent_N and D_opt ∝ C^exponent_D through the parabolas' minima.

    Raises:
        NotIdentified: params and tokens move together, or fewer than three IsoFLOP lines have a minimum.
    """
    check_design(points, 3)
    groups, sliced = isoflops(points)
    source = points
    if sliced is not None:
        source = sliced
    if len(groups) < 3:
        raise NotIdentified(
            f"{len(groups)} IsoFLOP lines of four model sizes or more (budgets within {100 * SPREAD:.0f} %); "
            "a power law needs three",
            "measure several model sizes at each of three or more budgets",
        )
    counts = np.zeros((0, len(source)))
    if bootstrap:
        # each line's models are drawn among themselves: the budgets are the experiment's plan, not chance
        counts = np.zeros((bootstrap, len(source)))
        for number, group in enumerate(groups):
            counts[:, group] = resamples(len(group), bootstrap, seed + number)
    all_rows = np.concatenate([np.ones((1, len(source))), counts])
    vertex, lowest, kept, windows = zip(*(_parabola(source, g, all_rows) for g in groups), strict=True)
    log_c = np.array([np.log(source.flops[g]).mean() for g in groups])
    log_n = np.stack(vertex, 1)
    log_d = np.stack([_tokens_at(source, g, v) for g, v in zip(groups, vertex, strict=True)], 1)
    weights = np.stack(kept, 1).astype(float)
    warnings = []
    if (wide := float(np.median([np.ptp(np.log(source.flops[g])) for g in groups]))) > 0.02:
        warnings.append(f"budgets within an IsoFLOP line differ by {100 * wide:.0f} % (median): the lines are rough")
    if sliced is not None:
        warnings.append(f"no IsoFLOP lines among the points: {len(groups)} are interpolated from training curves")
    if out := [f"{np.exp(c):.3g}" for c, w in zip(log_c, weights[0], strict=True) if not w]:
        warnings.append(
            f"{len(out)} of {len(groups)} IsoFLOP lines have no minimum among the models that were run: left out "
            f"(FLOPs {', '.join(out)})"
        )
    if weights[0].sum() < 3:
        raise NotIdentified(
            f"{int(weights[0].sum())} of {len(groups)} IsoFLOP lines have their minimum between the models that were "
            "run; a power law needs three",
            "measure smaller and larger models at each budget",
        )
    enough = weights.sum(1) >= 3
    log_n, log_d = np.nan_to_num(log_n), np.nan_to_num(log_d)
    lines = _two_lines(log_c, log_n[:1], log_d[:1], weights[:1])
    draws = (
        _two_lines(log_c, log_n[1:][enough[1:]], log_d[1:][enough[1:]], weights[1:][enough[1:]]) if bootstrap else {}
    )
    used = weights[0] > 0
    rows = [
        {
            "flops": float(np.exp(log_c[i])),
            "params": float(np.exp(log_n[0, i])),
            "tokens": float(np.exp(log_d[0, i])),
            "loss": float(lowest[i][0]),
            "models": len(groups[i]),
            "fitted": int(windows[i].sum()),
        }
        for i in np.flatnonzero(used)
    ]
    return line_fit(
        "approach_2", lines, draws, log_c[used], log_n[0, used], rows, warnings, bootstrap,
        more={"isoflops": len(groups), "points": int(sum(len(g) for g in groups))},
    )  # fmt: skip


def _two_lines(log_c: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    slope_n, at_n = line(log_c, log_n, weights)
    slope_d, at_d = line(log_c, log_d, weights)
    return {"exponent_N": slope_n, "exponent_D": slope_d, "log_N_0": at_n, "log_D_0": at_d}


def isoflops(points: Points) -> tuple[list[np.ndarray], Points | None]:
    """Indices of each IsoFLOP line with four model sizes or more; of slices of the curves where there are no lines.

    Returns:
        The lines, and what they index where it is not `points`: slices as points of their own.
    """
    groups = _lines_of(points)
    if len(groups) >= 3:
        return groups, None
    found = curves(points, SLICES)
    if found is None:
        return groups, None
    row, column = np.nonzero(np.isfinite(found.loss))
    sliced = Points(
        params=np.exp(found.log_n[row]),
        tokens=np.exp(found.log_d[row, column]),
        flops=np.exp(found.log_c[column]),
        loss=found.loss[row, column],
        lines=np.zeros(len(row), int),
    )
    slices = _lines_of(sliced)
    return (slices, sliced) if len(slices) > len(groups) else (groups, None)


def _lines_of(points: Points) -> list[np.ndarray]:
    log_c = np.log(points.flops)
    order = np.argsort(log_c, kind="stable")
    out, start = [], 0
    for i in range(1, len(order) + 1):
        if i == len(order) or log_c[order[i]] - log_c[order[start]] > SPREAD:
            group = order[start:i]
            if len(np.unique(np.round(np.log(points.params[group]), 3))) >= FEWEST_SIZES:
                out.append(group[np.argsort(points.params[group], kind="stable")])
            start = i
    return out


def window(log_n: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Which of a line's models its parabola is fitted to."""
    centre = log_n[loss.argmin()]
    for _ in range(4):
        near = np.abs(log_n - centre)
        inside = near <= np.log(WINDOW)
        if inside.sum() < FEWEST:
            inside = near <= np.sort(near)[min(FEWEST, len(near)) - 1] + 1e-9
        c2, c1, _ = np.polyfit(log_n[inside] - centre, loss[inside], 2)
        if c2 <= 0:
            break
        moved = float(np.clip(centre - c1 / (2 * c2), log_n.min(), log_n.max()))
        if abs(moved - centre) < 1e-6:
            break
        centre = moved
    return inside


def _parabola(points: Points, group: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Vertex (log N), loss there and whether it is a minimum, for each row of counts; and the window."""
    log_n, loss = np.log(points.params[group]), points.loss[group]
    inside = window(log_n, loss)
    x, y = log_n[inside], loss[inside]
    middle = x.mean()
    w = counts[:, group[inside]]
    powers = np.stack([(x - middle) ** k for k in range(5)], 1)
    moments = w @ powers
    right = w @ (powers[:, :3] * y[:, None])
    gram = np.stack([moments[:, k : k + 3] for k in range(3)], 1)
    distinct = ((w @ _same(x)) > 0).sum(1)
    gram[distinct < 3] = np.eye(3)  # no parabola there
    c = np.linalg.solve(gram, right[..., None])[..., 0]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        at = -c[:, 1] / (2 * c[:, 2])
        lowest = c[:, 0] + c[:, 1] * at / 2
    ok = (distinct >= 3) & (c[:, 2] > 0) & (at > x.min() - middle) & (at < x.max() - middle)
    return np.where(ok, at + middle, np.nan), lowest, ok, inside


def _same(x: np.ndarray) -> np.ndarray:
    """[points, model sizes]: which size a point has."""
    _, size = np.unique(np.round(x, 3), return_inverse=True)
    return np.eye(size.max() + 1)[size]


def _tokens_at(points: Points, group: np.ndarray, log_n: np.ndarray) -> np.ndarray:
    """log D on a line at given log N: a straight line in the logarithms, of slope −1 where C = 6·N·D.

    Budgets of a line may differ a little (`SPREAD`): each model's tokens are those it has at the line's.
    """
    log_c = np.log(points.flops[group])
    x, y = np.log(points.params[group]), np.log(points.tokens[group]) + log_c.mean() - log_c
    order = np.argsort(x, kind="stable")
    return np.interp(log_n, x[order], y[order])


def parabolas(points: Points) -> list[dict[str, Any]]:
    """For pictures: each line's points, which of them its parabola holds, and the parabola."""
    groups, sliced = isoflops(points)
    source = points if sliced is None else sliced
    out = []
    for group in groups:
        x, y = np.log(source.params[group]), source.loss[group]
        inside = window(x, y)
        centre = x[inside].mean()
        fitted = np.polyfit(x[inside] - centre, y[inside], 2)
        curve = np.linspace(x[inside].min(), x[inside].max(), 80)
        out.append(
            {
                "flops": float(np.exp(np.log(source.flops[group]).mean())),
                "params": source.params[group],
                "loss": y,
                "inside": inside,
                "curve_params": np.exp(curve),
                "curve_loss": np.polyval(fitted, curve - centre),
            }
        )
    return out
