"""All fits of a file of measurements, each with its intervals, or why it was refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cluster.errors import BadConfig, UserError
from tasks.scaling import forms
from tasks.scaling.approach1 import fit_approach_1
from tasks.scaling.approach2 import fit_approach_2
from tasks.scaling.data_constrained import fit_data_constrained
from tasks.scaling.estimate import Fit, NotIdentified, check_design, estimate
from tasks.scaling.laws import covariance
from tasks.scaling.newton import DELTA
from tasks.scaling.points import Points

GROUPS: dict[str, tuple[str, ...]] = {
    "1": ("approach_1",),
    "2": ("approach_2",),
    "3": ("approach_3",),
    "kaplan": ("kaplan_N", "kaplan_D", "kaplan_C", "kaplan_ND"),
    "over-training": ("over_training",),
    "data-constrained": ("data_constrained",),
}
"""What `--approach` may say, and which fits that is; `all` is all of them."""


def fit_approach_3(points: Points, *, bootstrap: int = 4000, seed: int = 0, delta: float = DELTA) -> Fit:
    """Hoffmann et al. 2022, section 3.3: Σ Huber_δ(log L − log(E + A/N^α + B/D^β)) at its global minimum."""
    check_design(points, 5)
    found = estimate(forms.chinchilla(points), points, bootstrap=bootstrap, seed=seed, delta=delta)
    return replace(found, name="approach_3")


def fit_over_training(points: Points, *, bootstrap: int = 4000, seed: int = 0, delta: float = DELTA) -> Fit:
    """Gadre et al. 2024, equation 4, by the same robust loss (theirs is least squares of the loss itself)."""
    check_design(points, 4)
    return estimate(forms.over_training(points), points, bootstrap=bootstrap, seed=seed, delta=delta)


def fit_kaplan_joint(points: Points, *, bootstrap: int = 4000, seed: int = 0, delta: float = DELTA) -> Fit:
    check_design(points, 4)
    return estimate(forms.kaplan_joint(points), points, bootstrap=bootstrap, seed=seed, delta=delta)


def _kaplan(of: str) -> Callable[..., Fit]:
    def fit(points: Points, *, bootstrap: int = 4000, seed: int = 0, delta: float = DELTA) -> Fit:
        check_design(points, 3, needs=of)
        form = forms.kaplan_single(points, of)
        count = int((form.mask(None) > 0).sum()) if form.mask else len(points)
        if count < 3:
            raise NotIdentified(
                f"the frontier of loss over {of} has {count} points; a power law needs three", "measure a wider range"
            )
        found = estimate(form, points, bootstrap=bootstrap, seed=seed, delta=delta)
        what = {
            "N": "data without limit",
            "D": "models without limit, stopped early",
            "C": "the optimal size each time",
        }
        found.warnings.append(f"read from the {count} points no smaller {of} beats: assumes {what[of]}")
        return found

    return fit


FITS: dict[str, Callable[..., Fit]] = {
    "approach_1": lambda points, *, delta, **more: fit_approach_1(points, **more),
    "approach_2": lambda points, *, delta, **more: fit_approach_2(points, **more),
    "approach_3": fit_approach_3,
    "over_training": fit_over_training,
    "kaplan_N": _kaplan("N"),
    "kaplan_D": _kaplan("D"),
    "kaplan_C": _kaplan("C"),
    "kaplan_ND": fit_kaplan_joint,
    "data_constrained": lambda points, *, bootstrap, **more: fit_data_constrained(
        points, bootstrap=min(bootstrap, 1000), **more
    ),
}


def fit_names(approach: str, points: Points | None = None) -> list[str]:
    """The fits that `--approach` asks for; `all` leaves out the data-constrained one where no column is for it.

    Raises:
        BadConfig: no such approach.
    """
    if approach == "all":
        return [n for n in FITS if n != "data_constrained" or (points is not None and points.unique_tokens is not None)]
    if approach not in GROUPS:
        raise BadConfig(f"--approach {approach!r} is not known", f"known: {', '.join(GROUPS)}, all")
    return list(GROUPS[approach])


def fit_all(
    points: Points, names: Sequence[str], *, bootstrap: int = 4000, seed: int = 0, delta: float = DELTA
) -> tuple[dict[str, Fit], dict[str, UserError]]:
    """Each fit that the points allow, and why not for the others.

    Raises:
        UserError: none of approaches 1, 2 and 3 is possible though they were asked for, or none of the others; with the
            reason of approach 3, else of the first.
    """
    found: dict[str, Fit] = {}
    refused: dict[str, UserError] = {}
    for name in names:
        try:
            found[name] = FITS[name](points, bootstrap=bootstrap, seed=seed, delta=delta)
        except UserError as error:
            refused[name] = error
    wanted = [name for name in names if name.startswith("approach")] or list(names)
    if not any(name in found for name in wanted):
        name = "approach_3" if "approach_3" in refused else wanted[0]
        raise type(refused[name])(f"{name}: {refused[name].message}", refused[name].remedy)
    for fit in found.values():
        fit.warnings[:0] = points.warnings
    return found, refused


def as_json(points: Points, found: dict[str, Fit], refused: dict[str, UserError]) -> dict[str, Any]:
    """{fit: object}, which names its data; of a refused one `refused`, the reason, and `remedy`."""
    data = {"file": points.source, "digest": points.digest, "largest_flops": float(points.flops.max())}
    data |= {"flops_factor": points.flops_factor, "unit": points.unit or None}
    return {
        **{name: {**fit.as_json(), "covariance": covariance(fit), **data} for name, fit in found.items()},
        **{name: {"refused": error.message, "remedy": error.remedy} for name, error in refused.items()},
    }
