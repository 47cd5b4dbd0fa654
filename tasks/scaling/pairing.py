"""Which draws of two fits go together: those of runs of the same sizes and tokens, resampled alike.

Where the form of a law is wrong, its estimate depends on which points were drawn, and fits of two variants to one grid
move together. Drawn together that leaves their difference; drawn apart it hides it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from tasks.scaling.laws import Law


def together(laws: Mapping[str, Law]) -> dict[str, str]:
    """{variant: the first name, by the alphabet, of those that were resampled with it}."""
    members: list[list[str]] = []
    for name in sorted(laws):
        group = next((g for g in members if drawn_alike(laws[g[0]], laws[name])), None)
        if group is None:
            members.append([name])
        else:
            group.append(name)
    return {name: group[0] for group in members for name in group}


def drawn_alike(one: Law, other: Law) -> bool:
    """Whether each draw of both laws is a fit to the same runs, by size and tokens."""
    counts = {len(column) for law in (one, other) for column in law.draws.values()}
    return one.resampled is not None and one.resampled == other.resampled and len(counts) == 1


def shuffled(group: str, law: Law) -> dict[str, np.ndarray]:
    """The draws in an order that only the group's name decides.

    Two fits with one seed resample the same places of their files, so that draws at one index go together even where
    the places hold other models.
    """
    if not law.draws:
        return {}
    count = min(len(column) for column in law.draws.values())
    seed = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "little")
    order = np.random.Generator(np.random.Philox(seed)).permutation(count)
    return {key: np.asarray(column, dtype=float)[order] for key, column in law.draws.items()}
