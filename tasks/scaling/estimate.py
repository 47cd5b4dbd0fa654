"""A form fitted to points: the global optimum, intervals by the bootstrap, and refusals where the data do not decide.

Pairs bootstrap (Efron 1979): a resample is how often each point counts, so 4,000 refits are one batch that starts
from the optimum. Standard errors are half the width of the middle 68 % of the resamples, which is the standard
deviation where they are normal and is not carried away by the long tails of A and B.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cluster.errors import BadData
from tasks.scaling.diagnostics import diagnose
from tasks.scaling.forms import Form, Named
from tasks.scaling.newton import DELTA, minimise, refit
from tasks.scaling.points import Points

AGREE = 1e-7
"""Relative difference of objectives below which two starts found the same optimum."""
APART = 0.02
"""Where starts of one objective may differ in a parameter: relatively, or of the loss for E."""
CONDITION = 3e6
"""Largest condition number of the scaled Jacobian: beyond it some parameters are free against each other."""
COLLINEAR = 2e-3
"""Least share of the variance of log D that log N does not explain."""
FEWEST_RESAMPLES = 20
"""Below this no interval is told."""


class NotIdentified(BadData):
    """The measurements cannot tell a parameter: no number is better than a wrong one."""


class Resampled(NamedTuple):
    """What draws are fits to: where two fits have this in common, each draw of both is of the same runs."""

    plan: str
    """A digest of the sizes and tokens that are drawn from, in their order."""
    seed: int


@dataclass(frozen=True)
class Fit:
    """What a fit found. Arrays of `draws` have one entry per bootstrap resample."""

    name: str
    params: dict[str, float]
    derived: dict[str, float]
    """What follows from the parameters: the exponents of the optimal allocation."""
    objective: float
    se: dict[str, float]
    ci95: dict[str, tuple[float, float]]
    warnings: list[str]
    diagnostics: dict[str, Any]
    draws: Named = field(default_factory=dict, repr=False)
    predicted: np.ndarray | None = field(default=None, repr=False)
    """[points] loss; None where the form predicts none."""
    resampled: Resampled | None = field(default=None, repr=False)
    """None where draws are not of the points one by one."""

    def as_json(self) -> dict[str, Any]:
        """One approach of `triptych fit --json`."""
        return {
            "params": self.params,
            **self.derived,
            "objective": self.objective,
            "ci95": {name: list(pair) for name, pair in self.ci95.items()},
            "se": self.se,
            "warnings": self.warnings,
            **self.diagnostics,
        }


def resamples(points: int, count: int, seed: int) -> np.ndarray:
    """[count, points]: how often each point is drawn in each resample."""
    rng = np.random.Generator(np.random.Philox(seed))
    return rng.multinomial(points, np.full(points, 1 / points), size=count).astype(float)


def _plan(points: Points) -> str:
    if points.slots:
        return points.slots.plan
    return hashlib.blake2b(np.column_stack([points.params, points.tokens]).tobytes(), digest_size=16).hexdigest()


def intervals(draws: Named) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Standard errors and 95 % percentile intervals of resampled estimates."""
    se, ci = {}, {}
    for name, column in draws.items():
        usable = column[np.isfinite(column)]
        if len(usable) < FEWEST_RESAMPLES:
            continue
        low, q16, q84, high = np.quantile(usable, [0.025, 0.16, 0.84, 0.975])
        se[name] = float((q84 - q16) / 2)
        ci[name] = (float(low), float(high))
    return se, ci


def check_design(points: Points, parameters: int, *, needs: str = "ND") -> None:
    """Refuse points that no optimiser could learn the parameters from.

    Raises:
        NotIdentified: too few points, fewer than three values of a quantity, or N and D that move together.
    """
    if len(points) <= parameters:
        raise NotIdentified(
            f"{len(points)} points cannot tell {parameters} parameters", f"measure at least {parameters + 1}, better 20"
        )
    if np.ptp(np.log(points.loss)) < 1e-9:
        raise NotIdentified("all losses are equal: nothing can be learnt from them", "is `loss` the right column?")
    columns = {"N": points.params, "D": points.tokens, "C": points.flops}
    words = {"N": "params", "D": "tokens", "C": "flops"}
    for letter in needs:
        values = len(np.unique(np.round(np.log(columns[letter]), 6)))
        if values < 3:
            raise NotIdentified(
                f"{words[letter]} has {values} distinct value{'s' if values > 1 else ''}: its exponent and the "
                "irreducible loss cannot be told apart",
                f"measure at three or more {words[letter]}",
            )
    if "N" in needs and "D" in needs:
        x, y = np.log(points.params), np.log(points.tokens)
        unexplained = 1 - np.corrcoef(x, y)[0, 1] ** 2
        if unexplained < COLLINEAR:
            ratio = np.exp(np.median(y - x))
            raise NotIdentified(
                f"params and tokens move together (1 − R² of their logarithms is {unexplained:.1e}, tokens/params "
                f"about {ratio:.3g}): alpha and beta cannot be told apart",
                "measure models at other ratios of tokens to params: IsoFLOP lines or a grid",
            )


