"""Masked language modelling (Devlin et al. 2019, section 3.1; details as in the authors' code).

In a sequence of `len` tokens, [CLS] and [SEP] counted, exactly

    n = min(max_predictions, max(1, round(mask_rate · len)))

ordinary tokens are chosen without replacement (fewer where a sequence has fewer). Of these 80 % become [MASK],
10 % a random token, 10 % stay; the draw is per sub-token. With `whole_word` whole words are taken in random
order while they fit into n; one that would overflow is passed over, not cut. The random token is drawn from
the ordinary tokens (`random_token="ordinary"`) or from the whole vocabulary as in the original (`"any"`).

Worked example (seed 0, epoch 0, index 1; asserted by a test). Vocabulary of 100 with [PAD] [UNK] [CLS] [SEP]
[MASK] = 0…4, mask_rate 0.3, so n = round(0.3 · 10) = 3:

    tokens      2  11  12  13  14  15  16  17  18   3
    input_ids   2  11  12  13   4  15  16  17  93   3
    labels      .   .   .  13  14   .   .   .  18   .        (. = -100)

13 is kept, 14 became [MASK], 18 a random token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tasks.objectives.base import IGNORED, Objective, Vocabulary
from tasks.objectives.philox import below, sample_words

_TOKENS, _WORDS = 0, 1  # random streams
_LOW = np.uint64(0xFFFFFFFF)


class MaskedLanguageModel(Objective):
    """The objective; `settings` has mask_rate, max_predictions (0: no limit), whole_word, random_token."""

    needs = ("pad", "cls", "sep", "mask")

    def __init__(self, vocabulary: Vocabulary, settings: Mapping[str, Any]) -> None:
        super().__init__(vocabulary, settings)
        self._candidate = ~vocabulary.special
        self.mask_rate = float(settings["mask_rate"])
        self.max_predictions = int(settings["max_predictions"]) or 1 << 30
        self.whole_word = bool(settings["whole_word"])
        self.replacements = (
            vocabulary.ordinary if settings["random_token"] == "ordinary" else np.arange(vocabulary.size)
        )

    def draw(
        self, tokens_BL: np.ndarray, seed: int, epochs_B: np.ndarray, indices_B: np.ndarray
    ) -> dict[str, np.ndarray]:
        """See `Objective.draw`. Returns input_ids, labels int64 [B, L] and attention_mask bool [B, L]."""
        attention_mask = tokens_BL != self.vocabulary.pad
        candidate = self._candidate[tokens_BL]
        wanted = np.rint(np.count_nonzero(attention_mask, axis=1) * self.mask_rate).astype(np.int64)
        wanted = np.minimum(np.maximum(wanted, 1), self.max_predictions)
        available = np.count_nonzero(candidate, axis=1)
        wanted = np.minimum(wanted, available)
        most = int(wanted.max(initial=0))
        # Two words for each of a row's choices: which token, and what becomes of it.
        words = sample_words(seed, epochs_B, indices_B, 2 * most, _TOKENS)
        if self.whole_word:
            rows, columns, order = self._whole_words(tokens_BL, candidate, wanted, seed, epochs_B, indices_B)
        else:
            rows, columns, order = _choose(candidate, available, wanted, words[:, 0::2])

        input_ids = tokens_BL.astype(np.int64)
        labels = np.full(tokens_BL.shape, IGNORED, dtype=np.int64)
        at = rows * tokens_BL.shape[1] + columns
        original = input_ids.ravel()[at]
        labels.ravel()[at] = original
        input_ids.ravel()[at] = self._replaced(original, words[rows, 2 * order + 1])
        return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}

    def _whole_words(
        self, tokens_BL: np.ndarray, candidate: np.ndarray, wanted: np.ndarray, seed: int, epochs_B: Any, indices_B: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_tokens`, by whole words: in random order, each taken if it still fits."""
        B, L = tokens_BL.shape
        # A word begins at a piece that starts one, and at any candidate after a special token.
        after_special = np.ones((B, L), dtype=bool)
        after_special[:, 1:] = ~candidate[:, :-1]
        starts = candidate & (self.vocabulary.starts_word[tokens_BL] | after_special)
        word = np.cumsum(starts, axis=1) - 1  # of each candidate
        word_count = starts.sum(1)
        most = int(word_count.max(initial=0))
        rows, columns = np.nonzero(candidate)
        of_word = rows * most + word[rows, columns]
        sizes = np.bincount(of_word, minlength=B * most).reshape(B, most)

        # The key carries its word's number in its low bits, so that sorting gives the order; absent words go last.
        numbers = np.arange(most, dtype=np.uint64)
        keys = sample_words(seed, epochs_B, indices_B, most, _WORDS)[:, :most] << np.uint64(20) | numbers
        keys |= (numbers >= word_count[:, None].astype(np.uint64)).astype(np.uint64) << np.uint64(60)
        shuffled = (np.sort(keys, axis=1) & np.uint64(0xFFFFF)).astype(np.int64)
        shuffled_sizes = np.take_along_axis(sizes, shuffled, axis=1)
        left = wanted.copy()
        taken = np.zeros((B, most), dtype=bool)
        for step in range(most):
            size = shuffled_sizes[:, step]
            fits = (size > 0) & (size <= left)
            taken[:, step] = fits
            left -= size * fits
            if not left.any():
                break
        chosen = np.zeros((B, most), dtype=bool)
        np.put_along_axis(chosen, shuffled, taken, axis=1)
        keep = chosen.ravel()[of_word]
        rows, columns = rows[keep], columns[keep]
        per_row = np.bincount(rows, minlength=B)
        order = np.arange(len(rows)) - (np.cumsum(per_row) - per_row)[rows]
        return rows, columns, order

    def _replaced(self, original: np.ndarray, words: np.ndarray) -> np.ndarray:
        """80 % [MASK], 10 % random, 10 % kept: from one word per chosen token."""
        tenths = words * np.uint64(10)
        tenth = tenths >> np.uint64(32)
        result = np.full(original.shape, self.vocabulary.special_tokens["mask"], dtype=np.int64)
        random = np.flatnonzero(tenth == 8)
        # What is left of the word below its tenth is uniform again, finely enough for any vocabulary.
        result[random] = self.replacements[below(tenths[random] & _LOW, len(self.replacements))]
        kept = np.flatnonzero(tenth == 9)
        result[kept] = original[kept]
        return result


