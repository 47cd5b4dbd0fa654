"""ELECTRA's replaced-token detection (Clark et al. 2020, section 2; details as in the authors' code).

A small generator fills masked places, the model tells which tokens of the result are not the original ones.
Places are chosen as in masked language modelling, n = min(max_predictions, max(1, round(mask_rate · len))) of
them; `mask_share` (85 %) become [MASK], the rest stay as they are, none is random.

What the generator puts there is drawn in the model, by inverting its cumulative distribution at `uniforms`: so
the sample's draw, too, is a function of (seed, epoch, index), given the weights.

Worked example (seed 0, epoch 0, index 1; asserted by a test). Vocabulary of 100 with [PAD] [UNK] [CLS] [SEP]
[MASK] = 0…4, mask_rate 0.3, so n = round(0.3 · 10) = 3; uniforms rounded:

    tokens               2  11  12  13  14  15  16  17  18   3
    input_ids            2  11  12  13   4  15  16  17  18   3
    labels               .   .   .  13  14   .   .   .  18   .
    uniforms             .   .   . .86 .55   .   .   . .34   .
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from tasks.objectives.base import Objective, Vocabulary, documents
from tasks.objectives.mlm import Replacement, masked
from tasks.objectives.philox import sample_words
from tasks.objectives.settings import ReplacedTokens
from tasks.objectives.units import PICKS, Chosen, bert_budget, choose_tokens, words_for


class ReplacedTokenDetection(Objective):
    """The objective. A batch has input_ids (masked), labels (originals where chosen), attention_mask,
    original_ids int64 [B, L] (the row as it was), uniforms float32 [B, L] (in [0, 1) where chosen, 0 elsewhere),
    and segment_ids, position_ids with `documents_apart`.
    """

    settings: ReplacedTokens
    columns = ("input_ids", "labels", "original_ids", "uniforms")

    def __init__(self, vocabulary: Vocabulary, settings: ReplacedTokens, length_tokens: int) -> None:
        super().__init__(vocabulary, settings, length_tokens)
        self.most = settings.max_predictions or 1 << 30
        self._candidate = ~vocabulary.special
        self._replace = Replacement(vocabulary, settings.mask_share, random_share=0.0)

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
        attention_mask = tokens_BR != self.vocabulary.pad
        budget = bert_budget(attention_mask, self.settings.mask_rate, self.most)
        places, counts, fates = choose_tokens(np.take(self._candidate, tokens_BR), budget, draw)
        rows = np.repeat(np.arange(len(counts)), counts)
        input_ids, labels = masked(tokens_BR, Chosen(places, fates), self._replace)
        uniforms = np.zeros(tokens_BR.shape, dtype=np.float32)
        # 24 bits are what float32 holds exactly, so that none is rounded up to 1.
        uniforms.ravel()[places] = (words_for(rows, len(tokens_BR), draw, PICKS) >> np.uint64(8)) * np.float32(2**-24)
        batch = {
            "input_ids": input_ids,
            "labels": labels,
            "attention_mask": attention_mask,
            "original_ids": tokens_BR.astype(np.int64),
            "uniforms": uniforms,
        }
        if self.settings.documents_apart:
            separator = self.vocabulary.special_tokens["sep"]
            batch["segment_ids"], batch["position_ids"] = documents(tokens_BR, separator)
        return batch
