"""Comparing candidate pairs: what is known of each document, in files; and the search that joins similar ones.

Memory is 8 bytes a document, and what a few thousand pairs need while they are compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.cleaning.clusters import Clusters, Ints
from tasks.cleaning.minhash import similarity

ALL_PAIRS = 16
"""Documents in a bucket up to which all pairs are compared."""
LEADERS = 16
"""In a larger bucket a document is compared with so many leaders: the first, the first that is unlike it, and so on."""
DOUBT = 4.0
"""Standard deviations: an estimate that is further from the threshold decides without a look at the shingles."""
_PAIRS = 1 << 12  # whose signatures are compared at a time
_HELD = 1 << 16  # documents of a bucket whose records are read once
_SHINGLES = 1 << 20  # that are compared at a time, but for one pair of longer documents

Bools = np.ndarray[Any, np.dtype[np.bool_]]


class Search:
    """Compares the documents of buckets and joins those that are similar.

    Args:
        records: of all documents that `compare` will name.
        threshold: Jaccard similarity from which on two are joined.
        exact: look at the sets of shingles where the signatures leave doubt.
    """

    def __init__(self, records: Records, threshold: float, *, exact: bool) -> None:
        self.records, self.threshold = records, threshold
        doubt = max(DOUBT * (threshold * (1 - threshold) / records.values) ** 0.5, 3 / records.values)
        self.surely, self.surely_not = threshold + doubt, threshold - doubt
        self.exact = exact
        self.clusters = Clusters()
        self.pairs = self.hubs = 0

    def compare(self, groups: pa.Table) -> None:
        """What `together` made of one partition."""
        keys = groups.column("key").to_numpy()
        documents = groups.column("document").to_numpy().astype(np.int64)
        if not len(keys):
            return
        self.clusters.grow(self.records.documents)
        begins = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        sizes = np.diff(np.append(begins, len(keys)))
        large = sizes > ALL_PAIRS
        small = np.repeat(~large, sizes)
        for distance in range(1, ALL_PAIRS):
            first = np.flatnonzero((keys[distance:] == keys[:-distance]) & small[distance:])
            if not len(first):
                break
            self.pairs += len(first)
            self._join(documents[first], documents[first + distance])
        for begin, size in zip(begins[large].tolist(), sizes[large].tolist(), strict=True):
            self.hubs += 1
            self._hub(documents[begin : begin + size])

    def _join(self, left: Ints, right: Ints) -> None:
        for begin in range(0, len(left), _PAIRS):
            one, two = left[begin : begin + _PAIRS], right[begin : begin + _PAIRS]
            apart = self.clusters.roots(one) != self.clusters.roots(two)  # the others need no comparing
            one, two = one[apart], two[apart]
            alike = self._alike(self.records.rows(one), self.records.rows(two))
            self.clusters.join(one[alike], two[alike])

    def _hub(self, rest: Ints) -> None:
        """A bucket where all pairs would be too many: a boilerplate shared by thousands of documents.

        Who is like a leader is out; so a bucket of near duplicates costs one comparison each, and one of documents that
        share only the boilerplate `LEADERS` each. Decided by these comparisons alone, not by what other buckets joined:
        the outcome must not depend on the order of partitions.
        """
        held = self.records.rows(rest) if len(rest) <= _HELD else None
        for _ in range(LEADERS):
            if len(rest) < 2:
                return
            leader, rest = rest[:1], rest[1:]
            first = self.records.rows(leader)
            held = None if held is None else held[1:]
            self.pairs += len(rest)
            alike = np.zeros(len(rest), dtype=bool)
            for begin in range(0, len(rest), _PAIRS):
                some = slice(begin, begin + _PAIRS)
                rows = self.records.rows(rest[some]) if held is None else held[some]
                alike[some] = self._alike(np.repeat(first, len(rows)), rows)
            self.clusters.join(np.repeat(leader, int(alike.sum())), rest[alike])
            rest = rest[~alike]
            held = None if held is None else held[~alike]

    def _alike(self, one: np.ndarray, two: np.ndarray) -> Bools:
        """Whether each pair of records is similar: bool [P]. Depends on the two texts alone."""
        estimate = similarity(one["signature"], two["signature"])
        if not self.exact:
            return np.asarray(estimate >= self.threshold - 1e-9)
        alike = np.asarray(estimate >= self.surely)
        open_ = np.flatnonzero(~alike & (estimate > self.surely_not))
        one, two = one[open_], two[open_]
        sizes = np.cumsum(one["size"].astype(np.int64) + two["size"])
        begin = 0
        while begin < len(open_):
            before = int(sizes[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(sizes, before + _SHINGLES, side="right")))
            alike[open_[begin:end]] = self._jaccard(one[begin:end], two[begin:end]) >= self.threshold - 1e-9
            begin = end
        return alike

    def _jaccard(self, left: np.ndarray, right: np.ndarray) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Exact similarity of the sets of shingles of records: [P]."""
        one, two = self._sets(left), self._sets(right)
        both = np.sort(np.concatenate([one, two]))
        shared = both[1:][both[1:] == both[:-1]]
        sizes = [
            np.bincount((each >> np.uint64(32)).astype(np.int64), minlength=len(left)) for each in (one, two, shared)
        ]
        return np.asarray(sizes[2] / (sizes[0] + sizes[1] - sizes[2]))

    def _sets(self, rows: np.ndarray) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """The shingles of all records: place in `rows`, in the upper half, and hash, each once."""
        sets = [np.uint64(place << 32) | hashes for place, hashes in enumerate(self.records.shingles(rows))]
        every = np.sort(np.concatenate(sets))  # np.unique's hash table takes ten times as long
        return every[np.append(True, every[1:] != every[:-1])]


