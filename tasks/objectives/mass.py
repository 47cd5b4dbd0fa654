"""Masked sequence to sequence (MASS; Song et al. 2019, section 3.2; details as in the authors' code).

Of a row of n tokens a stretch of round(mask_rate · n) consecutive ones (at least 1) is masked in the inputs token by
token: 80 % become [MASK], 10 % a random ordinary token, 10 % stay. Its start is uniform over the places where the
stretch does not reach the row's last special token. The targets are the stretch. The decoder predicts each of them
from the encoder and those before it, at the positions that they have in the text: `target_positions`.

Special tokens inside the stretch (separators) are targets, but are not masked: the inputs keep them.

With `documents_apart` each document of the row has a stretch of its own, with positions counted from the document's
begin. The row's round(mask_rate · n) tokens are shared out by the running sum of the documents' lengths, rounded, so
that the targets' length stays; a document's separator is not masked, so a very short document may give fewer.

Worked example (seed 0, epoch 0, index 1; asserted by a test). pad 0, EOS 1, [MASK] 2; mask_rate 0.5, so 5
of 10 tokens:

    tokens              11  12  13  14  15  16  17  18  19   1
    inputs              11  12  13   2   2   2  17  18  19   1
    targets             13  14  15  16  17
    target_positions     2   3   4   5   6

13 and 17 are kept, 14, 15 and 16 became [MASK].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tasks.objectives.base import Vocabulary, documents
from tasks.objectives.convert import ragged
from tasks.objectives.paired import PairedObjective
from tasks.objectives.philox import below, sample_words
from tasks.objectives.span_corruption import paired_columns
from tasks.objectives.stretches import row_lengths
from tasks.objectives.units import expand, number_in_row

if TYPE_CHECKING:
    from tasks.objectives.settings import Mass as Settings

_STARTS, _FATES = 0, 1  # random streams
_LOW = np.uint64(0xFFFFFFFF)


class MaskedSequenceToSequence(PairedObjective):
    """The objective; `draw` also gives target_positions int64 [B, Lt]."""

    settings: Settings

    def __init__(self, vocabulary: Vocabulary, settings: Settings, length_tokens: int) -> None:
        super().__init__(vocabulary, settings, length_tokens)
        self.widths = settings.lengths(length_tokens)
        self.columns = (*paired_columns(settings.documents_apart), "target_positions")

    def _draw(
        self, seed: int, tokens_BR: np.ndarray, epochs_B: np.ndarray, indices_B: np.ndarray
    ) -> dict[str, np.ndarray]:
        B, R = tokens_BR.shape
        pad = self.vocabulary.pad
        lengths = row_lengths(tokens_BR, pad)
        segments = documents(tokens_BR, self.vocabulary.eos)[0] if self.settings.documents_apart else None
        row, begin, size = _texts(lengths, segments)
        number = number_in_row(row, B)
        # What the running sum of lengths adds to its rounded share.
        after = begin + size
        stretch = np.rint(after * self.settings.mask_rate) - np.rint(begin * self.settings.mask_rate)
        stretch = np.where((number == 0) & (size == lengths[row]), np.maximum(stretch, 1), stretch).astype(np.int64)
        ends_special = self.vocabulary.special[tokens_BR[row, after - 1]]
        room = size - ends_special
        stretch = np.minimum(stretch, room)
        words = sample_words(seed, epochs_B, indices_B, int(number.max(initial=0)) + 1, _STARTS)[row, number]
        start = row * R + begin + below(words, room - stretch + 1)

        at = expand(start, stretch)
        counts = np.bincount(row, stretch, B).astype(np.int64)
        inputs, original = tokens_BR.astype(np.int64), tokens_BR.ravel()[at].astype(np.int64)
        rows = np.repeat(np.arange(B), counts)
        words = sample_words(seed, epochs_B, indices_B, int(counts.max(initial=0)), _FATES)
        inputs.ravel()[at] = self._replaced(original, words[rows, number_in_row(rows, B)])
        drawn = {
            "inputs": inputs,
            "targets": ragged(original, counts, self.widths[1], pad),
            "target_positions": ragged(at - np.repeat(row * R + begin, stretch), counts, self.widths[1], 0),
        }
        if segments is not None:
            last = segments[np.arange(B), np.maximum(lengths - 1, 0)][:, None]
            drawn["input_segments"] = np.minimum(segments, last)
            drawn["target_segments"] = ragged(segments.ravel()[at], counts, self.widths[1], last)
        return drawn

    def _replaced(self, original: np.ndarray, words: np.ndarray) -> np.ndarray:
        """80 % [MASK], 10 % random, 10 % kept, special tokens always: from one word per token."""
        tenths = words * np.uint64(10)
        tenth = tenths >> np.uint64(32)
        result = np.full(original.shape, self.vocabulary.special_tokens["mask"], dtype=np.int64)
        random = np.flatnonzero(tenth == 8)
        # What is left of the word below its tenth is uniform again, finely enough for any vocabulary.
        ordinary = self.vocabulary.ordinary
        result[random] = ordinary[below(tenths[random] & _LOW, len(ordinary))]
        return np.where((tenth == 9) | self.vocabulary.special[original], original, result)


def _texts(lengths_B: np.ndarray, segments_BR: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, begin, size) int64 [D] of what has a stretch of its own: the row, or each of its documents."""
    if segments_BR is None:
        row = np.flatnonzero(lengths_B)
        return row, np.zeros_like(row), lengths_B[row]
    B, R = segments_BR.shape
    first = np.zeros((B, R), dtype=bool)
    first[:, 0] = True
    first[:, 1:] = segments_BR[:, 1:] != segments_BR[:, :-1]
    first &= np.arange(R) < lengths_B[:, None]
    row, begin = np.nonzero(first)
    end = np.append(begin, 0)[1:]
    is_last = np.append(row, -1)[1:] != row
    return row, begin, np.where(is_last, lengths_B[row], end) - begin
