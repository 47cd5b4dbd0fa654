"""Which of several variants wins at a larger scale: their laws compared, with uncertainty.

A variant is an architecture, an objective, a masking rate, ... of which a sweep was fitted. What is better at the scale
that was measured may be worse at another: so laws are compared, each at its own compute-optimal size, and every
difference comes with what the draws of both laws say of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from cluster.errors import BadConfig
from tasks.scaling.estimate import FEWEST_RESAMPLES
from tasks.scaling.frontier import Frontier, crossings
from tasks.scaling.laws import FAR, Law
from tasks.scaling.pairing import shuffled, together

TIMES = (1.0, 10.0, 100.0, 1000.0)
"""The default budgets, as multiples of the largest compute that all variants were measured at."""
SEARCHED = (1e-3, 1e6)
"""Where crossovers are looked for, in the same multiples."""
PER_DECADE = 16
"""Budgets of that grid."""
SHOWN = 0.05
"""Share of the draws with a crossover from which on it is told where the best estimates have none."""
NOUGHT = 1e-3
"""Share of the loss below which an irreducible loss counts as zero."""
UNDECIDED = "undecided"


@dataclass(frozen=True, eq=False)
class _Variant:
    name: str
    law: Law
    group: str
    """One for all variants whose draws go together."""
    draws: Mapping[str, np.ndarray]
    """In an order of the group's own, so that draws at one index of two groups are independent; empty: none."""

    @property
    def size(self) -> int:
        return len(next(iter(self.draws.values()), ()))

    @property
    def known(self) -> int:
        """Draws with an estimate."""
        return int(np.isfinite(np.stack([*self.draws.values()])).all(0).sum()) if self.draws else 0

    def exponents(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those that its law has: exponent_N, exponent_D, alpha, beta."""
        if self.law.has_surface:
            alpha, beta = values["alpha"], values["beta"]
            total = alpha + beta
            return {"exponent_N": beta / total, "exponent_D": alpha / total, "alpha": alpha, "beta": beta}
        return {name: values[name] for name in ("exponent_N", "exponent_D") if name in values}

    def best(self) -> Frontier | None:
        found = self.law.frontier()
        return None if found is None else found.arrays()

    def drawn(self) -> Frontier | None:
        if not self.draws or not self.law.has_surface:  # the published (C_c/C)^α has no draws
            return None
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = self.law.frontier(self.draws)
        return None if found is None else found.arrays()


def compare(laws: Mapping[str, Law], *, comparable: bool, budgets: Sequence[float] | None = None) -> dict[str, Any]:
    """Every pair of variants: exponents, losses at budgets, the crossover, and how much compute a difference is worth.

    Two fits whose draws are of the same runs, by size and tokens, are compared draw by draw, so that what they share
    (where the form is wrong, which points were drawn) leaves the difference; whether the noise of the runs is shared
    makes no difference to that. All other laws' draws are paired at random (`tasks.scaling.pairing`).

    Args:
        laws: {variant: its law}, of one approach; two or more.
        comparable: whether the losses are of one unit and one examination. If not, exponents alone are compared:
            nats per token of two tokenizers, or losses of two objectives, say nothing of each other.
        budgets: FLOPs; left out, 1, 10, 100 and 1,000 times the largest compute that all variants were measured at.

    Returns:
        What `triptych fit --json` prints below `comparison`, for one approach. A limit of an interval, a budget or a
        multiple is None where there is no end to it: `[3e20, None]` is "from 3e20 on, or never".

    Raises:
        BadConfig: fewer than two variants, budgets that are none, or losses of different units.
    """
    if len(laws) < 2:
        raise BadConfig(f"{len(laws)} variants to compare, expected two or more")
    if comparable:
        check_units({name: law.unit for name, law in laws.items()})
    common = min((law.largest_flops for law in laws.values() if law.largest_flops), default=None)
    spent = _budgets(budgets, common)
    groups = together(laws)
    variants = [_Variant(name, law, groups[name], shuffled(groups[name], law)) for name, law in laws.items()]
    told, warnings = _said(variants, comparable)
    with_loss = [v for v in variants if comparable and v.law.frontier() is not None]
    return {
        "comparable": comparable,
        "unit": next((law.unit for law in laws.values() if law.unit), None) if comparable else None,
        "largest_common_flops": common,
        "budgets": [{"flops": c, "extrapolated": _extrapolated(c, common)} for c in spent],
        "variants": {v.name: _alone(v, spent if v in with_loss else []) for v in variants},
        "pairs": [_pair(a, b, spent, common, a in with_loss and b in with_loss) for a, b in combinations(variants, 2)],
        "winners": _winners(with_loss, spent) if len(with_loss) == len(variants) else [],
        "assumed": told,
        "warnings": warnings,
    }


def check_units(units: Mapping[str, str]) -> None:
    """Refuse to compare losses of different units.

    Args:
        units: {variant: unit of its losses}, empty where that is not known.

    Raises:
        BadConfig: two variants name different units.
    """
    known = {name: unit for name, unit in units.items() if unit}
    if len(set(known.values())) > 1:
        raise BadConfig(
            f"losses of different units cannot be compared: {'; '.join(f'{n} in {u}' for n, u in known.items())}",
            "measure all variants in bits per byte, or by one examination; or compare their exponents only "
            "(--not-comparable)",
        )


def _budgets(budgets: Sequence[float] | None, common: float | None) -> list[float]:
    if budgets is None:
        if common is None:
            raise BadConfig("no law says what compute it was measured at", "name the budgets to compare at, in FLOPs")
        return [times * common for times in TIMES]
    for flops in budgets:
        if not (np.isfinite(flops) and flops > 0):
            raise BadConfig(f"a budget is {flops} FLOPs, expected a positive number")
    if not budgets:
        raise BadConfig("no budgets to compare at", "name some, in FLOPs")
    return sorted({float(flops) for flops in budgets})


def _extrapolated(flops: float, common: float | None) -> bool:
    return common is not None and bool(flops > FAR * common)


def _said(variants: Sequence[_Variant], comparable: bool) -> tuple[list[str], list[str]]:
    """What is taken for granted, and what is doubtful."""
    told = [
        "each variant is at its own compute-optimal size",
        "the form of the law holds at every budget: intervals are of chance alone",
    ]
    groups = {v.group: [other.name for other in variants if other.group == v.group] for v in variants}
    for names in groups.values():
        if len(names) > 1:
            told.append(f"{', '.join(names)} were run at the same sizes and tokens, and are resampled together")
    if len(groups) > 1:
        told.append("draws of variants are independent" + (" otherwise" if len(groups) < len(variants) else ""))
    if comparable:
        unit = next((v.law.unit for v in variants if v.law.unit), "")
        named = all(v.law.unit for v in variants)
        what = f"all losses are in {unit}" if named else "all losses are of one unit"
        told.append(f"{what}, on one examination (the same text by the same tokenizer, or bits per byte)")
    else:
        told.append("losses are not comparable: exponents alone are compared")
    warnings = []
    if len(counts := {v.law.counts for v in variants}) > 1:
        warnings.append(f"parameters are counted differently ({'; '.join(sorted(counts))}): that moves exponents")
    if len(kinds := {v.law.name for v in variants}) > 1:
        warnings.append(f"laws of different approaches ({', '.join(sorted(kinds))}), whose biases differ")
    if blind := [v.name for v in variants if v.known < FEWEST_RESAMPLES]:
        warnings.append(f"no intervals for {', '.join(blind)}: nothing is decided")
    if comparable and (silent := [v.name for v in variants if v.law.frontier() is None]):
        warnings.append(f"no loss by the laws of {', '.join(silent)}: exponents alone are compared; take approach 3")
    for v in variants if comparable else ():
        found = v.law.frontier()
        if not found or not v.law.has_surface or not v.law.largest_flops:
            continue
        if found.floor < NOUGHT * found.loss(v.law.largest_flops):
            warnings.append(
                f"E of {v.name} is not identified (its estimate is zero): beyond the measured range its loss is not to "
                "be predicted"
            )
    return told, warnings


# ---------------------------------------------------------------- one variant, two, all


def _alone(variant: _Variant, budgets: Sequence[float]) -> dict[str, Any]:
    law = variant.law
    drawn = variant.exponents(variant.draws) if variant.draws else {}
    rows = []
    if budgets:
        best, many = variant.best(), variant.drawn()
        assert best is not None
        rows = [
            {
                "flops": c,
                "loss": float(best.loss(c)[0]),
                "ci95": _interval(many.loss(c)) if many else None,
                "params": float(law.optimum(c)[0]),
                "tokens": float(law.optimum(c)[1]),
            }
            for c in budgets
        ]
    return {
        "law": law.name,
        "source": law.source,
        "unit": law.unit or None,
        "largest_flops": law.largest_flops,
        "exponents": {
            name: {"value": float(value), "ci95": _interval(drawn[name]) if name in drawn else None}
            for name, value in variant.exponents(law.values).items()
        },
        "losses": rows,
    }


def _pair(a: _Variant, b: _Variant, budgets: Sequence[float], common: float | None, losses: bool) -> dict[str, Any]:
    size = min(a.size, b.size)
    one, other = a.exponents(a.law.values), b.exponents(b.law.values)
    shared = [name for name in one if name in other]
    drawn = [v.exponents({k: column[:size] for k, column in v.draws.items()}) if size else {} for v in (a, b)]
    out: dict[str, Any] = {
        "a": a.name,
        "b": b.name,
        "draws": size,
        "paired": a.group == b.group,
        "exponents": {
            name: _difference(a.name, b.name, one[name], other[name], *(d.get(name) for d in drawn), larger=True)
            for name in shared
        },
        "losses": [],
        "crossover": None,
    }
    if not losses:
        return out
    first, second = a.best(), b.best()
    assert first is not None and second is not None
    many = [_first(v.drawn(), size) for v in (a, b)]
    both = (many[0], many[1]) if many[0] is not None and many[1] is not None else None
    for c in budgets:
        drawn_at = (both[0].loss(c), both[1].loss(c)) if both else (None, None)
        row = _difference(a.name, b.name, first.loss(c)[0], second.loss(c)[0], *drawn_at, larger=False)
        row["compute_multiplier"] = {
            b.name: _multiplier(second, first, c, (both[1], both[0]) if both else None),
            a.name: _multiplier(first, second, c, both),
        }
        out["losses"].append({"flops": c, "extrapolated": _extrapolated(c, common), **row})
    out["crossover"] = _crossover(a.name, b.name, (first, second), both, common or budgets[0], common)
    return out


def _first(found: Frontier | None, size: int) -> Frontier | None:
    return found.take(slice(size)) if found is not None and size else None


def _difference(
    a: str, b: str, one: float, other: float, drawn_a: np.ndarray | None, drawn_b: np.ndarray | None, *, larger: bool
) -> dict[str, Any]:
    """First minus second; the verdict names the larger, or the lower, where the interval leaves zero out."""
    word = "probability_larger" if larger else "probability_lower"
    out: dict[str, Any] = {
        "values": {a: float(one), b: float(other)},
        "difference": float(one - other),
        "ci95": None,
        word: None,
        "verdict": UNDECIDED,
    }
    if drawn_a is None or drawn_b is None:
        return out
    with np.errstate(invalid="ignore", over="ignore"):
        drawn = drawn_a - drawn_b
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < FEWEST_RESAMPLES:
        return out
    above = float(((drawn > 0) + 0.5 * (drawn == 0)).mean())
    out["ci95"] = _interval(drawn)
    out[word] = above if larger else 1 - above
    low, high = out["ci95"]
    if low > 0 or high < 0:
        out["verdict"] = a if (low > 0) == larger else b
    return out


def _winners(variants: Sequence[_Variant], budgets: Sequence[float]) -> list[dict[str, Any]]:
    """At each budget: who is lowest, how probable that is for each, and whether it is decided against all others."""
    size = min(v.size for v in variants)
    best = [v.best() for v in variants]
    many = [_first(v.drawn(), size) for v in variants]
    names = [v.name for v in variants]
    rows = []
    for c in budgets:
        at = [float(f.loss(c)[0]) for f in best if f is not None]
        lowest = int(np.argmin(at))
        row: dict[str, Any] = {
            "flops": c, "lowest": names[lowest], "loss": at[lowest], "probability": None, "verdict": UNDECIDED,
        }  # fmt: skip
        drawn = np.stack([f.loss(c) for f in many if f is not None]) if all(f is not None for f in many) else None
        if drawn is not None:
            drawn = drawn[:, np.isfinite(drawn).all(0)]
        if drawn is not None and drawn.shape[1] >= FEWEST_RESAMPLES:
            share = (drawn == drawn.min(0)).astype(float)
            share /= share.sum(0)
            row["probability"] = dict(zip(names, map(float, share.mean(1)), strict=True))
            gaps = [drawn[i] - drawn[lowest] for i in range(len(names)) if i != lowest]
            if all(np.quantile(gap, 0.025) > 0 for gap in gaps):
                row["verdict"] = names[lowest]
        rows.append(row)
    return rows


# ---------------------------------------------------------------- crossover, multiplier


def _crossover(
    a: str,
    b: str,
    best: tuple[Frontier, Frontier],
    drawn: tuple[Frontier, Frontier] | None,
    centre: float,
    common: float | None,
) -> dict[str, Any]:
    """Budgets at which the optimal losses are equal.

    Each direction is told once: from its budget on `after` is lower, below it `before` was. A draw without that
    crossover counts as one above the searched range if `before` is lower throughout, else as one below the range: so
    the interval is of all draws, not only of those with a crossover, and a limit of it may be None.
    """
    ends = [centre * times for times in SEARCHED]
    count = int(np.log10(ends[1] / ends[0]) * PER_DECADE) + 1
    grid = np.linspace(np.log(ends[0]), np.log(ends[1]), count)
    at = [crossings(*best, grid, a_first=first) for first in (True, False)]
    many = None
    if drawn:
        usable = np.isfinite(np.stack([*drawn[0], *drawn[1]])).all(0)
        if usable.sum() >= FEWEST_RESAMPLES:
            one, other = (f.take(usable) for f in drawn)
            many = [crossings(one, other, grid, a_first=first) for first in (True, False)]
    found = []
    for i, (before, after) in enumerate(((a, b), (b, a))):
        where = float(at[i][0])
        exists = bool(np.isfinite(where) and where > 0)
        share = None
        if many is not None:
            inside = np.isfinite(many[i]) & (many[i] > 0)
            share = float(inside.mean())
        if not exists and (share is None or share < SHOWN):
            continue
        found.append(
            {
                "flops": where if exists else None,
                "ci95": None if many is None else _outer(many[i], below=0.0),
                "share": share,
                "before": before,
                "after": after,
                "extrapolated": exists and _extrapolated(where, common),
            }
        )
    share = None
    if many is not None:
        share = float(np.any([np.isfinite(m) & (m > 0) for m in many], axis=0).mean())
    return {"searched": ends, "share": share, "found": found}


def _multiplier(
    who: Frontier, whose: Frontier, flops: float, drawn: tuple[Frontier, Frontier] | None
) -> dict[str, Any]:
    """How many times the budget `who` needs for the loss that `whose` has at it; None: never reaches it.

    `drawn` are draws of `who` and of `whose`.
    """
    value = float(who.compute_for(whose.loss(flops))[0] / flops)
    ci = None
    if drawn is not None:
        times = drawn[0].compute_for(drawn[1].loss(flops)) / flops
        times = times[~np.isnan(times)]
        ci = _outer(times) if len(times) >= FEWEST_RESAMPLES else None
    return {"value": value if np.isfinite(value) else None, "ci95": ci}


def _interval(values: np.ndarray) -> list[float] | None:
    usable = values[np.isfinite(values)]
    return [float(q) for q in np.quantile(usable, [0.025, 0.975])] if len(usable) >= FEWEST_RESAMPLES else None


def _outer(values: np.ndarray, below: float | None = None) -> list[float | None]:
    """95 % of values that may be infinite, by order statistics; None for a limit that is inf or `below`."""
    ordered = np.sort(values)
    last = len(ordered) - 1
    limits = ordered[int(0.025 * last)], ordered[int(np.ceil(0.975 * last))]
    return [float(q) if np.isfinite(q) and q != below else None for q in limits]
