"""Files of measurements, or the values of a column, as variants: each fitted by itself, then compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import BadConfig, UserError
from tasks.scaling.compare import compare
from tasks.scaling.estimate import Fit
from tasks.scaling.fit import as_json, fit_all, fit_names
from tasks.scaling.laws import Law, law_of
from tasks.scaling.point_files import STANDARD, Columns, read_points, read_variants
from tasks.scaling.points import Points
from tasks.scaling.slots import on_one_plan

APPROACHES = ("approach_3", "approach_2", "approach_1")
"""Those that say which size is optimal; the first alone says what it loses."""


@dataclass(frozen=True)
class Fitted:
    """One variant with its fits."""

    points: Points
    found: dict[str, Fit]
    refused: dict[str, UserError]

    def as_json(self) -> dict[str, Any]:
        return as_json(self.points, self.found, self.refused)


def read_all(
    path: str,
    others: Sequence[str] = (),
    by: str | None = None,
    columns: Columns = STANDARD,
    where: Sequence[str] = (),
    *,
    skip_invalid: bool = False,
) -> dict[str, Points]:
    """{variant: measurements}: of each file by its name, or of one file by the values of a column.

    Raises:
        BadConfig: both are asked for, or a file stands twice; and what reading raises.
        BadData: what reading raises.
    """
    if by is not None and others:
        raise BadConfig("--by and --compare are both given", "split one file, or compare several")
    if by is not None:
        return read_variants(path, by, columns, where, skip_invalid=skip_invalid)
    paths = [path, *others]
    if twice := [p for i, p in enumerate(paths) if Path(p).expanduser().resolve() in _resolved(paths[:i])]:
        raise BadConfig(f"--compare {twice[0]}: this file is compared already", "name another one")
    stems = [Path(p).stem for p in paths]
    names = stems if len(set(stems)) == len(stems) else paths
    read = [read_points(p, columns, where, skip_invalid=skip_invalid) for p in paths]
    return dict(zip(names, read, strict=True))


def _resolved(paths: Sequence[str]) -> set[Path]:
    return {Path(p).expanduser().resolve() for p in paths}


def fit_variants(variants: Mapping[str, Points], approach: str, *, bootstrap: int, seed: int) -> dict[str, Fitted]:
    """Each variant's fits; draws of variants of the same sizes and tokens go together (`tasks.scaling.pairing`).

    Raises:
        UserError: what `fit_all` raises, with the variant's name before it where there are several.
    """
    out: dict[str, Fitted] = {}
    for name, points in (on_one_plan(variants) if len(variants) > 1 else variants).items():
        try:
            found, refused = fit_all(points, fit_names(approach, points), bootstrap=bootstrap, seed=seed)
        except UserError as error:
            if len(variants) == 1:
                raise
            raise type(error)(f"{name}: {error.message}", error.remedy) from None
        out[name] = Fitted(points, found, refused)
    return out


def laws_of(fitted: Mapping[str, Fitted], approach: str) -> dict[str, Law]:
    """{variant: its law by one approach}, of those that have it."""
    return {
        name: law_of(
            each.found[approach],
            each.points.source,
            float(each.points.flops.max()),
            each.points.unit,
            each.points.flops_factor,
        )
        for name, each in fitted.items()
        if approach in each.found
    }


def compare_fits(
    fitted: Mapping[str, Fitted], *, comparable: bool, budgets: Sequence[float] | None = None
) -> dict[str, dict[str, Any]]:
    """{approach: what `compare` says}, for each approach that two variants or more have.

    Raises:
        BadConfig: there is none; and what `compare` raises.
    """
    out = {}
    for approach in APPROACHES:
        laws = laws_of(fitted, approach)
        if len(laws) > 1:
            found = compare(laws, comparable=comparable, budgets=budgets)
            left = {name: each.refused.get(approach) for name, each in fitted.items() if name not in laws}
            found["warnings"] += [
                f"{name} has no fit of {approach.replace('_', ' ')} and is left out"
                + (f": {why.message}" if why else "")
                for name, why in left.items()
            ]
            out[approach] = found
    if not out:
        raise BadConfig(
            "no two variants have a fit of the same approach of 1, 2 and 3: nothing can be compared",
            "take --approach 3 or all, and see what each file alone allows",
        )
    return out
