"""When a sweep has shown enough: its rule for runs that need not be made (`pipelines.sweep`).

Decisions are taken after whole lines only, from the points up to there, so that they do not depend on which of two runs
ended first, and the same command again decides the same:

- the exponent is known: the 95 % interval of N_opt ∝ C^a is narrow enough, from enough points on three lines or more;
- the budget is spent: FLOPs, or the time of cores;
- a size is beside the valley: so much smaller than the optimum of a line, by the fit so far, that it tells nothing of
  it (and, growing with the budget, the optimum will not come back to it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from cluster.errors import UserError
from modeling.config import Config
from tasks.scaling.ladder import Rung

LEAST_LINES = 3
RESAMPLES = 300
"""Bootstrap of a decision; the fit itself takes more."""


class Stopping(Config):
    """When a variant's sweep ends before its last line."""

    exponent_interval: float = Field(
        0.03, ge=0, description="stop when the 95 % interval of a is this narrow; 0: never"
    )
    least_points: int = Field(20, ge=6, description="but not before so many runs")
    most_flops: float = Field(0, ge=0, description="stop when so much compute is spent; 0: no limit")
    most_core_minutes: float = Field(0, ge=0, description="the same in minutes of all cores' time; 0: no limit")
    prune_below: float = Field(8.0, ge=0, description="leave out sizes so many times below the optimum; 0: none")


def unneeded(
    rungs: Sequence[Rung],
    made: Mapping[int, Mapping[str, Any]],
    stopping: Stopping,
    *,
    decay_share: float,
    measure: str,
) -> dict[int, str]:
    """{number of a run of one variant: why it is not needed}.

    Args:
        rungs: the planned runs.
        made: manifests by number.
        decay_share: of each run; the rest of it is its prefix's, where it has one.
        measure: the metric that is fitted.
    """
    out: dict[int, str] = {}
    lines = sorted({rung.line for rung in rungs})
    for done, line in enumerate(lines, 1):
        wanted = [n for n, rung in enumerate(rungs) if rung.line <= line and n not in out]
        if any(n not in made for n in wanted):
            return out
        later = [n for n, rung in enumerate(rungs) if rung.line > line and n not in out]
        reason = _spent(rungs, made, wanted, stopping, decay_share)
        law = None
        if not reason and done >= LEAST_LINES and later:
            reason, law = _known(rungs, made, wanted, stopping, measure)
        for n in later:
            if reason:
                out[n] = reason
            elif law is not None and stopping.prune_below and rungs[n].params * stopping.prune_below < law(rungs[n]):
                out[n] = f"{law(rungs[n]) / rungs[n].params:.1f} times below the optimum of its line"
    return out


def _spent(
    rungs: Sequence[Rung],
    made: Mapping[int, Mapping[str, Any]],
    wanted: Sequence[int],
    stopping: Stopping,
    decay_share: float,
) -> str:
    flops, before = 0.0, dict[int, float]()
    for n in sorted(wanted, key=lambda n: rungs[n].line):
        own = float(made[n]["metrics"].get("training_flops", 0.0))
        flops += own - (1 - decay_share) * before.get(rungs[n].width, 0.0)
        before[rungs[n].width] = own
    minutes = sum(float(made[n].get("timings", {}).get("seconds", 0.0)) * _cores(made[n]) for n in wanted) / 60
    if stopping.most_flops and flops >= stopping.most_flops:
        return f"{flops:.3g} FLOPs are spent, the budget was {stopping.most_flops:.3g}"
    if stopping.most_core_minutes and minutes >= stopping.most_core_minutes:
        return f"{minutes:.1f} core-minutes are spent, the budget was {stopping.most_core_minutes:g}"
    return ""


def _cores(manifest: Mapping[str, Any]) -> float:
    """What a stage ran on: of each worker its own."""
    placement = manifest.get("placement") or {}
    return float(placement.get("workers", 1)) * float(placement.get("cpus", 1))


def _known(
    rungs: Sequence[Rung],
    made: Mapping[int, Mapping[str, Any]],
    used: Sequence[int],
    stopping: Stopping,
    measure: str,
) -> tuple[str, Any]:
    """Why nothing more is needed, and the optimal size of a run's budget by the fit so far; None where none is."""
    import numpy as np

    from tasks.scaling.fit import fit_approach_3
    from tasks.scaling.laws import law_of
    from tasks.scaling.points import points_of

    metrics = [made[n]["metrics"] for n in used]
    if any(m.get(measure) is None for m in metrics):
        return "", None
    flops = np.array([m["training_flops"] for m in metrics])
    points = points_of(
        [m[measure] for m in metrics],
        params=[rungs[n].params for n in used],
        tokens=[m["tokens"] for m in metrics],
        flops=flops,
    )
    try:
        fit = fit_approach_3(points, bootstrap=RESAMPLES)
    except UserError:  # nothing is known yet
        return "", None
    low, high = fit.ci95.get("exponent_N", (0.0, 1.0))
    if stopping.exponent_interval and len(used) >= stopping.least_points and high - low <= stopping.exponent_interval:
        return f"the 95 % interval of the exponent is {high - low:.3f} wide", None
    law = law_of(fit, "", float(flops.max()), flops_factor=points.flops_factor)
    return "", lambda rung: float(law.optimum(rung.flops)[0])
