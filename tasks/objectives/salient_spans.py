"""Salient-span masking (Guu et al. 2020, REALM, section 3.4; T5 + SSM: Roberts et al. 2020, section 3).

Of the row's dates, numbers and names (`tasks.objectives.salience`), `spans` are chosen uniformly: one, as
published. In the inputs each becomes a sentinel, the targets are each sentinel followed by its span; both end with EOS.
Spans that do not fit `target_tokens` by themselves cannot be chosen, and one that would no longer fit beside those
chosen before it is passed over. So of a row's salient spans each has the same chance, but for these.

A row without a salient span that fits has one random span, as in span corruption: up to 3 ordinary tokens from a
uniformly drawn one on, ended by the next special token. A row without ordinary tokens has EOS for its target.

Worked example (seed 0, epoch 0, index 1; asserted by a test), pad 0, EOS 1, sentinels 199, 198 …; spans 2:

    tokens              20  21  22  10  23  24  26  25   9  30  31  32
    inputs              20 199  10  23  24  26 198   9  30  31  32   1   0
    targets            199  21  22 198  25   1   0   0

20 … 25 are spelled In, March, 1990, Marie, Curie, Paris; 9 and 10 are a full stop and a comma, others are lower case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cluster.errors import BadConfig
from tasks.objectives.base import Vocabulary
from tasks.objectives.paired import PairedObjective
from tasks.objectives.philox import below, sample_words
from tasks.objectives.salience import pieces_of, salient_spans
from tasks.objectives.span_corruption import paired_columns, sentinel_form
from tasks.objectives.stretches import is_ordinary
from tasks.objectives.units import number_in_row

if TYPE_CHECKING:
    from tasks.objectives.settings import SalientSpans as Settings

_ORDER, _FALLBACK = 0, 1  # random streams
_FALLBACK_TOKENS = 3  # T5's mean span


class SalientSpans(PairedObjective):
    """The objective.

    Raises:
        BadConfig: the tokenizer has fewer sentinels than `spans`, or it is not known how its tokens are spelled.
    """

    settings: Settings

    def __init__(self, vocabulary: Vocabulary, settings: Settings, length_tokens: int) -> None:
        super().__init__(vocabulary, settings, length_tokens)
        if settings.spans > len(vocabulary.sentinels):
            raise BadConfig(
                f"spans {settings.spans} needs as many sentinels, the tokenizer has {len(vocabulary.sentinels)}",
                "lower spans",
            )
        try:
            pieces_of(vocabulary)
        except ValueError as problem:
            raise BadConfig(f"objective salient-spans: {problem}", "make the examples again") from problem
        self.widths = settings.lengths(length_tokens)
        self.columns = paired_columns(settings.documents_apart)

    def _draw(
        self, seed: int, tokens_BR: np.ndarray, epochs_B: np.ndarray, indices_B: np.ndarray
    ) -> dict[str, np.ndarray]:
        B, R = tokens_BR.shape
        row, start, end = salient_spans(tokens_BR, self.vocabulary)
        fits = end - start <= self.widths[1] - 2  # its sentinel and EOS
        row, first, end = row[fits], (row * R + start)[fits], (row * R + end)[fits]
        chosen = self._chosen(row, end - first, seed, epochs_B, indices_B)
        without = np.bincount(row, minlength=B) == 0
        if without.any():
            more, until = self._random_spans(tokens_BR, without, seed, epochs_B, indices_B)
            first, end = (np.concatenate([a[chosen], b]) for a, b in ((first, more), (end, until)))
            first, end = np.sort(first), np.sort(end)  # spans are apart, so this keeps both ends together
        else:
            first, end = first[chosen], end[chosen]
        return sentinel_form(tokens_BR, first, end, self, self.widths)

    def _chosen(
        self, row_K: np.ndarray, size_K: np.ndarray, seed: int, epochs_B: np.ndarray, indices_B: np.ndarray
    ) -> np.ndarray:
        """bool [K]: up to `spans` of each row, in random order, while their targets fit."""
        B = len(indices_B)
        number = number_in_row(row_K, B)
        words = sample_words(seed, epochs_B, indices_B, int(number.max(initial=0)) + 1, _ORDER)[row_K, number]
        order = np.argsort(row_K.astype(np.uint64) << np.uint64(32) | words, kind="stable")
        counts = np.bincount(row_K, minlength=B)
        first = np.cumsum(counts) - counts
        left, wanted = np.full(B, self.widths[1] - 1), np.full(B, self.settings.spans)
        chosen = np.zeros(len(row_K), dtype=bool)
        for step in range(int(counts.max(initial=0))):
            rows = np.flatnonzero((step < counts) & (wanted > 0))
            if not len(rows):
                break
            span = order[first[rows] + step]
            need = size_K[span] + 1
            takes = need <= left[rows]
            chosen[span[takes]] = True
            left[rows] -= need * takes
            wanted[rows] -= takes
        return chosen

    def _random_spans(
        self, tokens_BR: np.ndarray, without_B: np.ndarray, seed: int, epochs_B: np.ndarray, indices_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(first, end) of a random span of each row that has no other."""
        rows = np.flatnonzero(without_B)
        R = tokens_BR.shape[1]
        ordinary = is_ordinary(tokens_BR[rows], self.vocabulary)
        counts = np.count_nonzero(ordinary, axis=1)
        words = sample_words(seed, epochs_B[rows], indices_B[rows], 1, _FALLBACK)[:, 0]
        some = counts > 0
        at = np.flatnonzero(ordinary)[(np.cumsum(counts) - counts + below(words, counts))[some]]
        first = at + ((rows - np.arange(len(rows))) * R)[some]
        fenced = np.zeros((len(rows), R + 1), dtype=bool)
        fenced[:, :-1] = ordinary
        within, column = at // R, at % R
        size, goes_on = np.ones_like(at), np.ones(len(at), dtype=bool)
        for step in range(1, min(_FALLBACK_TOKENS, self.widths[1] - 2)):
            goes_on &= fenced[within, np.minimum(column + step, R)]
            size += goes_on
        return first, first + size
