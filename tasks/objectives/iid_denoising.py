"""Denoising of tokens corrupted one by one (Raffel et al. 2020, sections 3.3.1 and 3.3.2, tables 3 and 5).

Each ordinary token of the row is chosen with probability noise_density, independently; a row may have none. By
`style`, after the systems that the paper compares:

- `bert`: of the chosen 90 % become a mask, 10 % a random ordinary token; the target is the whole uncorrupted text.
- `mass`: all chosen become a mask; the target is the whole text. (The paper's "MASS-style": for MASS itself see
  `tasks.objectives.mass`.)
- `replace-spans`: each run of chosen tokens becomes one sentinel, the target spells the runs out behind their
  sentinels, as in `tasks.objectives.span_corruption`. Where a row has more runs than there are sentinels, a random
  choice of them becomes one, the others stay as they are.
- `drop-tokens`: the chosen tokens are dropped; the target is the dropped tokens, one after another.

The mask is the tokenizer's own where it has one, else its first sentinel (T5's tokenizer has no mask). Special tokens
of the row are never chosen; they stay in the inputs, and in a target that is the whole text. Raw rows are one token
shorter than the inputs: inputs and targets end with EOS.

Worked example (seed 0, epoch 0, index 1; asserted by a test). pad 0, EOS 1, mask 2, sentinels 199, 198 …;
noise_density 0.4:

    tokens              11  12  13  14  15   1  21  22  23  24
    bert
      inputs              11  12  13 134  15   1  21   2   2  24   1
      targets             11  12  13  14  15   1  21  22  23  24   1
    mass
      inputs              11  12  13   2  15   1  21   2   2  24   1
      targets             11  12  13  14  15   1  21  22  23  24   1
    replace-spans
      inputs              11  12  13 199  15   1  21 198  24   1   0
      targets            199  14 198  22  23   1   0   0   0   0   0
    drop-tokens
      inputs              11  12  13  15   1  21  24   1   0   0   0
      targets             14  22  23   1   0   0   0   0   0   0   0
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cluster.errors import BadConfig
from tasks.objectives.base import Vocabulary, documents
from tasks.objectives.convert import packed
from tasks.objectives.paired import PairedObjective
from tasks.objectives.philox import below, sample_words
from tasks.objectives.span_corruption import paired_columns, sentinel_form
from tasks.objectives.stretches import is_ordinary, row_lengths, runs
from tasks.objectives.units import Draw, number_in_row, words_for

if TYPE_CHECKING:
    from tasks.objectives.settings import IidDenoising as Settings

_CHOICE, _REPLACEMENT, _NAMED = range(3)  # random streams
_MASKED_TENTHS = 9  # of the tokens that style `bert` chooses
_LOW = np.uint64(0xFFFFFFFF)


class IidDenoising(PairedObjective):
    """The objective.

    Raises:
        BadConfig: the tokenizer has neither a mask nor sentinels, and the style needs one.
    """

    settings: Settings

    def __init__(self, vocabulary: Vocabulary, settings: Settings, length_tokens: int) -> None:
        super().__init__(vocabulary, settings, length_tokens)
        masks = [vocabulary.special_tokens["mask"]] if "mask" in vocabulary.special_tokens else vocabulary.sentinels[:1]
        if settings.style in ("bert", "mass") and not masks:
            raise BadConfig(
                f"objective iid-denoising with style {settings.style!r} needs a mask token or sentinels, the tokenizer "
                "has neither",
                "train the tokenizer with another kind, or use style=drop-tokens",
            )
        self.masks = masks
        self.widths = settings.lengths(length_tokens)
        self.columns = paired_columns(settings.documents_apart)

    def _draw(
        self, seed: int, tokens_BR: np.ndarray, epochs_B: np.ndarray, indices_B: np.ndarray
    ) -> dict[str, np.ndarray]:
        chosen = self._chosen(tokens_BR, seed, epochs_B, indices_B)
        if self.settings.style == "replace-spans":
            first, end = self._nameable(chosen, partial(sample_words, seed, epochs_B, indices_B))
            return sentinel_form(tokens_BR, first, end, self, self.widths)
        is_token = tokens_BR != self.vocabulary.pad
        if self.settings.style == "drop-tokens":
            return self._with_eos(tokens_BR, is_token & ~chosen, tokens_BR, chosen)
        inputs = tokens_BR.astype(np.int64)
        rows, columns = np.nonzero(chosen)
        if self.settings.style == "bert":
            inputs[rows, columns] = self._replaced(tokens_BR[rows, columns], rows, seed, epochs_B, indices_B)
        else:
            inputs[rows, columns] = self.masks[0]
        return self._with_eos(inputs, is_token, tokens_BR, is_token)

    def _chosen(self, tokens_BR: np.ndarray, seed: int, epochs_B: np.ndarray, indices_B: np.ndarray) -> np.ndarray:
        """bool [B, R]."""
        R = tokens_BR.shape[1]
        threshold = np.uint64(round(self.settings.noise_density * 2**32))
        chosen = sample_words(seed, epochs_B, indices_B, R, _CHOICE)[:, :R] < threshold
        return chosen & is_ordinary(tokens_BR, self.vocabulary)

    def _replaced(
        self, original: np.ndarray, rows: np.ndarray, seed: int, epochs_B: np.ndarray, indices_B: np.ndarray
    ) -> np.ndarray:
        """What the chosen tokens become, style `bert`: from one word per chosen token."""
        number = number_in_row(rows, len(indices_B))
        words = sample_words(seed, epochs_B, indices_B, int(number.max(initial=0)) + 1, _REPLACEMENT)
        tenths = words[rows, number] * np.uint64(10)
        result = np.full(original.shape, self.masks[0], dtype=np.int64)
        random = np.flatnonzero(tenths >> np.uint64(32) >= _MASKED_TENTHS)
        # What is left of the word below its tenth is uniform again.
        ordinary = self.vocabulary.ordinary
        result[random] = ordinary[below(tenths[random] & _LOW, len(ordinary))]
        return result

    def _nameable(self, chosen_BR: np.ndarray, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """(first, end) of the runs that get a sentinel, as `sentinel_form` takes them."""
        B, R = chosen_BR.shape
        first, end = runs(chosen_BR)
        row, size = first // R, end - first
        counts = np.bincount(row, minlength=B)
        number = number_in_row(row, B)
        # Every other token chosen, both ends too, is the one pattern whose targets are one too long: its first stays.
        full = counts + np.bincount(row, size, B).astype(np.int64) >= self.widths[1]
        keep = ~(full[row] & (number == 0) & (size == 1))
        if counts.max(initial=0) > len(self.vocabulary.sentinels):
            order = np.lexsort((words_for(row, B, draw, _NAMED), row))  # rows stay where they are
            keep[order] &= number < len(self.vocabulary.sentinels)
        first = first + (full[row] & (number == 0) & (size > 1))
        return first[keep], end[keep]

    def _with_eos(
        self, inputs_BR: np.ndarray, in_inputs: np.ndarray, targets_BR: np.ndarray, in_targets: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What stays of each, followed by EOS."""
        pad, eos = self.vocabulary.pad, self.vocabulary.eos
        drawn = {
            "inputs": packed(inputs_BR, in_inputs, self.widths[0], pad, eos),
            "targets": packed(targets_BR, in_targets, self.widths[1], pad, eos),
        }
        if self.settings.documents_apart:
            segments = documents(targets_BR, eos)[0]
            lengths = row_lengths(targets_BR, pad)
            last = segments[np.arange(len(lengths)), np.maximum(lengths - 1, 0)][:, None]
            drawn["input_segments"] = packed(segments, in_inputs, self.widths[0], last)
            drawn["target_segments"] = packed(segments, in_targets, self.widths[1], last)
        return drawn
