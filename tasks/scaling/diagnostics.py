"""What the residuals of a fit say: their size, what they still depend on, and which points hold the fit."""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.scaling.points import Points

SHOWN = 5
OUTLIER = 5.0
"""Robust standard deviations from which a point is called an outlier."""


def diagnose(points: Points, predicted: np.ndarray, jacobian: np.ndarray) -> dict[str, Any]:
    """Residuals (log measured − log predicted) and leverage.

    Args:
        points: those that were fitted.
        predicted: [points] loss.
        jacobian: [points, parameters] of log loss: its hat matrix's diagonal is the leverage.

    Returns:
        `residuals`: rms, mad (1.4826 · median of absolutes), largest, r2 of log loss, and `trend`: the t value of the
        slope against log N, log D and log C, and of the square of log C; beyond ±3 the form misses something.
        `outliers` and `leverage`: points by line, the worst first; a mean leverage is parameters / points.
    """
    residual = np.log(points.loss) - np.log(predicted)
    spread = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
    log_loss = np.log(points.loss)
    total = float(((log_loss - log_loss.mean()) ** 2).sum())
    logs = {"log_N": np.log(points.params), "log_D": np.log(points.tokens), "log_C": np.log(points.flops)}
    trend = {name: _slope_t(column, residual) for name, column in logs.items()}
    centred = logs["log_C"] - logs["log_C"].mean()
    trend["log_C_squared"] = _slope_t(centred**2, residual)
    leverage = _leverage(jacobian)
    scaled = residual / max(spread, 1e-12)
    far = [i for i in np.argsort(-np.abs(scaled)) if abs(scaled[i]) > OUTLIER and spread > 1e-9]
    heavy = np.argsort(-leverage)[:SHOWN]
    return {
        "residuals": {
            "rms": float(np.sqrt((residual**2).mean())),
            "mad": spread,
            "largest": float(np.abs(residual).max()),
            "r2": 1 - float((residual**2).sum()) / total if total > 0 else 0.0,
            "trend_t": trend,
        },
        "outliers": [_row(points, i, residual=float(residual[i]), deviations=float(scaled[i])) for i in far[:20]],
        "leverage": [
            _row(points, i, leverage=float(leverage[i]), times_mean=float(leverage[i] / max(leverage.mean(), 1e-12)))
            for i in heavy
        ],
    }


def _row(points: Points, i: int, **more: float) -> dict[str, Any]:
    return {
        "line": int(points.lines[i]),
        "params": float(points.params[i]),
        "tokens": float(points.tokens[i]),
        "loss": float(points.loss[i]),
        **more,
    }


def _leverage(jacobian: np.ndarray) -> np.ndarray:
    scale = np.linalg.norm(jacobian, axis=0)
    kept = scale > 1e-9 * scale.max()
    q, _ = np.linalg.qr(jacobian[:, kept] / scale[kept])
    return (q**2).sum(1)


def _slope_t(x: np.ndarray, y: np.ndarray) -> float:
    """t of the slope of a straight line; 0 where x or y does not vary, or three points are not there."""
    x, y = x - x.mean(), y - y.mean()
    if len(x) < 4 or not (x @ x) > 1e-12 or not (y @ y) > 0:
        return 0.0
    slope = (x @ y) / (x @ x)
    left = y - slope * x
    return float(slope / np.sqrt(max(left @ left, 1e-300) / (len(x) - 2) / (x @ x)))
