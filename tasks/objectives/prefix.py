"""Prefix language modelling: a text is cut in two, the first part seen whole, the second predicted
(Liu et al. 2018; Raffel et al. 2020, sections 3.2.1 and 3.3.1).

A row of n tokens is cut before token c, uniform in [max(1, ⌈least_share · n⌉), min(n − 1, ⌊most_share · n⌋)], so
each part has at least one token; where the shares leave no such place, at the nearest one. Inputs are the first c
tokens, targets the rest. EOS follows the targets where the row has room for it, that is where it is padded, as
only a split's last row is: in a full row the text goes on, and inputs and targets together are its length_tokens
tokens, none lost and none added. A row of one token is all prefix.

So one stack needs a sequence of length_tokens only (`convert(…, width=length_tokens)`).

With `documents_apart` each document of the row, its separator with it, is cut at a place of its own.

Worked example (seed 0, epoch 0, index 1; asserted by a test), pad 0, EOS 1:

    tokens              11  12  13  14  15  16  17  18  19  20
    inputs              11  12  13  14   0   0   0   0   0   0
    targets             15  16  17  18  19  20   0   0   0   0

A padded row, with documents_apart:

    tokens              11  12  13   1  21  22  23  24   0   0
    inputs              11  12  21  22  23   0   0   0   0   0
    targets             13   1  24   1   0   0   0   0   0   0
    input_segments       0   0   1   1   1   1   1   1   1   1
    target_segments      0   0   1   1   1   1   1   1   1   1
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tasks.objectives.base import Vocabulary, documents
from tasks.objectives.convert import packed, ragged
from tasks.objectives.paired import PairedObjective
from tasks.objectives.philox import below, sample_words
from tasks.objectives.span_corruption import paired_columns
from tasks.objectives.stretches import row_lengths

if TYPE_CHECKING:
    from tasks.objectives.settings import Prefix as Settings


class PrefixLanguageModel(PairedObjective):
    """The objective."""

    settings: Settings

    def __init__(self, vocabulary: Vocabulary, settings: Settings, length_tokens: int) -> None:
        super().__init__(vocabulary, settings, length_tokens)
        self.columns = paired_columns(settings.documents_apart)

    def _draw(
        self, seed: int, tokens_BR: np.ndarray, epochs_B: np.ndarray, indices_B: np.ndarray
    ) -> dict[str, np.ndarray]:
        B, L = tokens_BR.shape
        vocabulary, width = self.vocabulary, self.length_tokens
        lengths = row_lengths(tokens_BR, vocabulary.pad)
        places = np.arange(L)
        is_token = places < lengths[:, None]
        if self.settings.documents_apart:
            segments, positions = documents(tokens_BR, vocabulary.eos)
            segments, positions = (np.where(is_token, each, 0) for each in (segments, positions))
            most = int(segments.max(initial=0)) + 1
            sizes = np.bincount((segments + np.arange(B)[:, None] * most)[is_token], minlength=B * most).reshape(
                B, most
            )
            cuts = self._cuts(sizes, sample_words(seed, epochs_B, indices_B, most)[:, :most])
            is_prefix = (positions < np.take_along_axis(cuts, segments, axis=1)) & is_token
        else:
            is_prefix = places < self._cuts(lengths, sample_words(seed, epochs_B, indices_B, 1)[:, 0])[:, None]
        is_rest = is_token & ~is_prefix
        counts = np.count_nonzero(is_rest, axis=1)
        targets = ragged(tokens_BR[is_rest], counts, width, vocabulary.pad)
        ends = np.flatnonzero((lengths < L) & (counts > 0))
        targets[ends, counts[ends]] = vocabulary.eos
        drawn = {"inputs": packed(tokens_BR, is_prefix, width, vocabulary.pad), "targets": targets}
        if self.settings.documents_apart:
            last = segments.max(axis=1, initial=0)[:, None]
            drawn["input_segments"] = packed(segments, is_prefix, width, last)
            drawn["target_segments"] = packed(segments, is_rest, width, last)
        return drawn

    def _cuts(self, sizes: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Tokens of the prefixes of texts of these sizes; a text of one token is all prefix."""
        # rounded first: 0.07 · 100 is 7.000000000000001 in floating point, and 0.29 · 100 is 28.999999999999996
        shares = (self.settings.least_share, self.settings.most_share)
        shortest, longest = (np.round(sizes * share, 9) for share in shares)
        least = np.maximum(np.ceil(shortest), 1).astype(np.int64)
        least = np.minimum(least, np.maximum(sizes - 1, 1))
        most = np.maximum(np.minimum(np.floor(longest).astype(np.int64), sizes - 1), least)
        return least + below(words, most - least + 1)
