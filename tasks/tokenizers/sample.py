"""The text that a tokenizer learns from: drawn by hash, read as often as wanted, counted in parallel.

A text is drawn in blocks of at most 64K characters, each by a hash of its content: so a corpus of a few books gives
a sample of the wanted size, too, no line is too long for a trainer, and the sample is the same in every process and
whatever the order of the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cluster.parallel import map_ordered
from tasks.corpus_reader import split_bytes

BLOCK = 1 << 16  # characters

Result = TypeVar("Result")


class Sample:
    """Texts that may be read again; `map` goes over them in parts. This one is of texts in memory."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = list(texts)

    @classmethod
    def of(cls, sample: Iterable[str]) -> Sample:
        """`sample` itself, or one of the texts in it."""
        return sample if isinstance(sample, Sample) else cls(sample)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def map(self, work: Callable[[Iterable[str]], Result]) -> Iterator[Result]:
        """`work` of the texts of each part, in order.

        Args:
            work: a picklable pure function.
        """
        yield work(self)


class CorpusSample(Sample):
    """About `wanted` bytes of a corpus's training split; parts are row groups (8 MB), read where the work is.

    parallel: whether parts are counted by several workers; not where this runs in one of several itself.
    """

    def __init__(self, folder: Path, wanted: int, parallel: bool = True) -> None:
        self.folder, self.parallel = folder, parallel
        self.share = min(1.0, wanted / max(1, split_bytes(folder, "train")))

    def __iter__(self) -> Iterator[str]:
        for part in self._parts():
            yield from part

    def map(self, work: Callable[[Iterable[str]], Result]) -> Iterator[Result]:
        return map_ordered(work, self._parts(), here=True) if self.parallel else map(work, self._parts())

    def _parts(self) -> Iterator[Part]:
        import pyarrow.parquet as pq

        for shard in sorted(self.folder.glob("train-*.parquet")):
            for group in range(pq.read_metadata(shard).num_row_groups):
                yield Part(shard, group, self.share)


@dataclass(frozen=True)
class Part:
    """The drawn blocks of one row group. Iterating reads them, a few rows at a time."""

    shard: Path
    group: int
    share: float

    def __iter__(self) -> Iterator[str]:
        from zlib import crc32

        import pyarrow.parquet as pq

        with pq.ParquetFile(self.shard, pre_buffer=False) as file:
            for batch in file.iter_batches(256, row_groups=[self.group], columns=["text"]):
                for text in batch.column(0).to_pylist():
                    for block in blocks(text):
                        if self.share >= 1 or crc32(block.encode()) < self.share * 2**32:
                            yield block


def blocks(text: str) -> Iterator[str]:
    """A text in pieces of at most `BLOCK` characters, cut before white space where there is some.

    >>> [len(block) for block in blocks("word " * 20_000)]
    [65534, 34466]
    """
    start = 0
    while len(text) - start > BLOCK:
        end = start + BLOCK
        cut = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
        end = cut if cut > start else end
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def count(sample: Iterable[str], of: Callable[[Iterable[str]], dict[str, int]]) -> dict[str, int]:
    """The sums of what `of` counts in each part of a sample."""
    total: dict[str, int] = {}
    for counts in Sample.of(sample).map(of):
        for item, number in counts.items():
            total[item] = total.get(item, 0) + number
    return total


def count_letters(sample: Iterable[str], normalizer: Any = None) -> dict[str, int]:
    """{character: how often it stands in the sample}; in words alone, and normalised, where there is a normaliser."""
    return count(sample, partial(_letters, normalizer))


def count_words(sample: Iterable[str], normalizer: Any) -> dict[str, int]:
    """{word between white space, normalised: how often it stands in the sample}."""
    return count(sample, partial(_words, normalizer))


def _letters(normalizer: Any, texts: Iterable[str]) -> dict[str, int]:
    from collections import Counter

    counts: Counter[str] = Counter()
    if normalizer is None:
        for text in texts:
            counts.update(text)
        return dict(counts)
    words: Counter[str] = Counter()
    for text in texts:
        words.update(text.split())
    for word, number in words.items():
        for letter in normalizer.normalize_str(word):
            counts[letter] += number
    return dict(counts)


def _words(normalizer: Any, texts: Iterable[str]) -> dict[str, int]:
    from collections import Counter

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text).split())
    return dict(counts)