def estimate(form: Form, points: Points, *, bootstrap: int = 4000, seed: int = 0, delta: float = DELTA) -> Fit:
    """Fit a form.

    Args:
        form: from `tasks.scaling.forms`.
        points: the measurements.
        bootstrap: resamples; 0 leaves only the asymptotic standard errors.
        seed: of the resamples.
        delta: δ of the Huber loss.

    Raises:
        NotIdentified: the points do not decide a parameter.
    """
    once = None if form.mask is None else form.mask(None)
    starts = form.starts
    ends = minimise(form.model, starts, weights=None if once is None else np.repeat(once, len(starts), 0), delta=delta)
    best = int(np.argmin(ends.objective))
    theta, objective = ends.theta[best], float(ends.objective[best])
    values = {name: float(v[0]) for name, v in form.named(theta[None]).items()}
    if beyond := [name for name, value in values.items() if not np.isfinite(value)]:
        raise NotIdentified(
            f"{' and '.join(beyond)} is beyond any number: the loss hardly falls with what it stands for",
            "measure a wider range, or fit a form with an irreducible loss: approach 3",
        )
    near = ends.objective <= objective * (1 + AGREE) + 1e-15
    warnings = list(_agreement(form, points, ends.theta[near], near, ends.converged[best]))
    for name in ("alpha", "beta", "eta", "alpha_N", "alpha_D", "alpha_C"):
        if values.get(name, 1.0) <= 0:
            raise NotIdentified(
                f"{name} is {values[name]:.3g} at the best fit: the loss does not fall with what it stands for",
                "check the columns and their units; measure a wider range",
            )
    used = np.flatnonzero(once[0] > 0) if once is not None else np.arange(len(points))
    jacobian = form.model.jacobian(theta)[used]
    _check_condition(form, jacobian)
    draws: Named = {}
    if bootstrap:
        slots = points.slots
        weights = resamples(slots.count if slots else len(points), bootstrap, seed)
        weights = weights[:, slots.at] if slots else weights
        if form.mask is not None:
            weights = form.mask(weights)
        enough = (weights > 0).sum(1) > len(form.parameters)
        counted = np.flatnonzero(weights.any(0))  # a frontier is few of the points, in every resample
        ends_b = refit(form.model.take(counted), theta, weights[enough][:, counted], delta=delta)
        # a draw of too few points has no estimate, and keeps its place
        draws = {name: np.full(bootstrap, np.nan) for name in values}
        for name, column in form.named(ends_b.theta).items():
            draws[name][enough] = column
        if len(ends_b.converged) and (lost := 1 - ends_b.converged.mean()) > 0.05:
            warnings.append(f"{100 * lost:.1f} % of the resamples did not converge: the intervals are rough")
    se, ci = intervals(draws)
    if not se:
        if bootstrap:
            warnings.append("too few resamples decide the parameters: errors and intervals are asymptotic")
        se = _sandwich(form, theta, None if once is None else once[0], delta)
        se = {name: error for name, error in se.items() if np.isfinite(error)}
        ci = {name: _normal(name, values[name], error) for name, error in se.items()}
        ci = {name: pair for name, pair in ci.items() if np.isfinite(pair).all()}  # a limit beyond any number is none
    predicted = np.exp(form.model.predict(theta[None])[0])
    warnings += _doubts(form, points, theta, values, ci)
    diagnostics = {
        "form": form.name,
        "points": len(used),
        "starts": {
            "tried": form.tried,
            "followed": len(starts),
            "at_optimum": int(near.sum()),
            "converged": bool(ends.converged[best]),
        },
        "bootstrap": bootstrap,
        **diagnose(points.take(used), predicted[used], jacobian),
    }
    params = {name: values[name] for name in form.parameters}
    derived = {name: v for name, v in values.items() if name not in params}
    drawn_from = Resampled(_plan(points), seed) if draws and form.mask is None else None
    return Fit(form.name, params, derived, objective, se, ci, warnings, diagnostics, draws, predicted, drawn_from)


def _agreement(form: Form, points: Points, same: np.ndarray, near: np.ndarray, converged: bool) -> list[str]:
    """Starts of one objective must have found one law; a valley without a bottom is refused."""
    named = form.named(same)
    level = float(np.median(points.loss))
    for name in form.parameters:
        values = named[name]
        spread = float(np.ptp(values))
        allowed = APART * (level if name == "E" else float(np.median(np.abs(values))) + 1e-300)
        if name in ("A", "B", "a", "b") or name.endswith("_c"):
            spread, allowed = float(np.ptp(np.log(np.maximum(values, 1e-300)))), 0.5  # prefactors: by their logarithm
        if not np.isfinite(spread) or spread > allowed:
            raise NotIdentified(
                f"{name} is not identified: starts that reach the same objective end anywhere between "
                f"{values.min():.4g} and {values.max():.4g}",
                "measure a wider range, or fit a form with fewer parameters",
            )
    told = []
    if len(near) > 8 and near.sum() < 2:
        told.append(f"only one of {len(near)} starts reached the best objective: the optimum may not be the global one")
    if not converged:
        told.append("the best start did not converge to tolerance")
    return told


