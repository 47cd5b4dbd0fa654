"""Measurements of trained models, checked: parameters, tokens, FLOPs, loss.

Two of params, tokens and flops are enough: the third follows from C = 6·N·D (Kaplan et al. 2020, section 2.1). Where
all three are given, the given FLOPs are believed, since counts differ by what they leave out (attention, the output
layer), and that moves exponents (Porian et al. 2024). `tasks.scaling.point_files` reads them from files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cluster.errors import BadData
from tasks.scaling.ladder import FRESH_EPOCHS
from tasks.scaling.slots import Slots

NUMBERS = ("params", "tokens", "flops", "loss", "unique_tokens")
SHOWN = 5
"""Rows that a message names."""
REACH = (1e-60, 1e60)
"""What a measurement may be: products and powers of numbers beyond are no floats."""


@dataclass(frozen=True)
class Points:
    """Checked measurements; every array has one entry a point, float64, all numbers positive and finite."""

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    """In `unit`; fits keep it."""
    lines: np.ndarray
    """The point's line in the file, the header being line 1."""
    unique_tokens: np.ndarray | None = None
    """Tokens of the data without repetition; `tokens` counts every epoch."""
    run: np.ndarray | None = None
    """Whose training curve a point is on."""
    slots: Slots | None = None
    unit: str = ""
    """Of the losses, as the file says it; empty: it does not, and nats per token are meant."""
    flops_given: bool = False
    source: str = ""
    digest: str = ""
    """BLAKE2b of the file's bytes."""
    warnings: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def flops_factor(self) -> float:
        """C / (N·D), the median: 6, where the file does not count otherwise."""
        return float(np.median(self.flops / (self.params * self.tokens))) if self.flops_given else 6.0

    def take(self, chosen: np.ndarray) -> Points:
        """Some of the points."""
        arrays = {
            name: None if (column := getattr(self, name)) is None else column[chosen]
            for name in (*NUMBERS, "lines", "run")
        }
        slots = self.slots and self.slots._replace(at=self.slots.at[chosen])
        return replace(self, **arrays, slots=slots)

    def named(self, chosen: np.ndarray) -> str:
        """The lines of some points, for a message."""
        lines = [str(n) for n in self.lines[chosen]]
        return "line " + ", ".join(lines[:SHOWN]) + (f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")


def points_of(loss: Any, *, params: Any = None, tokens: Any = None, flops: Any = None, **more: Any) -> Points:
    """Points from arrays; one of params, tokens and flops may be left out.

    Raises:
        BadData: a value is not positive and finite.
    """
    given = {
        "params": params,
        "tokens": tokens,
        "flops": flops,
        "loss": loss,
        "unique_tokens": more.pop("unique_tokens", None),
    }
    values = {name: None if v is None else np.asarray(v, dtype=float) for name, v in given.items()}
    lines = np.asarray(more.pop("lines", np.arange(2, len(values["loss"]) + 2)))
    return checked_points(values, lines, **more)


def checked_points(
    values: dict[str, np.ndarray | None],
    lines: np.ndarray,
    *,
    run: np.ndarray | None = None,
    unit: str = "",
    source: str = "",
    digest: str = "",
    warnings: Sequence[str] = (),
) -> Points:
    """Points of columns by name (None: not given); `lines` and `source` are what messages name, `warnings` come first.

    Raises:
        BadData: a value is not positive and finite, or beyond `REACH`, or too few columns are given.
    """
    told = list(warnings)
    for name, column in values.items():
        if column is not None and not (np.isfinite(column) & (column > 0)).all():
            bad = int(np.flatnonzero(~(np.isfinite(column) & (column > 0)))[0])
            raise BadData(
                f"{source or 'measurements'}, line {lines[bad]}: {name} is {column[bad]}, expected a positive number"
            )
        if column is not None and ((column < REACH[0]) | (column > REACH[1])).any():
            bad = int(np.flatnonzero((column < REACH[0]) | (column > REACH[1]))[0])
            raise BadData(
                f"{source or 'measurements'}, line {lines[bad]}: {name} is {column[bad]:g}, expected a number between "
                f"{REACH[0]:g} and {REACH[1]:g}",
                "is it the right column, in the right unit?",
            )
    params, tokens, flops, loss = (values[n] for n in ("params", "tokens", "flops", "loss"))
    if loss is None or sum(v is not None for v in (params, tokens, flops)) < 2:
        raise BadData("loss and two of params, tokens and flops are needed")
    given = flops is not None
    if params is None:
        params = flops / (6 * tokens)
    elif tokens is None:
        tokens = flops / (6 * params)
    elif flops is None:
        flops = 6 * params * tokens
    elif (off := float(np.median(flops / (6 * params * tokens)))) > 1.1 or off < 0.9:
        told.append(f"flops are {off:.2f} times 6·params·tokens (median): the file's own count is used")
    points = Points(
        params=params, tokens=tokens, flops=flops, loss=loss, lines=lines, unique_tokens=values.get("unique_tokens"),
        run=run, unit=unit, flops_given=given, source=source, digest=digest,
    )  # fmt: skip
    points, more = _once(points)
    if points.unique_tokens is not None and (often := int((points.tokens > FRESH_EPOCHS * points.unique_tokens).sum())):
        told.append(
            f"{often} of {len(points)} runs saw their text more than {FRESH_EPOCHS} times: the data-constrained form "
            "alone knows repeated tokens from new ones"
        )
    return replace(points, warnings=(*told, *more))


def _once(points: Points) -> tuple[Points, list[str]]:
    """Exact duplicates count once; equal models whose losses lie apart are told."""
    told = []
    known = [points.params, points.tokens, points.flops, points.loss]
    if points.unique_tokens is not None:
        known.append(points.unique_tokens)
    _, first = np.unique(np.column_stack(known), axis=0, return_index=True)
    if len(first) < len(points):
        again = np.ones(len(points), bool)
        again[first] = False
        told.append(
            f"duplicates: {again.sum()} rows repeat others exactly and count once "
            f"({points.named(np.flatnonzero(again))})"
        )
        points = points.take(np.sort(first))
    key = [points.params, points.tokens] + ([points.unique_tokens] if points.unique_tokens is not None else [])
    _, group = np.unique(np.column_stack(key), axis=0, return_inverse=True)
    group = group.ravel()
    log_loss = np.log(points.loss)
    high, low = np.full(group.max() + 1, -np.inf), np.full(group.max() + 1, np.inf)
    np.maximum.at(high, group, log_loss)
    np.minimum.at(low, group, log_loss)
    if (apart := (high - low)[group]).max() > 0.03:
        wide = np.flatnonzero(apart > 0.03)
        told.append(
            f"mixed data? {len(wide)} points share params and tokens with others, and their losses differ by up to "
            f"{100 * (math.exp(apart.max()) - 1):.0f} %: more than seeds do ({points.named(wide)})"
        )
    return points, told
