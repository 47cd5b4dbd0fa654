"""Causal language modelling: the next token from those before it (GPT; Radford et al. 2018, equation 1).

A raw row is length_tokens + 1 tokens of a stream in which the separator (GPT-2's <|endoftext|>) stands *before* each
document. Inputs are all but the last token, labels all but the first; rows overlap by that one token, so that each
token of the stream but the very first is a label once.

With `documents_apart` (the default) each document of the row has its own segment and positions from 0, and sees only
itself. Labels stay as they are, and none crosses documents: the separator belongs to the document that it begins, so
the first token of a document is predicted from that document's own separator, not from the one before. The separator
that follows a document is the label at the document's last token: it is that document's end, the same for any
successor, and how the model learns to stop. At the row's end the label is the stream's next token, whatever the next
row holds. Without loss are only places whose label, or input, is padding.

Worked example (asserted by a test): pad 0, separator 1, 7 + 1 raw tokens.

    tokens              11  12   1  13  14   1  15  16
    input_ids           11  12   1  13  14   1  15
    labels              12   1  13  14   1  15  16
    segment_ids          0   0   1   1   1   2   2
    position_ids         0   1   0   1   2   0   1

A split's last row:

    tokens               1  17  18   0   0   0   0   0
    input_ids            1  17  18   0   0   0   0
    labels              17  18   .   .   .   .   .        (. = -100)
    segment_ids          0   0   0   0   0   0   0
    position_ids         0   1   2   3   4   5   6
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tasks.objectives.base import IGNORED, Objective, documents


class CausalLanguageModel(Objective):
    """The objective. Nothing in it is random."""

    shares_padding = True

    def draw(
        self,
        tokens_BR: np.ndarray,
        seed: int,
        epochs_B: np.ndarray,
        indices_B: np.ndarray,
        facts: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """See `Objective.draw`. Returns input_ids, labels int64 [B, L], attention_mask bool [B, L] and, with documents
        apart, segment_ids, position_ids int64 [B, L]; R = L + 1."""
        is_token = self.is_token(tokens_BR)
        tokens = tokens_BR.astype(np.int64)
        input_ids = np.ascontiguousarray(tokens[:, :-1])
        # Padding stands at the end only, so a label that is a token has an input that is one.
        labels = np.where(is_token[:, 1:], tokens[:, 1:], IGNORED)
        batch = {"input_ids": input_ids, "labels": labels, "attention_mask": np.ascontiguousarray(is_token[:, :-1])}
        if self.settings.documents_apart:
            batch["segment_ids"], batch["position_ids"] = documents(input_ids, self.vocabulary.eos, True)
        return batch
