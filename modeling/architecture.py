"""What a transformer is, as data: `TransformerConfig` and the names of the presets.

Apart from `modeling.transformer`, which builds it, so that planning a run (which only reads configs)
does not import torch.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from modeling.config import Config, Registry
from modeling.errors import ConfigError

PRESETS = Registry(
    "model preset",
    {
        "bert-tiny": "modeling.presets:BERT_TINY",
        "bert-mini": "modeling.presets:BERT_MINI",
        "bert-small": "modeling.presets:BERT_SMALL",
        "bert-medium": "modeling.presets:BERT_MEDIUM",
        "bert-base": "modeling.presets:BERT_BASE",
        "bert-large": "modeling.presets:BERT_LARGE",
        "modern-tiny": "modeling.presets:MODERN_TINY",
        "modern-mini": "modeling.presets:MODERN_MINI",
        "modern-small": "modeling.presets:MODERN_SMALL",
        "modern-base": "modeling.presets:MODERN_BASE",
    },
)
"""Names of published and recommended shapes; `preset(name)` gives the config."""

VOCABULARY_MULTIPLE = 64
"""The embedding's rows are rounded up to this, for aligned matrix products; padded ids never get a label."""


class TransformerConfig(Config):
    """Shape and options of one transformer stack.

    A string stands for a preset and `{"preset": name, field: value, ...}` for a preset with changes,
    wherever a TransformerConfig is expected.
    """

    architecture: Literal["encoder"] = "encoder"
    vocab_size: int = Field(0, ge=0, description="tokens of the tokenizer; 0 until the tokenizer is known")
    layers: int = Field(4, ge=1)
    width: int = Field(256, ge=1, description="D: size of the residual stream")
    heads: int = Field(4, ge=1)
    ff_width: int = Field(1024, ge=1, description="inner size of the feed-forward layer (one branch of a GLU)")
    max_length: int = Field(512, ge=1, description="longest sequence, in tokens")
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_placement: Literal["pre", "post"] = "post"
    norm_eps: float = Field(1e-12, gt=0)
    positions: Literal["learned", "rotary"] = "learned"
    rotary_base: float = Field(10_000.0, gt=1)
    activation: Literal["gelu", "relu", "geglu", "swiglu"] = "gelu"
    bias: bool = Field(True, description="bias in the linear layers of the blocks")
    qk_norm: bool = Field(False, description="RMS-normalise queries and keys per head")
    token_types: int = Field(0, ge=0, description="number of segment embeddings; 0: none")
    tie_embeddings: bool = Field(True, description="output matrix = token embedding")
    head_transform: bool = Field(True, description="dense + activation + norm before the MLM output (BERT)")
    dropout: float = Field(0.0, ge=0, lt=1)
    init_std: float = Field(0.02, gt=0)
    zero_init_residual: bool = Field(False, description="output projections of the blocks start at zero")

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"preset": value}
        if isinstance(value, dict) and "preset" in value:
            changes = {k: v for k, v in value.items() if k != "preset"}
            return {**PRESETS.load(value["preset"]), **changes}
        return value

    @model_validator(mode="after")
    def _possible(self) -> TransformerConfig:
        if self.width % self.heads:
            raise ConfigError(
                f"width {self.width} is not a multiple of heads {self.heads}",
                f"use heads that divide it, such as {_nearest_divisor(self.width, self.heads)}",
            )
        if self.positions == "rotary" and (self.width // self.heads) % 2:
            raise ConfigError(
                f"positions rotary need an even head size, found width / heads = {self.width // self.heads}",
                "change heads or use positions learned",
            )
        if self.zero_init_residual and self.norm_placement == "post":
            raise ConfigError(
                "zero_init_residual needs norm_placement pre, found post",
                "a post-norm block has no identity path to start from",
            )
        return self

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding matrix: vocab_size rounded up to `VOCABULARY_MULTIPLE`."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    def with_vocabulary(self, vocab_size: int) -> TransformerConfig:
        """This config for a tokenizer of `vocab_size` tokens.

        Raises ConfigError where the config names another size.
        """
        if self.vocab_size not in (0, vocab_size):
            raise ConfigError(
                f"model.vocab_size is {self.vocab_size}, but the tokenizer has {vocab_size} tokens",
                "leave model.vocab_size at 0: it is taken from the tokenizer",
            )
        return self.model_copy(update={"vocab_size": vocab_size})


def _nearest_divisor(width: int, heads: int) -> int:
    return min((d for d in range(1, width + 1) if width % d == 0), key=lambda d: abs(d - heads))


def preset(name: str, **changes: Any) -> TransformerConfig:
    """The preset `name`, with fields changed. Raises ConfigError for an unknown name, with the nearest one."""
    return TransformerConfig(**{**PRESETS.load(name), **changes})
