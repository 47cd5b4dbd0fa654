"""Rows of two segments, [CLS] A [SEP] B [SEP], from documents of sentences: what `nsp` and `sop` share.

The authors' BERT and ALBERT code (create_pretraining_data): sentences of a document are gathered until they
have the target length, all of a row but its three special tokens, or with `short_share` a uniform length in
[2, max - 3] where max is the row's; a random number of them, at least one, is A. A pair that is too long loses
tokens one by one from its longer segment (B where they are equal), at the front or the back with equal chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from tasks.objectives.philox import sample_words
from tasks.objectives.units import expand

_STREAM = 16  # apart from what masks draw
_FIRST_WORDS = 64

Span = tuple[int, int]
"""Tokens start … stop - 1 of all sentences one after another."""


class Text(NamedTuple):
    """Documents one after another.

    tokens: [T], of all sentences. ends: [S + 1], tokens before each sentence, and all. sentences: for each
    document that has any, (its number, first sentence, sentence after its last). Empty sentences are left out.
    """

    tokens: np.ndarray
    ends: list[int]
    sentences: list[tuple[int, int, int]]


def gather(documents: Sequence[Sequence[np.ndarray]], first_document: int, dtype: Any) -> Text:
    """The documents, which are numbers first_document, first_document + 1 …"""
    parts: list[np.ndarray] = []
    sentences = []
    for number, document in enumerate(documents, first_document):
        first = len(parts)
        parts += [sentence for sentence in document if len(sentence)]
        if len(parts) > first:
            sentences.append((number, first, len(parts)))
    tokens = np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype=dtype)
    return Text(tokens, [0, *accumulate(map(len, parts))], sentences)


class Choices:
    """The random choices of one document, one after another: functions of (seed, copy, document, draw number)."""

    def __init__(self, seed: int, copy: int, document: int, words: list[int]) -> None:
        self._sample, self._words, self._next = (seed, copy, document), words, 0

    def word(self) -> int:
        """The next 32-bit word."""
        if self._next == len(self._words):
            seed, copy, document = self._sample
            self._words = _words(seed, copy, np.array([document]), 4 * len(self._words))[0].tolist()
        self._next += 1
        return self._words[self._next - 1]

    def below(self, bound: int) -> int:
        """Uniform in [0, bound)."""
        return self.word() * bound >> 32

    def chance(self, share: float) -> bool:
        """True in this share of cases."""
        return self.word() < share * 2**32

    def heads(self, flips: int) -> int:
        """How many of so many fair coins fall on heads."""
        found = 0
        for first in range(0, flips, 32):
            found += (self.word() >> max(0, 32 - (flips - first))).bit_count()
        return found

    def target(self, length_tokens: int, short_share: float) -> int:
        """The length to gather: all that a row holds, or now and then a shorter one."""
        most = length_tokens - 3
        return 2 + self.below(most - 1) if self.chance(short_share) else most

    def truncated(self, a: Span, b: Span, most: int) -> tuple[Span, Span]:
        """The segments with `most` tokens together, at most."""
        len_a, len_b = a[1] - a[0], b[1] - b[0]
        excess = len_a + len_b - most
        if excess <= 0:
            return a, b
        # First what the longer has more than the other, then from both in turn, B first.
        from_longer = min(excess, abs(len_a - len_b))
        rest = excess - from_longer
        cut_a = (from_longer if len_a > len_b else 0) + rest // 2
        return self._cut(a, cut_a), self._cut(b, excess - cut_a)

    def _cut(self, segment: Span, tokens: int) -> Span:
        front = self.heads(tokens)
        return segment[0] + front, segment[1] - (tokens - front)


def choices_of(text: Text, seed: int, copy: int) -> list[Choices]:
    """One for each of the text's documents."""
    numbers = np.array([number for number, _, _ in text.sentences], dtype=np.int64)
    words = _words(seed, copy, numbers, _FIRST_WORDS).tolist()
    return [Choices(seed, copy, int(number), own) for number, own in zip(numbers, words, strict=True)]


def _words(seed: int, copy: int, documents: np.ndarray, count: int) -> np.ndarray:
    return sample_words(seed, np.full(len(documents), copy), documents, count, _STREAM)


def write_rows(
    text: Text,
    pairs: list[tuple[Span, Span, int]],
    length_tokens: int,
    special_tokens: Mapping[str, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens [N, L] of the text's type, boundary int32 [N], pair_label int8 [N]) from (A, B, label)."""
    table = np.array([(*a, *b, label) for a, b, label in pairs], dtype=np.int64).reshape(-1, 5)
    (a, a_stop, b, b_stop, label), N = table.T, len(pairs)
    sizes_a, sizes_b = a_stop - a, b_stop - b
    rows = np.full((N, length_tokens), special_tokens["pad"], dtype=text.tokens.dtype)
    start = np.arange(N) * length_tokens
    flat = rows.ravel()
    flat[start] = special_tokens["cls"]
    flat[expand(start + 1, sizes_a)] = text.tokens[expand(a, sizes_a)]
    flat[start + 1 + sizes_a] = special_tokens["sep"]
    flat[expand(start + 2 + sizes_a, sizes_b)] = text.tokens[expand(b, sizes_b)]
    flat[start + 2 + sizes_a + sizes_b] = special_tokens["sep"]
    return rows, (sizes_a + 2).astype(np.int32), label.astype(np.int8)
