"""What a downstream task is: a description, and a way to its labelled rows. Light: plans import it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One labelled example. For spans `text_a` is the question and `answer_starts` count characters of `text_b`."""

    id: str
    text_a: str
    text_b: str | None = None
    label: float | None = None
    answers: tuple[str, ...] = ()
    answer_starts: tuple[int, ...] = ()


Splits = dict[str, list[Row]]
"""{"train": rows, "validation": rows, and further splits that have labels}"""


@dataclass(frozen=True)
class Downstream:
    """Facts of a task that do not depend on its data. Subclasses say where the rows come from.

    `published` maps a system to its figure on the *hidden test set*, as a share (0.521 for 52.1), in
    the metric `published_metric`: a landmark, not a like-for-like comparison with our validation split.
    """

    name: str
    kind: str  # classification | regression | span
    metrics: tuple[str, ...]
    primary: str
    description: str
    labels: tuple[str, ...] = ()
    balanced: bool = False  # a few labels are drawn equally from each class
    symmetric: bool = False  # a pair says the same in either order
    published: Mapping[str, float] = field(default_factory=dict)
    published_metric: str = ""

    @property
    def needs_corpus(self) -> bool:
        """True where the task labels the corpus of the run by itself; otherwise it reads files of its own."""
        return False

    def fingerprints(self, directory: str) -> Mapping[str, Any]:
        """What identifies the task's own files (see `Task.external`); raises BadConfig where they are missing."""
        return {}

    def read(self, directory: str) -> tuple[Splits, dict[str, Any]]:
        """Rows by split and notes for dataset.json, from files. Tasks with `needs_corpus` have `build` instead."""
        raise NotImplementedError

    def build(self, corpus: Path, seed: int) -> tuple[Splits, dict[str, Any]]:
        """Rows by split and notes for dataset.json, from a corpus artifact's folder."""
        raise NotImplementedError


def rank(*parts: object) -> int:
    """A 64-bit number that depends on the parts alone: the seed of every choice about a row."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


def choose(rows: Sequence[Row], count: int, seed: int, balanced: bool = False) -> list[Row]:
    """`count` rows (0: all) in a shuffled order that is a pure function of (seed, ids).

    Fewer rows are always a subset of more. Rows with the same id up to a `#` (questions on one text) stay
    together. `balanced` takes as many of each label, as far as they go.
    """
    ordered = sorted(rows, key=lambda row: (rank(seed, row.id.partition("#")[0]), row.id))
    if not count or count >= len(ordered):
        return ordered
    if not balanced:
        return ordered[:count]
    turn: dict[float | None, int] = {}
    dealt = []
    for place, row in enumerate(ordered):
        turn[row.label] = turn.get(row.label, -1) + 1
        dealt.append((turn[row.label], place))
    return [ordered[place] for place in sorted(place for _, place in sorted(dealt)[:count])]


def hold_out(rows: Sequence[Row], share: float, group: str = "text_a") -> tuple[list[Row], list[Row]]:
    """Split rows into (kept, held out) by a hash of one text field, so that equal texts stay together."""
    cut = int(share * 2**64)
    held = [rank("hold out", getattr(row, group)) < cut for row in rows]
    return ([r for r, h in zip(rows, held, strict=True) if not h], [r for r, h in zip(rows, held, strict=True) if h])
