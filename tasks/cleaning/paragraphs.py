"""duplicate-paragraphs: a paragraph stays in the first document that keeps it, and goes from all later ones.

Documents are judged in the order of the corpus. One that would lose too much is dropped whole; then its paragraphs
have not been seen, and the next document that has one keeps it: no paragraph is lost from the corpus altogether.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tasks.base import Context
from tasks.cleaning.base import CorpusStep, Documents, Verdict
from tasks.cleaning.exact import as_they_are
from tasks.cleaning.exchange import HERE_BYTES, exchange
from tasks.cleaning.settings_corpus import DuplicateParagraphsSettings

_ENDS = {"line": re.compile(r"(\n+)"), "blank-line": re.compile(r"(\n[^\S\n]*\n\s*)")}
_SEEN = "has paragraphs seen before"
_MOST = "mostly paragraphs seen before"

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Paragraph(NamedTuple):
    """A paragraph that is long enough: its place among all of its document, and the text that is compared."""

    place: int
    text: str


class DuplicateParagraphs(CorpusStep):
    """See the module. Equal means equal BLAKE2b digests of 64 bits, of texts with white space folded.

    Among a billion paragraphs, two that differ have the same digest with probability 0.03.
    """

    folder = "paragraphs"
    here_bytes = HERE_BYTES

    settings: DuplicateParagraphsSettings

    def sign(self, documents: Documents) -> pa.Table:
        """A row for each long paragraph: key (digest), document, place, chars of it and of the document."""
        rows: list[tuple[int, int, int, int, int]] = []
        for number, text in enumerate(documents.texts, documents.first):
            if len(text) < self.settings.min_chars:
                continue
            for place, paragraph in long_paragraphs(text, self.settings):
                digest = blake2b(paragraph.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                rows.append((int.from_bytes(digest, "big"), number, place, len(paragraph), len(text)))
        columns = list(zip(*rows, strict=True)) if rows else [()] * 5
        names = ("key", "document", "place", "chars", "document_chars")
        return pa.table({name: pa.array(column, pa.uint64()) for name, column in zip(names, columns, strict=True)})

    def decide(self, signatures: Iterable[pa.Table], ctx: Context) -> DuplicateParagraphsFound:
        """Judge the documents that have a paragraph which another place has, too.

        Raises:
            Cancelled: the run was asked to stop.
        """
        found = exchange(
            ctx,
            (table for table in signatures if len(table)),
            as_they_are,
            repeated,
            ctx.work / self.folder,
            here_bytes=self.here_bytes,
        )
        parts: list[np.ndarray] = []
        with closing(found):
            for table in found:
                parts.append(np.stack([table.column(name).to_numpy() for name in table.column_names]))
        rows = np.concatenate(parts, axis=1) if parts else np.empty((5, 0), dtype=np.uint64)
        rows = rows[:, np.lexsort((rows[2], rows[1]))]  # by document and place
        return self._judged(rows)

    def _judged(self, rows: np.ndarray) -> DuplicateParagraphsFound:
        seen: set[int] = set()
        dropped: list[int] = []
        documents: list[int] = []  # of each place to remove
        places: list[int] = []
        for document, total, paragraphs in _by_document(rows):
            new: set[int] = set()
            again: list[int] = []
            lost = 0
            for key, place, chars in paragraphs:
                if key in seen or key in new:
                    again.append(place)
                    lost += chars
                else:
                    new.add(key)
            if lost > self.settings.max_removed_share * total:
                dropped.append(document)
                continue
            seen |= new
            documents += [document] * len(again)
            places += again
        facts = {
            "repeated_paragraphs": len(np.unique(rows[0])),
            "places_of_repeated_paragraphs": rows.shape[1],
        }
        return DuplicateParagraphsFound(
            facts, self.settings, *(np.array(each, dtype=np.int64) for each in (dropped, documents, places))
        )


class DuplicateParagraphsFound:
    """Documents to drop [D], and documents [R] and places [R] of the paragraphs to remove, all in order."""

    def __init__(
        self,
        facts: Mapping[str, Any],
        settings: DuplicateParagraphsSettings,
        dropped: Ints,
        documents: Ints,
        places: Ints,
    ) -> None:
        self.facts, self.settings = facts, settings
        self.dropped, self.documents, self.places = dropped, documents, places

    def slice(self, first: int, count: int) -> DuplicateParagraphsFound:
        one = slice(*np.searchsorted(self.dropped, (first, first + count)).tolist())
        two = slice(*np.searchsorted(self.documents, (first, first + count)).tolist())
        parts = (self.dropped[one].copy(), self.documents[two].copy(), self.places[two].copy())
        return DuplicateParagraphsFound({}, self.settings, *parts)

    def verdicts(self, documents: Documents) -> list[Verdict]:
        out = [Verdict(text) for text in documents.texts]
        for number in (self.dropped - documents.first).tolist():
            out[number] = Verdict(None, _MOST)
        places: dict[int, set[int]] = {}
        for number, place in zip((self.documents - documents.first).tolist(), self.places.tolist(), strict=True):
            places.setdefault(number, set()).add(place)
        for number, gone in places.items():
            left = without(documents.texts[number], gone, self.settings.separator)
            out[number] = Verdict(left or None, _SEEN if left else _MOST, {"paragraph": len(gone)})
        return out


def long_paragraphs(text: str, settings: DuplicateParagraphsSettings) -> Iterator[Paragraph]:
    """The paragraphs of at least `min_chars` characters, white space folded."""
    for place, paragraph in enumerate(_ENDS[settings.separator].split(text)[::2]):
        if len(paragraph) >= settings.min_chars and len(folded := " ".join(paragraph.split())) >= settings.min_chars:
            yield Paragraph(place, folded)


def without(text: str, places: set[int], separator: str) -> str:
    """The text without the paragraphs at `places`, and without what ended each of them."""
    parts = _ENDS[separator].split(text)
    ends = [*parts[1::2], ""]
    kept = [paragraph + end for n, (paragraph, end) in enumerate(zip(parts[::2], ends, strict=True)) if n not in places]
    # what stood between the last paragraph that stays and one that goes separates nothing any more
    return "".join(kept).rstrip() if len(parts[::2]) - 1 in places else "".join(kept)


def repeated(rows: pa.Table) -> pa.Table:
    """The rows whose key occurs more than once."""
    keys = rows.column("key").to_numpy()
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    more = np.zeros(len(keys), dtype=bool)
    more[order[1:][same]] = more[order[:-1][same]] = True
    return rows.filter(pa.array(more))


def _by_document(rows: np.ndarray) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
    """(document, its characters, [(key, place, chars)]) of uint64 [5, R], sorted."""
    begins = np.unique(rows[1], return_index=True)[1].tolist()
    for begin, end in zip(begins, [*begins[1:], rows.shape[1]][: len(begins)], strict=True):
        keys, documents, places, chars, total = rows[:, begin:end].tolist()
        yield documents[0], total[0], list(zip(keys, places, chars, strict=True))