def _check_condition(form: Form, jacobian: np.ndarray) -> None:
    """Refuse where columns of the Jacobian are dependent: parameters that compensate each other without a trace."""
    scale = np.linalg.norm(jacobian, axis=0)
    # an empty column is a term that adds nothing to any point: a value of zero, which `_doubts` tells of
    kept = scale > 1e-9 * scale.max()
    _, singular, rows = np.linalg.svd(jacobian[:, kept] / scale[kept], full_matrices=False)
    if singular[-1] * CONDITION < singular[0]:
        worst = [i for i in np.argsort(-np.abs(rows[-1])) if abs(rows[-1][i]) > 0.3]
        names = np.array(_theta_names(form))[kept]
        raise NotIdentified(
            f"the data cannot tell {' and '.join(dict.fromkeys(names[i] for i in worst))} apart "
            f"(condition number {singular[0] / max(singular[-1], 1e-300):.1e})",
            "measure a wider range of params and tokens, or fit a form with fewer parameters",
        )


def _theta_names(form: Form) -> list[str]:
    return {
        "chinchilla": ["A", "B", "E", "alpha", "beta"],
        "over_training": ["a", "b", "E", "eta"],
        "kaplan_ND": ["N_c", "D_c", "alpha_N", "alpha_D"],
    }.get(form.name, list(form.parameters))


def _normal(name: str, value: float, error: float) -> tuple[float, float]:
    """95 % of a normal estimate; of a prefactor, which is never negative, by its logarithm."""
    if name[-2:] == "_c" or name in ("E", "A", "B", "a", "b"):
        wide = float(np.exp(min(1.96 * error / max(value, 1e-300), 700.0)))
        return value / wide, value * wide
    return value - 1.96 * error, value + 1.96 * error


def _sandwich(form: Form, theta: np.ndarray, weights: np.ndarray | None, delta: float) -> dict[str, float]:
    """Standard errors of an M-estimator (Huber 1967), where no bootstrap was asked for; by the delta method."""
    used = np.ones(len(form.model.target), bool) if weights is None else weights > 0
    residual = (form.model.target - form.model.predict(theta[None])[0])[used]
    jacobian = form.model.jacobian(theta)[used]
    psi = np.clip(residual, -delta, delta)
    # too few residuals lie within δ to count them: their density at zero, over a width of usual size for that
    spread = 1.4826 * float(np.median(np.abs(residual)))
    width = max(delta, 1.5 * spread * len(residual) ** (-1 / 3))
    curvature = delta / width * float((np.abs(residual) <= width).mean())
    score = jacobian * psi[:, None]
    inverse = np.linalg.pinv(max(curvature, 1e-12) * (jacobian.T @ jacobian))
    covariance = inverse @ (score.T @ score) @ inverse
    step = 1e-5
    at = form.named(theta[None])
    up = form.named(theta + step * np.eye(len(theta)))
    out = {}
    for name, value in at.items():
        slope = (up[name] - value[0]) / step
        out[name] = float(np.sqrt(max(slope @ covariance @ slope, 0.0)))
    return out


def _doubts(
    form: Form, points: Points, theta: np.ndarray, values: dict[str, float], ci: dict[str, tuple[float, float]]
) -> list[str]:
    told = []
    if len(points) < 4 * len(form.parameters):
        told.append(f"{len(points)} points for {len(form.parameters)} parameters: few")
    if "E" in values:
        below = np.flatnonzero(points.loss <= values["E"])
        if len(below):
            told.append(
                f"{len(below)} losses lie below the irreducible loss E = {values['E']:.4g} ({points.named(below)}): "
                "another data set, or a wrong unit?"
            )
        if values["E"] < 1e-3 * float(points.loss.min()):
            told.append(
                "E is not identified: its estimate is zero, since the losses are far from irreducible; "
                "what lies beyond the measured range is not to be predicted from this fit"
            )
    for name in ("alpha", "beta", "alpha_N", "alpha_D", "alpha_C"):
        if name in ci and (ci[name][0] <= 0 or ci[name][1] - ci[name][0] > 2 * abs(values[name])):
            told.append(f"{name} is hardly identified: 95 % interval {ci[name][0]:.3g} to {ci[name][1]:.3g}")
    for word, column in (("params", points.params), ("tokens", points.tokens)):
        if form.name in ("chinchilla", "over_training", "kaplan_ND") and column.max() < 3 * column.min():
            told.append(f"{word} span a factor of {column.max() / column.min():.2g} only")
    return told
