"""The documents of a mixture: measured in workers, chosen by their digest, interleaved in the mixture's proportions.

A document's digest is BLAKE2b of its text, keyed by the mixture's seed; its first 16 bits are its *bucket*. A pass over
a component takes the documents whose bucket is below a limit: all of them where the limit is `BUCKETS`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.parallel import in_ray
from tasks.base import Context
from tasks.shards import Shard, saved_map
from tasks.vocabulary import load_tokenizer

BUCKETS = 1 << 16
MEASURES = ("documents", "bytes", "characters", "words", "tokens")
_COLUMNS = ("id", "text", "meta")
_PERSON = b"mixture"  # a digest of its own: `tasks.sources.batches.split_draw` is that of no salt, and so of seed 0


class Measured(NamedTuple):
    """A split of a component.

    sizes: int64 [BUCKETS, len(MEASURES)], of the documents in each bucket. digests: uint64 [documents].
    left_out: documents whose text is held out elsewhere; they are in no bucket.
    """

    sizes: np.ndarray
    digests: np.ndarray
    left_out: int

    def taken(self, limits: Sequence[int]) -> dict[str, int]:
        """{measure: sum} of what the passes with these limits give together."""
        rows = [self.sizes[:limit].sum(axis=0) for limit in limits]
        return dict(zip(MEASURES, map(int, sum(rows)), strict=True)) if rows else dict.fromkeys(MEASURES, 0)


class Count(NamedTuple):
    """Measures the documents of a row group; sent to the workers. tokenizer_json: empty where tokens do not count."""

    seed: int
    tokenizer_json: str = ""

    def rows(self, texts: Any) -> Shard:
        """A row for each text (an Arrow array of strings): digest and the measures but `documents`."""
        import pyarrow as pa
        import pyarrow.compute as pc

        decoded = texts.to_pylist()
        columns = {
            "digest": pa.array(digests_of(texts, self.seed)),
            "bytes": pc.binary_length(texts).cast(pa.int64()),
            "characters": pc.utf8_length(texts).cast(pa.int64()),
            "words": pa.array([len(text.split()) for text in decoded], pa.int64()),
            "tokens": pa.array(self._tokens(decoded), pa.int64()),
        }
        return Shard(pa.table(columns), {})

    def _tokens(self, texts: list[str]) -> list[int]:
        if not self.tokenizer_json:
            return [0] * len(texts)
        if in_ray():
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core per Ray task; the tasks are the parallelism
        encoded = load_tokenizer(self.tokenizer_json).encode_batch_fast(texts, add_special_tokens=False)
        return [len(each.ids) for each in encoded]


def digests_of(texts: Any, seed: int) -> np.ndarray:
    """uint64 [N]: the digest of each text of an Arrow array of strings."""
    import pyarrow as pa

    salt = seed.to_bytes(8, "big")
    raw = texts.cast(pa.binary()).to_pylist()
    joined = b"".join(blake2b(text, digest_size=8, salt=salt, person=_PERSON).digest() for text in raw)
    return np.frombuffer(joined, dtype=">u8").astype(np.uint64)


class Place(NamedTuple):
    """Where a component's documents are: all of a corpus folder, or those whose `source` it is."""

    folder: Path
    source: str = ""


