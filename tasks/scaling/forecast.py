"""The loss of a run beyond a sweep, by two forms, weighted by how well each has foretold the sweep's own last line.

A form that fits all points may still bend the wrong way beyond them: E + A/N^α + B/D^β puts its floor where the data
end, Kaplan's L(N, D) has none. Which is nearer at this scale is asked of the data: each is fitted without the largest
budget and foretells it, and its weight is the inverse of its root mean square log error there. That is half way
between equal weights and the inverse squares of Bates and Granger (1969, doi:10.1057/jors.1969.103), which believe a
handful of points too much: what a form gets right on one line it need not on the next (docs/log.md). The forecast is
the weighted geometric mean; its interval is that of the forms' bootstrap draws, mixed by weight, so that it also
holds what the forms disagree on. Only points of the sweep are looked at, so what is foretold next is no hindsight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cluster.errors import UserError
from tasks.scaling.newton import DELTA
from tasks.scaling.points import Points

Surface = Callable[[Mapping[str, Any], Any, Any], Any]
"""(parameters, N, D) → loss; parameters may be arrays of draws."""
LAST_LINE = 0.5
"""Points above this share of the largest compute are held out: one line, where budgets grow by more than two."""
FEWEST_DRAWS = 20
"""With fewer finite ones there is no interval."""
LEAST_ERROR = 1e-4
"""A held-out log error below this counts as this: no form is so good that another one is not to be heard."""


def chinchilla(v: Mapping[str, Any], N: Any, D: Any) -> Any:
    """Hoffmann et al. 2022, equation 2."""
    return v["E"] + v["A"] * N ** -v["alpha"] + v["B"] * D ** -v["beta"]


def kaplan(v: Mapping[str, Any], N: Any, D: Any) -> Any:
    """Kaplan et al. 2020, equation 1.5."""
    return ((v["N_c"] / N) ** (v["alpha_N"] / v["alpha_D"]) + v["D_c"] / D) ** v["alpha_D"]


SURFACES: dict[str, Surface] = {"approach_3": chinchilla, "kaplan_ND": kaplan}


def forecast(points: Points, N: float, D: float, *, bootstrap: int = 4000, seed: int = 0) -> dict[str, Any] | None:
    """What a model of N parameters will lose after D tokens; None where no form can be fitted.

    Returns:
        {form (of most weight), weights: {form: its share, 0 for one that could not be fitted without the last line},
        predicted_loss, ci95 (None without a bootstrap), held_out: {form: root mean square of its log errors on the last
        line, None where it could not be fitted without it}, by_form: {form: loss}}. Where none could be fitted without
        the last line, the first that could be fitted at all has the whole weight.
    """
    from tasks.scaling.fit import FITS

    last = points.flops > LAST_LINE * points.flops.max()
    held_out: dict[str, float | None] = {}
    fits: dict[str, Any] = {}
    for name, surface in SURFACES.items():
        held_out[name] = None
        try:
            fits[name] = FITS[name](points, bootstrap=bootstrap, seed=seed, delta=DELTA)
            earlier = FITS[name](points.take(np.flatnonzero(~last)), bootstrap=0, seed=seed, delta=DELTA)
        except UserError:
            continue
        told = surface(earlier.params, points.params[last], points.tokens[last])
        held_out[name] = float(np.sqrt(np.mean(np.log(points.loss[last] / told) ** 2)))
    if not fits:
        return None
    weights = _weights({name: held_out[name] for name in fits})
    by_form = {name: float(SURFACES[name](fit.params, N, D)) for name, fit in fits.items()}
    return {
        "form": max(weights, key=lambda name: weights[name]),
        "weights": weights,
        "predicted_loss": math.exp(sum(weights[name] * math.log(loss) for name, loss in by_form.items())),
        "ci95": _interval(fits, weights, N, D),
        "held_out": held_out,
        "by_form": by_form,
    }


def _weights(errors: Mapping[str, float | None]) -> dict[str, float]:
    """Shares of the forms, from their root mean square errors."""
    inverse = {name: 0.0 if error is None else 1 / max(error, LEAST_ERROR) for name, error in errors.items()}
    total = sum(inverse.values())
    if not total:
        return {name: float(place == 0) for place, name in enumerate(errors)}
    return {name: each / total for name, each in inverse.items()}


def _interval(fits: Mapping[str, Any], weights: Mapping[str, float], N: float, D: float) -> list[float] | None:
    """95 % of the forms' draws, each form's having its weight in sum."""
    losses, shares = [], []
    for name, fit in fits.items():
        if not weights[name]:
            continue
        if not all(parameter in fit.draws for parameter in fit.params):
            return None
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            drawn = SURFACES[name]({parameter: fit.draws[parameter] for parameter in fit.params}, N, D)
        drawn = drawn[np.isfinite(drawn)]
        if len(drawn) <= FEWEST_DRAWS:
            return None
        losses.append(drawn)
        shares.append(np.full(len(drawn), weights[name] / len(drawn)))
    loss, share = np.concatenate(losses), np.concatenate(shares)
    order = np.argsort(loss)
    below = np.cumsum(share[order]) - share[order] / 2
    return [float(q) for q in np.interp([0.025, 0.975], below, loss[order])]
