"""ELMo: a language model of each direction over the same tokens (Peters et al. 2018, arXiv:1802.05365, section 3.1).

The forward model predicts a row's next token from those before, the backward model the token before from those
after. The first token of a row has no label backward and the last none forward; EOS is a label, other special tokens
are not. With `documents_apart` no label stands across the end of a document, and `segment_ids` tell the model where
its states begin anew; without, they run on through a row, as in the authors' code.

Worked example (asserted by a test). Vocabulary of 100 with [PAD] [EOS] [UNK] = 0, 1, 2; a dot is -100:

    tokens             11  12  13   1  14   2  15   1   0   0
    labels_forward     12  13   1  14   .  15   1   .   .   .
    labels_backward     .  11  12  13   1  14   .  15   .   .

with documents_apart:

    labels_forward     12  13   1   .   .  15   1   .   .   .
    labels_backward     .  11  12  13   .  14   .  15   .   .
    segment_ids         0   0   0   0   1   1   1   1   2   2
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tasks.objectives.base import IGNORED, Objective, documents


class BidirectionalLanguageModel(Objective):
    """The objective; of its settings only documents_apart matters here. Static masking has no use for it."""

    columns = ()
    shares_padding = True

    def draw(
        self,
        tokens_BR: np.ndarray,
        seed: int,
        epochs_B: np.ndarray,
        indices_B: np.ndarray,
        facts: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """See `Objective.draw`; nothing is drawn at random.

        Returns:
            input_ids, labels_forward, labels_backward int64 [B, L] (-100 without loss), attention_mask bool [B, L];
            with documents_apart also segment_ids int64 [B, L].
        """
        input_ids = tokens_BR.astype(np.int64)
        unlabelled = self.vocabulary.special.copy()
        unlabelled[self.vocabulary.eos] = False
        attention_mask = self.is_token(input_ids)
        targets = np.where(unlabelled[input_ids] | ~attention_mask, IGNORED, input_ids)
        forward, backward = np.full_like(input_ids, IGNORED), np.full_like(input_ids, IGNORED)
        forward[:, :-1], backward[:, 1:] = targets[:, 1:], targets[:, :-1]
        # Padding is no label, but it could have one: the token before it.
        backward[~attention_mask] = IGNORED
        batch = {
            "input_ids": input_ids,
            "labels_forward": forward,
            "labels_backward": backward,
            "attention_mask": attention_mask,
        }
        if self.settings.documents_apart:
            segment_ids, _ = documents(input_ids, self.vocabulary.eos)
            border = segment_ids[:, 1:] != segment_ids[:, :-1]
            forward[:, :-1][border] = IGNORED
            backward[:, 1:][border] = IGNORED
            batch["segment_ids"] = segment_ids
        return batch
