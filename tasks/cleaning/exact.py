"""exact-duplicates: of equal texts the first in the order of the corpus stays, with the split it has.

Texts are equal after folding. Where they are equal to the letter, their content hash, and so their split, is the same
unless the source groups documents; where only folding makes them equal, the others' split goes with them. In no case
are two equal texts left, so none stands on both sides of the split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.base import Context
from tasks.cleaning.base import CorpusStep, Documents, Verdict
from tasks.cleaning.exchange import HERE_BYTES, exchange
from tasks.cleaning.settings_corpus import ExactDuplicatesSettings

_PUNCTUATION = re.compile(r"[^\w\s]+|_+")

Ints = np.ndarray[Any, np.dtype[np.int64]]


class ExactDuplicates(CorpusStep):
    """See the module. Equal means equal BLAKE2b digests of 128 bits."""

    folder = "digests"
    here_bytes = HERE_BYTES

    settings: ExactDuplicatesSettings

    def folded(self, text: str) -> str:
        """What is compared."""
        if self.settings.fold_case:
            text = text.casefold()
        if self.settings.fold_punctuation:
            text = _PUNCTUATION.sub("", text)
        return " ".join(text.split()) if self.settings.fold_white_space else text

    def sign(self, documents: Documents) -> pa.Table:
        """document, and its digest as key and rest (uint64 each)."""
        digests = b"".join(
            blake2b(self.folded(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()
            for text in documents.texts
        )
        halves = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
        numbers = np.arange(documents.first, documents.first + len(documents.texts), dtype=np.uint64)
        return pa.table({"document": numbers, "key": halves[:, 0].copy(), "rest": halves[:, 1].copy()})

    def decide(self, signatures: Iterable[pa.Table], ctx: Context) -> ExactDuplicatesFound:
        """Find all but the first of equal texts.

        Raises:
            Cancelled: the run was asked to stop.
        """
        found = exchange(
            ctx,
            (table for table in signatures if len(table)),
            as_they_are,
            later_ones,
            ctx.work / self.folder,
            here_bytes=self.here_bytes,
        )
        dropped: list[Any] = [np.empty(0, dtype=np.int64)]
        with closing(found):
            for table in found:
                dropped.append(table.column("document").to_numpy().astype(np.int64))
        documents = np.sort(np.concatenate(dropped))
        return ExactDuplicatesFound({"duplicates": len(documents)}, documents)


class ExactDuplicatesFound:
    """The documents to drop, in order."""

    def __init__(self, facts: Mapping[str, Any], documents: Ints) -> None:
        self.facts = facts
        self.documents = documents

    def slice(self, first: int, count: int) -> ExactDuplicatesFound:
        begin, end = np.searchsorted(self.documents, (first, first + count)).tolist()
        return ExactDuplicatesFound({}, self.documents[begin:end].copy())

    def verdicts(self, documents: Documents) -> list[Verdict]:
        out = [Verdict(text) for text in documents.texts]
        for number in (self.documents - documents.first).tolist():
            out[number] = Verdict(None, "exact duplicate")
        return out


def as_they_are(table: pa.Table) -> pa.Table:
    """Signatures are the rows to exchange already."""
    return table


def later_ones(rows: pa.Table) -> pa.Table:
    """The documents of which an earlier one has the same digest."""
    keys, rest, documents = (rows.column(name).to_numpy() for name in ("key", "rest", "document"))
    order = np.lexsort((documents, rest, keys))
    again = np.zeros(len(order), dtype=bool)
    again[1:] = (np.diff(keys[order]) == 0) & (np.diff(rest[order]) == 0)
    return pa.table({"document": documents[order][again]})
