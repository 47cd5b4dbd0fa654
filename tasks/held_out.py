"""Validation examples for the training loop: evenly over the split, in chunks, with the bytes of their labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from modeling.validation import HeldOut
    from tasks.example_reader import ExampleReader

CHUNK = 64
"""Sequences of a forward pass. Not placement: sums of other chunks would round otherwise."""


def held_out(reader: ExampleReader, sequences: int, tokenizer_json: Path) -> HeldOut:
    """`sequences` examples of a validation split, evenly over it; all of them if it has no more.

    Their masks are the artifact's own, the same for every model that is validated on them. Where the objective's
    labels are text as it stands (`ObjectiveSettings.covers_text`) they come with their bytes.
    """
    from modeling.validation import LABEL_BYTES, HeldOut
    from tasks.example_reader import spread
    from tasks.label_bytes import token_bytes
    from tasks.vocabulary import tokenizers_installed

    rows = spread(len(reader), sequences)
    size_of = None
    if reader.settings.covers_text and tokenizers_installed():
        size_of = token_bytes(tokenizer_json.read_text(encoding="utf-8"), reader.vocabulary.size)
        size_of = size_of * reader.info.get("bytes_per_token_byte", 1.0)
        size_of[reader.vocabulary.special] = 0

    def chunk(number: int) -> dict[str, Any]:
        index = rows[number * CHUNK : (number + 1) * CHUNK]
        batch = reader.batch(np.stack([np.zeros_like(index), index], axis=1))
        if size_of is not None:
            labels = batch["labels"]
            batch = {**batch, LABEL_BYTES: np.where(labels >= 0, size_of[np.maximum(labels, 0)], 0)}
        return batch

    return HeldOut(-(-len(rows) // CHUNK), chunk)
