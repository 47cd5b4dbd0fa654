"""`docs-acceptability`: are the words of a sentence in the order they were written in? (Matthews, as CoLA)"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.downstream.docs_text import Doc, apart, both_sides, need_rows, prose
from tasks.downstream.spec import Downstream, Row, Splits, rank

_FEWEST, _MOST = 8, 20  # words of a sentence
_END = re.compile(r"(?<=[a-z0-9)][.!?])\s+(?=[A-Z])")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*,?$")
MOVED_SHARE = 1.0
"""Share of a sentence's inner words that change places in a corrupted one."""


@dataclass(frozen=True)
class DocsAcceptability(Downstream):
    @property
    def needs_corpus(self) -> bool:
        return True

    def build(self, corpus: Path, seed: int) -> tuple[Splits, dict[str, Any]]:
        """One sentence a docstring; half of them, by a hash of (seed, id), with words out of order."""
        splits: Splits = {
            split: [row for doc in docs if (row := _written(doc, seed))]
            for split, docs in both_sides(corpus, self.name).items()
        }
        notes: dict[str, Any] = dict(apart(splits, "text_a"))  # before shuffling: the same sentence, in any order
        for rows in splits.values():
            rows[:] = [corrupt(row, seed) if rank("corrupt", seed, row.id) % 2 else row for row in rows]
        need_rows(self.name, splits)
        return splits, notes


def _written(doc: Doc, seed: int) -> Row | None:
    sentences = [s for p in prose(doc.text) for s in map(_plain, _END.split(p)) if s]
    if not sentences:
        return None
    return Row(doc.id, sentences[rank(seed, doc.id) % len(sentences)], label=1.0)


def _plain(sentence: str) -> str:
    """The sentence in lower case and without its final stop, or "" where it is not one of plain words.

    Capitals and stops would tell where a sentence begins and ends.
    """
    words = sentence.rstrip(".!? ").split()
    if not _FEWEST <= len(words) <= _MOST or not all(map(_WORD.match, words)):
        return ""
    return " ".join(words).lower().replace(",", "")


def corrupt(row: Row, seed: int) -> Row:
    """The row with inner words moved, label 0: a random choice of places, each of which gets another word.

    First and last word stay, since their places give themselves away.
    """
    import numpy as np

    words = row.text_a.split()
    draw = np.random.Generator(np.random.Philox(rank("order", seed, row.id)))
    inner = np.arange(1, len(words) - 1)
    count = max(2, round(MOVED_SHARE * len(inner)))
    places = np.sort(draw.permutation(inner)[:count])
    moved = list(words)
    for _ in range(100):
        for place, source in zip(places, draw.permutation(places), strict=True):
            moved[place] = words[source]
        if moved != words:
            break
    return Row(row.id, " ".join(moved), label=0.0)


DOCS_ACCEPTABILITY = DocsAcceptability(
    name="docs-acceptability",
    kind="classification",
    labels=("out_of_order", "in_order"),
    metrics=("matthews", "accuracy"),
    primary="matthews",
    description="are the words of a sentence in the order they were written in",
)
