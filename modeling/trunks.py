"""What a task's head stands on: a transformer, or the features of an earlier system, by architecture."""

from __future__ import annotations

from typing import Any

from modeling.config import Registry
from modeling.errors import ConfigError

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


def check_language_model(config: Any) -> None:
    """Raise ConfigError where a classifier's trunk cannot also be a language model without weights of its own."""
    if getattr(config, "architecture", "") != "decoder":
        raise ConfigError(
            f"lm_weight: architecture {getattr(config, 'architecture', 'none')} predicts no next token",
            "set it to 0, or take a decoder",
        )
    if not config.tie_embeddings or config.head_transform or config.head_bias:
        raise ConfigError(
            "lm_weight: the model's output layer has weights of its own, which fine-tuning does not keep",
            "set it to 0, or take a model with tie_embeddings, without head_transform and head_bias",
        )


def check_pooling(config: Any, pooling: str) -> None:
    """Raise ConfigError where the one token that stands for a sequence knows nothing of the others."""
    blind = {"decoder": ("cls",), "word-vectors": ("cls", "last")}
    if pooling in blind.get(config.architecture, ()):
        token = "first" if pooling == "cls" else "last"
        raise ConfigError(
            f"pooling: {pooling} takes the {token} token, which knows nothing of the others in architecture "
            f"{config.architecture}",
            "set it to last or mean" if config.architecture == "decoder" else "set it to mean",
        )
