"""Permutation language modelling (Yang et al. 2019, XLNet, sections 2.2 and 2.3; details as in the authors' code).

max(1, round(target_share · len)) tokens of a row (85 of 512; special tokens count in len) are its targets,
never a special one. From the left on: a length n is drawn with p(n) ∝ 1/n for n = 1 … span_max; within a context of
n / target_share tokens the span begins at a random place, or at the next word after it; the next context
begins where this one ends. What is still wanting at the row's end are single tokens at random. A span ends
early at a special token, or where the row has its targets.

The targets are predicted in a random order: `ranks` has each one's place in it, 0 … targets-1, and -1 for all
other tokens, which every token sees. Target i sees target j where ranks[j] < ranks[i]; in the content stream
also itself.

Worked example (seed 0, epoch 0, index 0; asserted by a test). Vocabulary of 100 with [PAD] [UNK] [CLS] [SEP]
[MASK] = 0…4, ids from 40 on continue a word, target_share 0.3, so round(0.3 · 14) = 4 targets:

    tokens              11  12  41  13  14  42  15   3  16  17  18  19   3   2
    labels               .   .   .  13   .   .  15   .   .   .  18  19   .   .
    ranks                .   .   .   1   .   .   2   .   .   .   0   3   .   .

18 is predicted first, from the ten tokens that are no targets; then 13, which also sees 18; then 15; then 19.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from tasks.objectives.base import IGNORED, Objective, Vocabulary, documents
from tasks.objectives.ngram import length_thresholds
from tasks.objectives.philox import below, sample_words
from tasks.objectives.settings import Permutation
from tasks.objectives.units import FATES, ORDER, TOKENS, Draw, choose_tokens, find_words


class PermutationLanguageModel(Objective):
    """The objective. A batch has input_ids (the row as it is), labels (originals at the targets),
    attention_mask, ranks int64 [B, L], and segment_ids, position_ids with `documents_apart`.
    """

    settings: Permutation
    columns = ("input_ids", "labels", "ranks")

    def __init__(self, vocabulary: Vocabulary, settings: Permutation, length_tokens: int) -> None:
        super().__init__(vocabulary, settings, length_tokens)
        self._candidate = ~vocabulary.special
        self._lengths = length_thresholds(settings.span_max)
        # of n tokens, by n - 1; the authors' 6 n for 85 of 512
        self._contexts = np.rint(np.arange(1, settings.span_max + 1) / settings.target_share).astype(np.int64)

    def draw(
        self,
        tokens_BR: np.ndarray,
        seed: int,
        epochs_B: np.ndarray,
        indices_B: np.ndarray,
        facts: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """See `Objective.draw`; `facts` is not read."""
        draw = partial(sample_words, seed, epochs_B, indices_B)
        B, L = tokens_BR.shape
        attention_mask = tokens_BR != self.vocabulary.pad
        candidate = np.take(self._candidate, tokens_BR)
        wanted = np.rint(np.count_nonzero(attention_mask, axis=1) * self.settings.target_share).astype(np.int64)
        wanted = np.minimum(np.maximum(wanted, 1), np.count_nonzero(candidate, axis=1))
        is_target = self._spans(tokens_BR, candidate, wanted, draw)
        more, _, _ = choose_tokens(candidate & ~is_target, wanted - np.count_nonzero(is_target, axis=1), draw, TOKENS)
        is_target.ravel()[more] = True

        input_ids = tokens_BR.astype(np.int64, order="C")
        labels = np.full((B, L), IGNORED, dtype=np.int64)
        np.copyto(labels, input_ids, where=is_target)
        ranks = np.full((B, L), -1, dtype=np.int64)
        ranks[is_target] = _random_order(wanted, draw)
        batch = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask, "ranks": ranks}
        if self.settings.documents_apart:
            separator = self.vocabulary.special_tokens["sep"]
            batch["segment_ids"], batch["position_ids"] = documents(tokens_BR, separator)
        return batch

    def _spans(self, tokens_BL: np.ndarray, candidate: np.ndarray, wanted: np.ndarray, draw: Draw) -> np.ndarray:
        """bool [B, L]: the targets that stand in spans; at most `wanted` of each row. All rows in step."""
        B, L = tokens_BL.shape
        words = find_words(candidate, np.take(self.vocabulary.starts_word, tokens_BL))
        # By place: the next word's start, and the end of the run of ordinary tokens.
        next_word = _next(words.starts, B, L)
        run_end = _next(np.flatnonzero(~candidate), B, L)
        longest = len(self._lengths)
        is_target = np.zeros((B, L + longest), dtype=bool)
        flat, wide = is_target.ravel(), L + longest
        rows, left, place = np.arange(B), wanted.copy(), np.zeros(B, dtype=np.int64)
        done, upto = 0, 4 + L // 8
        ahead = np.arange(longest)
        while len(rows):
            drawn = draw(2 * upto, ORDER)[:, 2 * done : 2 * upto].T
            for step in range(upto - done):
                n = np.searchsorted(self._lengths, drawn[2 * step, rows], side="right") + 1
                n = np.minimum(n, left[rows])
                context = self._contexts[n - 1]
                before = below(drawn[2 * step + 1, rows], context)
                begin = next_word[rows, np.minimum(place + before, L)]
                size = np.minimum(n, run_end[rows, begin] - begin)
                place = begin + size + context - before
                flat[((rows * wide + begin)[:, None] + ahead)[ahead < size[:, None]]] = True
                left[rows] -= size
                on = (place < L) & (left[rows] > 0)
                if not on.all():
                    rows, place = rows[on], place[on]
                    if not len(rows):
                        break
            done, upto = upto, 2 * upto
        return is_target[:, :L].copy()


def _next(places: np.ndarray, B: int, L: int) -> np.ndarray:
    """int64 [B, L + 1]: the first of the ascending flat `places` at or after each column; L where there is none."""
    at = np.full((B, L + 1), L, dtype=np.int64)
    rows, columns = np.divmod(places, L)
    at[rows, columns] = columns
    return np.minimum.accumulate(at[:, ::-1], axis=1)[:, ::-1]


def _random_order(counts_B: np.ndarray, draw: Draw) -> np.ndarray:
    """A random permutation of 0 … count-1 of each row, one after another: int64 [Σ counts]."""
    most = int(counts_B.max(initial=0))
    numbers = np.arange(most)
    absent = numbers >= counts_B[:, None]
    # A key has its number in its low bits, so that sorting gives the order; what is not there goes last.
    keys = draw(most, FATES)[:, :most] << np.uint64(20) | numbers.astype(np.uint64)
    keys |= absent.astype(np.uint64) << np.uint64(60)
    order = (np.sort(keys, axis=1) & np.uint64(0xFFFFF)).astype(np.int64)
    # The order is a permutation itself, as good as the places it gives.
    return order[~absent]
