"""Several sets of points as parts of one plan, whose places are resampled as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tasks.scaling.points import Points

SAME = 0.02
"""Largest difference of log N or log D between runs that count as the same: a norm more or less is no other size."""


class Slots(NamedTuple):
    """Places of points in a plan."""

    at: np.ndarray
    """[points] the place of each, none twice."""
    count: int
    """Of the whole plan."""
    plan: str
    """A digest of it."""


def on_one_plan(variants: Mapping[str, Points]) -> dict[str, Points]:
    """The same points, which know their places in a common plan where most of them are of the same sizes and tokens.

    The plan is all that any of the variants ran; one that lacks some of it, by a pruned sweep or a lost run, is drawn
    together with the others all the same. Runs of one size and as many tokens (seeds) take a place each.
    """
    plans: list[np.ndarray] = []
    places: dict[str, tuple[int, np.ndarray]] = {}
    for name, points in variants.items():
        design = np.log(np.column_stack([points.params, points.tokens]))
        for number, plan in enumerate(plans):
            at = _places(design, plan)
            if (at >= 0).sum() * 2 >= min(len(plan), len(design)):
                fresh = at < 0
                at[fresh] = len(plan) + np.arange(fresh.sum())
                plans[number] = np.concatenate([plan, design[fresh]])
                places[name] = number, at
                break
        else:
            plans.append(design)
            places[name] = len(plans) - 1, np.arange(len(design))
    digests = [hashlib.blake2b(plan.tobytes(), digest_size=16).hexdigest() for plan in plans]
    return {
        name: replace(variants[name], slots=Slots(at, len(plans[number]), digests[number]))
        for name, (number, at) in places.items()
    }


def _places(design: np.ndarray, plan: np.ndarray) -> np.ndarray:
    """The nearest free place of each point; -1: none is near."""
    apart = np.abs(design[:, None] - plan[None]).max(2)
    at = np.full(len(design), -1)
    for i in range(len(design)):
        nearest = int(apart[i].argmin())
        if apart[i, nearest] <= SAME:
            at[i] = nearest
            apart[:, nearest] = np.inf
    return at
