"""Runs a cleaning step that compares documents, without the stage around it; and texts with known similarities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tasks.base import Runtime
from tasks.cleaning.base import CorpusStep, Documents, Verdict
from tests.tasks.stage import FolderContext


def compared(
    step: CorpusStep,
    texts: Sequence[str],
    validation: Sequence[bool] | None = None,
    slice_: int = 7,
    runtime: Runtime | None = None,
) -> tuple[list[Verdict], dict[str, Any]]:
    """(verdicts of all texts, facts): signed in slices, decided, and the decision applied slice by slice."""
    validation = [False] * len(texts) if validation is None else validation
    slices = [
        Documents(texts[first : first + slice_], first, validation[first : first + slice_])
        for first in range(0, len(texts), slice_)
    ]
    with TemporaryDirectory() as folder:
        context = FolderContext(Path(folder, "out"), runtime or Runtime(), {})
        decided = step.decide((step.sign(each) for each in slices), context)
        left = [str(path) for path in context.work.rglob("*") if path.is_file()]
        assert not left, left
    verdicts = [v for each in slices for v in decided.slice(each.first, len(each.texts)).verdicts(each)]
    return verdicts, dict(decided.facts)


def kept(verdicts: Sequence[Verdict]) -> list[str]:
    return [verdict.text for verdict in verdicts if verdict.text is not None]


def words_of(numbers: np.ndarray) -> str:
    return " ".join(f"w{n}" for n in numbers.tolist())


def planted(draw: np.random.Generator, words: int, changed: int) -> tuple[str, str]:
    """Two texts of `words` different words, of which `changed` far apart differ: each is in 5 shingles of 5 words."""
    numbers = draw.choice(1 << 40, words + changed, replace=False)
    one, two = numbers[:words].copy(), numbers[:words].copy()
    at = np.linspace(5, words - 6, changed).astype(int)
    two[at] = numbers[words:]
    return words_of(one), words_of(two)


def jaccard(left: str, right: str, n: int = 5) -> float:
    """Exact Jaccard similarity of the sets of n consecutive words."""

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or {tuple(words)}

    one, two = shingles(left), shingles(right)
    return len(one & two) / len(one | two)
