"""The loss of a run beyond a sweep, by the form that has foretold the sweep's own last line best.

A form that fits all points may still bend the wrong way beyond them: E + A/N^α + B/D^β puts its floor where the data
end, Kaplan's L(N, D) has none. Which is nearer at this scale is asked of the data: each is fitted without the largest
budget and foretells it. Only points of the sweep are looked at, so what is foretold next is no hindsight.
"""

from __future__ import annotations

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
        {form, predicted_loss, ci95 (of the form's parameters, by the bootstrap; None without one), held_out: {form:
        root mean square of its log errors on the last line, None where it could not be fitted without it},
        by_form: {form: loss}}.
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
    known = {name: error for name, error in held_out.items() if error is not None and name in fits}
    form = min(known, key=lambda name: known[name]) if known else next(iter(fits))
    fit, surface = fits[form], SURFACES[form]
    interval = None
    if all(name in fit.draws for name in fit.params):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            drawn = surface({name: fit.draws[name] for name in fit.params}, N, D)
        drawn = drawn[np.isfinite(drawn)]
        interval = [float(q) for q in np.quantile(drawn, [0.025, 0.975])] if len(drawn) > 20 else None
    return {
        "form": form,
        "predicted_loss": float(surface(fit.params, N, D)),
        "ci95": interval,
        "held_out": held_out,
        "by_form": {name: float(SURFACES[name](each.params, N, D)) for name, each in fits.items()},
    }
