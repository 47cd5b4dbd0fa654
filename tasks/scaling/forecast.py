"""The loss of a run beyond a sweep, by two forms over several ranges, weighted by how each foretells the last line.

A form that fits all points may still bend the wrong way beyond them: E + A/N^α + B/D^β puts its floor where the data
end, Kaplan's L(N, D) has none. And the smallest runs may not be on the law yet: a model that has learnt no more than
which tokens are frequent says nothing of one that reads its context. Which form, and from where on, is asked of the
data: each form is fitted to all points, to those of the last decade and a half of compute and of the last decade,
each time without the largest budget, which it then foretells; its weight is the inverse of its mean squared log error
there (Bates and Granger 1969, doi:10.1057/jors.1969.103). The forecast is the weighted geometric mean; its interval is
that of the bootstrap draws, mixed by weight, so that it also holds what the candidates disagree on. Only points of the
sweep are looked at, so what is foretold next is no hindsight.
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
RANGES = (math.inf, 40.0, 12.5)
"""A form is fitted to the points of at least the largest compute divided by this: all, a decade and a half, one."""
FEWEST_DRAWS = 20
"""With fewer finite ones there is no interval."""
LEAST_ERROR = 3e-3
"""A held-out log error below this counts as this: seeds differ by as much, so it is luck."""
LEAST_WEIGHT = 0.02
"""Candidates of less have no draws in the interval."""


def chinchilla(v: Mapping[str, Any], N: Any, D: Any) -> Any:
    """Hoffmann et al. 2022, equation 2."""
    return v["E"] + v["A"] * N ** -v["alpha"] + v["B"] * D ** -v["beta"]


def kaplan(v: Mapping[str, Any], N: Any, D: Any) -> Any:
    """Kaplan et al. 2020, equation 1.5."""
    return ((v["N_c"] / N) ** (v["alpha_N"] / v["alpha_D"]) + v["D_c"] / D) ** v["alpha_D"]


SURFACES: dict[str, Surface] = {"approach_3": chinchilla, "kaplan_ND": kaplan}


def forecast(points: Points, N: float, D: float, *, bootstrap: int = 4000, seed: int = 0) -> dict[str, Any] | None:
    """What a model of N parameters will lose after D tokens; None where no form can be fitted.

    A candidate is a form, by the name of its fit, or a form and where its points begin ("kaplan_ND from 2e+11 FLOPs").

    Returns:
        {form (the candidate of most weight), weights: {candidate: its share, 0 for one that could not be fitted without
        the last line}, predicted_loss, ci95 (None without a bootstrap), held_out: {candidate: root mean square of its
        log errors on the last line, None where it could not be fitted without it}, by_form: {candidate: loss}}. Where
        none could be fitted without the last line, the first that could be fitted at all has the whole weight.
    """
    from tasks.scaling.fit import FITS

    last = points.flops > LAST_LINE * points.flops.max()
    held_out: dict[str, float | None] = {}
    candidates: dict[str, tuple[str, Points]] = {}
    by_form: dict[str, float] = {}
    for start, chosen in _ranges(points):
        for form, surface in SURFACES.items():
            name = f"{form} from {start:.3g} FLOPs" if start else form
            held_out[name] = None
            part = points.take(np.flatnonzero(chosen))
            try:
                fit = FITS[form](part, bootstrap=0, seed=seed, delta=DELTA)
                candidates[name], by_form[name] = (form, part), float(surface(fit.params, N, D))
                earlier = points.take(np.flatnonzero(chosen & ~last))
                params = FITS[form](earlier, bootstrap=0, seed=seed, delta=DELTA).params
            except UserError:
                continue
            told = surface(params, points.params[last], points.tokens[last])
            held_out[name] = float(np.sqrt(np.mean(np.log(points.loss[last] / told) ** 2)))
    if not candidates:
        return None
    weights = _weights({name: held_out[name] for name in candidates})
    fits = {
        name: (form, FITS[form](part, bootstrap=bootstrap, seed=seed, delta=DELTA))
        for name, (form, part) in candidates.items()
        if weights[name] >= LEAST_WEIGHT
    }
    return {
        "form": max(weights, key=lambda name: weights[name]),
        "weights": weights,
        "predicted_loss": math.exp(sum(weights[name] * math.log(loss) for name, loss in by_form.items())),
        "ci95": _interval(fits, weights, N, D),
        "held_out": held_out,
        "by_form": by_form,
    }


def _ranges(points: Points) -> list[tuple[float, np.ndarray]]:
    """(compute where the points begin, 0 for all; which they are), each set of points once."""
    found: list[tuple[float, np.ndarray]] = []
    for divisor in RANGES:
        chosen = points.flops >= points.flops.max() / divisor
        if not any((chosen == other).all() for _, other in found):
            found.append((0.0 if chosen.all() else float(points.flops[chosen].min()), chosen))
    return found


def _weights(errors: Mapping[str, float | None]) -> dict[str, float]:
    """Shares of the candidates, from their root mean square errors."""
    inverse = {name: 0.0 if error is None else max(error, LEAST_ERROR) ** -2 for name, error in errors.items()}
    total = sum(inverse.values())
    if not total:
        return {name: float(place == 0) for place, name in enumerate(errors)}
    return {name: each / total for name, each in inverse.items()}


def _interval(
    fits: Mapping[str, tuple[str, Any]], weights: Mapping[str, float], N: float, D: float
) -> list[float] | None:
    """95 % of the candidates' draws, each candidate's having its weight in sum."""
    losses, shares = [], []
    for name, (form, fit) in fits.items():
        if not all(parameter in fit.draws for parameter in fit.params):
            return None
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            drawn = SURFACES[form]({parameter: fit.draws[parameter] for parameter in fit.params}, N, D)
        drawn = drawn[np.isfinite(drawn)]
        if len(drawn) <= FEWEST_DRAWS:
            return None
        losses.append(drawn)
        shares.append(np.full(len(drawn), weights[name] / len(drawn)))
    loss, share = np.concatenate(losses), np.concatenate(shares)
    order = np.argsort(loss)
    below = (np.cumsum(share[order]) - share[order] / 2) / share.sum()
    return [float(q) for q in np.interp([0.025, 0.975], below, loss[order])]
