"""What a task's head stands on: a transformer, or the features of an earlier system, by architecture."""

from __future__ import annotations

from typing import Any

from modeling.config import Registry

TRUNKS = Registry(
    "architecture",
    {
        "encoder": "modeling.transformer:Transformer",
        "decoder": "modeling.transformer:Transformer",
        "prefix-lm": "modeling.transformer:Transformer",
        "encoder-decoder": "modeling.transformer:Transformer",
        "word-vectors": "modeling.word_vectors:FeatureTrunk",
        "bilstm": "modeling.elmo:FeatureTrunk",
    },
)
"""Modules that are called as `Transformer` is, and have `load_pretrained(state dict of a saved model)`."""


def make_trunk(config: Any) -> Any:
    """A trunk with new weights for a model's config."""
    return TRUNKS.load(config.architecture)(config)
