"""Gopher's repetition rules: does it say the same again and again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tasks.cleaning.base import DocumentStep, Verdict
from tasks.cleaning.settings import GopherRepetitionSettings

_PARAGRAPHS = re.compile(r"\n\s*\n")
_TOP = (2, 3, 4)  # n of the most frequent n-gram
_DUPLICATE = (5, 6, 7, 8, 9, 10)  # n of the n-grams that came before
_GROUP = 1 << 12  # documents at once, so that (document, word, word) fits into 63 bits


class GopherRepetition(DocumentStep):
    """Drops documents that break a repetition rule (Rae et al. 2021, table A1).

        "a b c d e a b c d e": the 5-gram "a b c d e" came before, 5 of 10 characters ->
        dropped, "more than 15% of characters in repeated 5-grams"

    Lines and paragraphs (between blank lines) are compared stripped; those that came before count, the first does not.
    Words stand between white space. Shares of characters are of the words' characters, without the space between. For
    n = 2, 3, 4: how often the most frequent n-gram occurs times its characters (the longest where several are equally
    frequent; one that occurs once is no repetition). For n = 5 … 10: the characters of words within n-grams that came
    before, each counted once. The paper leaves open whether the first occurrence counts; here it does not.

    All n-grams of a slice's documents are found at once, exactly, by sorting numbers. An n-gram can only occur twice
    where the (n-1)-gram that it begins with does, so each n sorts what the one before left, which soon is little.
    """

    settings: GopherRepetitionSettings

    def __init__(self, settings: GopherRepetitionSettings, evaluation: object = None) -> None:
        self.settings = settings

    def clean(self, texts: Sequence[str]) -> list[Verdict]:
        reasons = [self._lines(text) for text in texts]
        for first in range(0, len(texts), _GROUP):
            for number, reason in self._ngrams(texts[first : first + _GROUP]):
                reasons[first + number] = reasons[first + number] or reason
        return [Verdict(None if reason else text, reason) for text, reason in zip(texts, reasons, strict=True)]

    def _lines(self, text: str) -> str:
        s = self.settings
        lines = [line for line in map(str.strip, text.split("\n")) if line]
        if len(set(lines)) == len(lines):
            return ""  # and so no paragraph is repeated
        lines_share, chars_share = _repeated(lines)
        if lines_share > s.duplicate_lines:
            return f"more than {s.duplicate_lines:.0%} of lines repeated"
        if chars_share > s.duplicate_line_chars:
            return f"more than {s.duplicate_line_chars:.0%} of characters in repeated lines"
        paragraphs_share, chars_share = _repeated([part for part in map(str.strip, _PARAGRAPHS.split(text)) if part])
        if paragraphs_share > s.duplicate_paragraphs:
            return f"more than {s.duplicate_paragraphs:.0%} of paragraphs repeated"
        if chars_share > s.duplicate_paragraph_chars:
            return f"more than {s.duplicate_paragraph_chars:.0%} of characters in repeated paragraphs"
        return ""

    def _ngrams(self, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
        """(number, reason) of documents that break a rule on n-grams, and of each rule that they break."""
        s = self.settings
        words = words_of(texts)
        total = np.bincount(words.document, weights=words.lengths, minlength=len(texts))
        most = dict(zip((*_TOP, *_DUPLICATE), (*s.top_ngram_chars, *s.duplicate_ngram_chars), strict=True))
        for n, repeats in repeated_ngrams(words, max(_DUPLICATE)):
            if n in _TOP:
                chars = top_chars(words, n, repeats, len(texts))
                what = f"more than {most[n]:.0%} of characters in the top {n}-gram"
            else:
                chars = repeated_chars(words, n, repeats, len(texts))
                what = f"more than {most[n]:.0%} of characters in repeated {n}-grams"
            for number in np.flatnonzero(chars > most[n] * total).tolist():
                yield number, what


def _repeated(parts: Sequence[str]) -> tuple[float, float]:
    """Shares of parts, and of their characters, that came before."""
    different = set(parts)
    if len(different) == len(parts):
        return 0.0, 0.0
    total = sum(map(len, parts))
    return 1 - len(different) / len(parts), (total - sum(map(len, different))) / total


class Words(NamedTuple):
    """The words of documents, one after another: int64 [words] each.

    codes: a number below `different` for each different word. lengths: its characters. document: whose it is.
    """

    codes: np.ndarray
    lengths: np.ndarray
    document: np.ndarray
    different: int


class Repeats(NamedTuple):
    """Places of n-grams that occur more than once in their document, run after run of equal ones.

    places: int64 [M], the number of an n-gram's first word. begins, sizes: int64 [runs], where each run begins among
    the places, and how many it has.
    """

    places: np.ndarray
    begins: np.ndarray
    sizes: np.ndarray


def words_of(texts: Sequence[str]) -> Words:
    """The words of these texts, which stand between white space."""
    import pyarrow as pa
    import pyarrow.compute as pc

    words = pc.utf8_split_whitespace(pa.array(texts, pa.string()))
    encoded = words.flatten().dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    lengths = pc.utf8_length(encoded.dictionary).to_numpy().astype(np.int64)[codes]
    document = np.repeat(np.arange(len(texts)), pc.list_value_length(words).to_numpy())
    if len(real := np.flatnonzero(lengths)) < len(codes):  # white space at the ends leaves empty words
        codes, lengths, document = codes[real], lengths[real], document[real]
    return Words(codes, lengths, document, len(encoded.dictionary))


def repeated_ngrams(words: Words, longest: int) -> Iterator[tuple[int, Repeats]]:
    """(n, its repeats) for n = 2 … longest, until there are none."""
    codes, document = words.codes, words.document
    places = np.flatnonzero(document[1:] == document[:-1])
    keys = (document[places] * words.different + codes[places]) * words.different + codes[places + 1]
    for n in range(2, longest + 1):
        order = np.argsort(keys)
        keys, places = keys[order], places[order]
        again = keys[1:] == keys[:-1]
        if not again.any():
            return
        same = np.zeros(len(keys), dtype=bool)  # as a neighbour
        same[1:] |= again
        same[:-1] |= again
        fresh = np.concatenate([[True], ~again])[same]  # the first of its run
        places, begins = places[same], np.flatnonzero(fresh)
        yield n, Repeats(places, begins, np.diff(np.append(begins, len(places))))
        run = np.cumsum(fresh)
        more = np.flatnonzero(document[np.minimum(places + n, len(codes) - 1)] == document[places])
        more = more[places[more] + n < len(codes)]
        places = places[more]
        keys = run[more] * words.different + codes[places + n]


def top_chars(words: Words, n: int, repeats: Repeats, documents: int) -> np.ndarray:
    """int64 [documents]: the characters of all occurrences of the most frequent n-gram; 0 where none occurs twice.

    Of several that are equally frequent the longest counts.
    """
    firsts = repeats.places[repeats.begins]
    ends = np.concatenate([[0], np.cumsum(words.lengths)])
    chars = ends[firsts + n] - ends[firsts]
    best = np.zeros(documents, dtype=np.int64)
    np.maximum.at(best, words.document[firsts], (repeats.sizes << 32) + chars)  # by frequency, then by length
    return (best >> 32) * (best & 0xFFFFFFFF)


def repeated_chars(words: Words, n: int, repeats: Repeats, documents: int) -> np.ndarray:
    """int64 [documents]: the characters of the words that stand in an n-gram that came before."""
    first = np.zeros(len(words.codes), dtype=bool)  # of its run in the text, so no repetition
    first[np.minimum.reduceat(repeats.places, repeats.begins)] = True
    later = repeats.places[~first[repeats.places]]
    # +1 where a repeated n-gram begins, -1 behind its end: covered where the running sum is above 0
    edges = np.zeros(len(words.codes) + 1, dtype=np.int64)
    edges[later] += 1
    edges[later + n] -= 1
    covered = np.flatnonzero(np.cumsum(edges[:-1]))
    return np.bincount(words.document[covered], weights=words.lengths[covered], minlength=documents).astype(np.int64)