def _choose(
    candidate: np.ndarray, available: np.ndarray, wanted: np.ndarray, words: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, column, number within the row) of `wanted` candidates of each row, uniform without replacement.

    Floyd's sampling, all rows in step: for j = N-n … N-1 take a uniform t in [0, j], or j itself where t is
    taken already. Its cost goes with the chosen tokens, not with the length of the sequence.
    """
    B, L = candidate.shape
    most = int(wanted.max(initial=0))
    steps = np.arange(most)[:, None]
    last = available - wanted + steps  # j, [step, row]
    active = steps < wanted
    rank = below(words.T[:most], np.where(active, last + 1, 1))
    # Ranks as places in one flat array; a row that has all it wants goes on into a spare place at its end.
    base = np.arange(B) * (L + 1)
    flat_last = base + np.where(active, last, L)
    flat = base + np.where(active, rank, L)
    taken = np.zeros(B * (L + 1), dtype=bool)
    for step in range(most):
        chosen = np.where(taken[flat[step]], flat_last[step], flat[step])
        taken[chosen] = True
        flat[step] = chosen
    rows, order = np.nonzero(active.T)
    ranks = (flat - base)[order, rows]
    positions = np.flatnonzero(candidate)  # of all candidates, row after row
    first = np.cumsum(available) - available
    return rows, positions[first[rows] + ranks] - rows * L, order