class Records:
    """What is known of each document, in files of `folder`; documents without a word have no signature.

    Args:
        folder: for the files; they have no names, so they are gone with this object.
        values: of a signature.
    """

    def __init__(self, folder: Path, values: int) -> None:
        self.values = values
        self.kind = np.dtype(
            [("digest", "<u8"), ("begin", "<u8"), ("size", "<u4"), ("validation", "?"), ("signature", "<u2", (values,))]
        )
        self.file, self.shingle_file = _nameless(folder / "records"), _nameless(folder / "shingles")
        self.documents = 0
        self._shingles = 0  # written

    def kept(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The same tables, kept on their way; with only the columns that an exchange needs."""
        for table in tables:
            if len(table):
                self._keep(table)
                yield table.select(["document", "digest", "signature"])

    def _keep(self, table: pa.Table) -> None:
        documents = table.column("document").to_numpy().astype(np.int64)
        first, last = int(documents[0]), int(documents[-1])
        lists = table.column("shingles").combine_chunks()
        sizes = np.diff(lists.offsets.to_numpy())
        rows = np.zeros(last + 1 - first, dtype=self.kind)
        at = documents - first
        rows["digest"][at] = table.column("digest").to_numpy()
        rows["validation"][at] = table.column("validation").to_numpy(zero_copy_only=False)
        rows["signature"][at] = signatures_of(table)
        rows["begin"][at], rows["size"][at] = self._shingles + np.cumsum(sizes) - sizes, sizes
        self.file.seek(first * self.kind.itemsize)
        self.file.write(rows.tobytes())
        self.shingle_file.write(lists.flatten().to_numpy().tobytes())
        self._shingles += int(sizes.sum())
        self.documents = max(self.documents, last + 1)

    def rows(self, documents: Ints) -> np.ndarray:
        """Records [M] of `kind`. Read one by one, not mapped, so that they do not stay in this process's memory."""
        if not len(documents):
            return np.empty(0, dtype=self.kind)
        once, place = np.unique(documents, return_inverse=True)
        self.file.flush()
        file, size = self.file.fileno(), self.kind.itemsize
        read = b"".join([os.pread(file, size, size * document) for document in once.tolist()])
        return np.frombuffer(read, dtype=self.kind)[place]

    def shingles(self, rows: np.ndarray) -> Iterator[np.ndarray[Any, np.dtype[np.uint32]]]:
        """The shingles of each record's document, as they come in its text."""
        self.shingle_file.flush()
        file = self.shingle_file.fileno()
        for begin, size in rows[["begin", "size"]].tolist():
            yield np.frombuffer(os.pread(file, 4 * size, 4 * begin), dtype="<u4")

    def facts(self, documents: Ints) -> tuple[np.ndarray, Bools]:
        """(digests, whether they are for validation) of documents."""
        digests, validation = np.empty(len(documents), np.uint64), np.empty(len(documents), bool)
        for begin in range(0, len(documents), _PAIRS):
            some = slice(begin, begin + _PAIRS)
            rows = self.rows(documents[some])
            digests[some], validation[some] = rows["digest"], rows["validation"]
        return digests, validation

    def close(self) -> None:
        self.file.close()
        self.shingle_file.close()


def signatures_of(table: pa.Table) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The column `signature` as uint16 [N, values]."""
    column = table.column("signature").combine_chunks()
    width = column.type.byte_width // 2
    values = np.frombuffer(column.buffers()[1], dtype="<u2")[column.offset * width :][: len(column) * width]
    return values.reshape(len(column), width).astype(np.uint16, copy=False)


def _nameless(path: Path) -> Any:
    file = open(path, "w+b")  # noqa: SIM115 - open as long as its owner
    os.unlink(path)
    return file