def row_groups(place: Place, split: str, columns: Sequence[str]) -> Iterator[Any]:
    """Arrow tables of a split's row groups, in order: some MB of text each, whatever the documents' size.

    Row groups without a document of the place's source cost the reading of their sources only.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for shard in sorted(place.folder.glob(f"{split}-*.parquet")):
        with pq.ParquetFile(shard, pre_buffer=False) as file:
            for number in range(file.num_row_groups):
                if not place.source:
                    yield file.read_row_group(number, columns=list(columns))
                    continue
                own = pc.equal(file.read_row_group(number, columns=["source"]).column(0), place.source)
                if pc.any(own).as_py():
                    yield file.read_row_group(number, columns=list(columns)).filter(own)


def measure(ctx: Context, name: str, place: Place, split: str, count: Count, held_out: np.ndarray) -> Measured:
    """Measure a split in parallel; what is finished outlives a crash.

    Args:
        name: of the pass, one per component and split.
        held_out: uint64, sorted: digests of documents that do not count.
    """
    sizes = np.zeros((BUCKETS, len(MEASURES)), dtype=np.int64)
    digests: list[np.ndarray] = []
    left_out = 0
    texts = (table.column("text").combine_chunks() for table in row_groups(place, split, ["text"]))
    for shard in saved_map(ctx, name, texts, count.rows):
        own = shard.table.column("digest").to_numpy()
        keep = ~_among(own, held_out)
        left_out += int(len(keep) - keep.sum())
        buckets = _buckets(own)[keep]
        sizes[:, 0] += np.bincount(buckets, minlength=BUCKETS)
        for number, column in enumerate(MEASURES[1:], start=1):
            np.add.at(sizes[:, number], buckets, shard.table.column(column).to_numpy()[keep])
        digests.append(own.copy())
    return Measured(sizes, np.concatenate(digests) if digests else np.empty(0, np.uint64), left_out)


def documents(
    place: Place, split: str, name: str, limits: Sequence[int], seed: int, held_out: np.ndarray
) -> Iterator[Any]:
    """A component's part of the mixture: tables of id, text, source (its name) and meta, pass after pass.

    Documents of the second pass and later ones have `#2`, `#3`, … after their id.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    for number, limit in enumerate(limits, start=1):
        for table in row_groups(place, split, _COLUMNS):
            own = digests_of(table.column("text").combine_chunks(), seed)
            keep = (_buckets(own) < limit) & ~_among(own, held_out)
            if not keep.any():
                continue
            kept = table if keep.all() else table.filter(pa.array(keep))
            ids = kept.column("id")
            if number > 1:
                ids = pc.binary_join_element_wise(ids, f"#{number}", "")
            sources = pa.DictionaryArray.from_arrays(np.zeros(len(kept), np.int32), [name]).cast(pa.string())
            yield pa.table({"id": ids, "text": kept.column("text"), "source": sources, "meta": kept.column("meta")})


def interleave(streams: Sequence[Iterator[Any]], sizes: Sequence[int]) -> Iterator[Any]:
    """Merge streams of tables so that each is, at any place, equally far through its `sizes` bytes of text.

    So every stretch of what comes out has the proportions of `sizes`: the next document is always of the stream that
    lags most behind (the first of them, where several do). Of each stream one table or so is held.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    held: list[list[tuple[np.ndarray, Any]]] = [[] for _ in streams]  # (how far the stream is before each row, table)
    read = [0] * len(streams)
    open_ = dict(enumerate(map(iter, streams)))
    while open_:
        lagging = min(open_, key=lambda i: (read[i] / max(1, sizes[i]), i))
        table = next(open_[lagging], None)
        if table is None:
            del open_[lagging]
        else:
            ends = read[lagging] + np.cumsum(pc.binary_length(table.column("text")).to_numpy().astype(np.int64))
            starts = np.concatenate([[read[lagging]], ends[:-1]])
            held[lagging].append((starts / max(1, sizes[lagging]), table))
            read[lagging] = int(ends[-1])
        # what comes before all that is still to be read
        horizon = min((read[i] / max(1, sizes[i]) for i in open_), default=np.inf)
        places, order, ready = [], [], []
        for number, tables in enumerate(held):
            while tables:
                at, rows = tables.pop(0)
                due = int(np.searchsorted(at, horizon))
                if due:
                    places.append(at[:due])
                    order.append(np.full(due, number))
                    ready.append(rows.slice(0, due))
                if due < len(at):
                    tables.insert(0, (at[due:], rows.slice(due)))
                    break
        if ready:
            chosen = np.lexsort((np.concatenate(order), np.concatenate(places)))
            yield pa.concat_tables(ready).combine_chunks().take(pa.array(chosen))


def _buckets(digests: np.ndarray) -> np.ndarray:
    return (digests >> np.uint64(48)).astype(np.int64)


def _among(digests: np.ndarray, sorted_: np.ndarray) -> np.ndarray:
    """Which digests are in a sorted array."""
    if not len(sorted_):
        return np.zeros(len(digests), dtype=bool)
    found = np.searchsorted(sorted_, digests)
    return sorted_[np.minimum(found, len(sorted_) - 1)] == digests
