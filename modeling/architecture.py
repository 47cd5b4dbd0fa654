"""What a transformer is, as data: `TransformerConfig` and the names of the presets.

Apart from `modeling.transformer`, which builds it, so that planning a run (which only reads configs)
does not import torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from modeling.config import Config, Registry, section
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
        "roberta-base": "modeling.presets:ROBERTA_BASE",
        "roberta-large": "modeling.presets:ROBERTA_LARGE",
        "electra-small": "modeling.presets:ELECTRA_SMALL",
        "electra-base": "modeling.presets:ELECTRA_BASE",
        "electra-large": "modeling.presets:ELECTRA_LARGE",
        "albert-base": "modeling.presets:ALBERT_BASE",
        "albert-large": "modeling.presets:ALBERT_LARGE",
        "xlnet-base": "modeling.presets:XLNET_BASE",
        "xlnet-large": "modeling.presets:XLNET_LARGE",
        "gpt": "modeling.presets:GPT",
        "gpt2-124M": "modeling.presets:GPT2_124M",
        "gpt2-355M": "modeling.presets:GPT2_355M",
        "gpt2-774M": "modeling.presets:GPT2_774M",
        "gpt2-1558M": "modeling.presets:GPT2_1558M",
        "gpt3-125M": "modeling.presets:GPT3_125M",
        "gpt3-350M": "modeling.presets:GPT3_350M",
        "gpt3-760M": "modeling.presets:GPT3_760M",
        "gpt3-1.3B": "modeling.presets:GPT3_1_3B",
        "gpt3-2.7B": "modeling.presets:GPT3_2_7B",
        "gpt3-6.7B": "modeling.presets:GPT3_6_7B",
        "gpt3-13B": "modeling.presets:GPT3_13B",
        "gpt3-175B": "modeling.presets:GPT3_175B",
        "gopher-280b": "modeling.presets:GOPHER_280B",
        "chinchilla-70b": "modeling.presets:CHINCHILLA_70B",
        "t5-small": "modeling.presets:T5_SMALL",
        "t5-base": "modeling.presets:T5_BASE",
        "t5-large": "modeling.presets:T5_LARGE",
        "t5-3b": "modeling.presets:T5_3B",
        "t5-11b": "modeling.presets:T5_11B",
        "t5.1.1-small": "modeling.presets:T5_1_1_SMALL",
        "t5.1.1-base": "modeling.presets:T5_1_1_BASE",
        "t5.1.1-large": "modeling.presets:T5_1_1_LARGE",
        "t5.1.1-xl": "modeling.presets:T5_1_1_XL",
        "t5.1.1-xxl": "modeling.presets:T5_1_1_XXL",
        "prefix-lm-base": "modeling.presets:PREFIX_LM_BASE",
        "bart-base": "modeling.presets:BART_BASE",
        "bart-large": "modeling.presets:BART_LARGE",
        "mass-base": "modeling.presets:MASS_BASE",
        "word2vec": "modeling.presets:WORD2VEC",
        "glove": "modeling.presets:GLOVE",
        "elmo": "modeling.presets:ELMO",
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

    architecture: Literal["encoder", "decoder", "prefix-lm", "encoder-decoder"] = Field(
        "encoder", description="prefix-lm: a decoder that sees its prefix whole"
    )
    vocab_size: int = Field(0, ge=0, description="tokens of the tokenizer; 0 until the tokenizer is known")
    layers: int = Field(4, ge=1, description="of the one stack, or of the encoder")
    decoder_layers: int = Field(0, ge=0, description="encoder-decoder: layers of the decoder; 0: as many as layers")
    width: int = Field(256, ge=1, description="D: size of the residual stream")
    heads: int = Field(4, ge=1)
    head_size: int = Field(0, ge=0, description="width of one attention head; 0: width / heads")
    ff_width: int = Field(1024, ge=1, description="inner size of the feed-forward layer (one branch of a GLU)")
    embedding_width: int = Field(0, ge=0, description="factorised embeddings: of this width, projected to D; 0: D")
    share_layers: bool = Field(False, description="one layer's weights for all layers of a stack (ALBERT)")
    share_stacks: bool = Field(False, description="encoder-decoder: the decoder uses the encoder's weights")
    max_length: int = Field(512, ge=1, description="longest sequence, in tokens")
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_placement: Literal["pre", "post"] = "post"
    norm_eps: float = Field(1e-12, gt=0)
    embedding_norm: bool | None = Field(None, description="norm on the embeddings; none: where norm_placement is post")
    positions: Literal["learned", "relative", "rotary", "transformer-xl", "none"] = Field(
        "learned", description="relative: T5's buckets; transformer-xl: XLNet's, with relative segments"
    )
    position_offset: int = Field(0, ge=0, description="first row of the table of learned positions (RoBERTa, BART: 2)")
    relative_buckets: int = Field(32, ge=4, description="relative positions: buckets of distances")
    relative_max_distance: int = Field(128, ge=2, description="distance from which all share a bucket")
    relative_init: Literal["normal", "near"] = Field(
        "normal", description="near: heads begin with the nearest tokens, in turn on the left and on the right"
    )
    rotary_base: float = Field(10_000.0, gt=1)
    activation: Literal["gelu", "gelu-tanh", "relu", "geglu", "geglu-tanh", "swiglu"] = "gelu"
    bias: bool = Field(True, description="bias in the linear layers of the blocks")
    qk_norm: bool = Field(False, description="RMS-normalise queries and keys per head")
    attention_scale: bool = Field(True, description="divide attention scores by √head size; T5 does not")
    token_types: int = Field(0, ge=0, description="number of segment embeddings; 0: none")
    tie_embeddings: bool = Field(True, description="output matrix = token embedding")
    head_transform: bool = Field(True, description="dense + activation + norm before the output matrix (BERT)")
    head_bias: bool = Field(True, description="bias of the output matrix")
    head_scale: bool = Field(False, description="scale the output's input by 1/√width (T5 with a tied head)")
    generator_share: float = Field(0.25, gt=0, le=1, description="ELECTRA: the generator's width / the model's")
    dropout: float = Field(0.0, ge=0, lt=1)
    init: Literal["normal", "fan-in"] = Field("normal", description="fan-in: deviation 1/√inputs, T5's without scale")
    init_std: float = Field(0.02, gt=0, description="of init normal")
    zero_init_residual: bool = Field(False, description="output projections of the blocks start at zero")
    scaled_init_residual: bool = Field(False, description="they start at init_std/√(2·layers) (GPT-2)")

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
        if not self.head_size and self.width % self.heads:
            raise ConfigError(
                f"width {self.width} is not a multiple of heads {self.heads}",
                f"use heads that divide it, such as {_nearest_divisor(self.width, self.heads)}, or set head_size",
            )
        if self.positions == "rotary" and self.head_width % 2:
            raise ConfigError(
                f"positions rotary need an even head size, found {self.head_width}",
                "change heads or use positions learned",
            )
        if self.zero_init_residual and self.norm_placement == "post":
            raise ConfigError(
                "zero_init_residual needs norm_placement pre, found post",
                "a post-norm block has no identity path to start from",
            )
        if self.relative_init == "near" and self.positions != "relative":
            raise ConfigError(
                f"relative_init near needs positions relative, found {self.positions}", "change one of the two"
            )
        if self.architecture != "encoder-decoder" and (self.share_stacks or self.decoder_layers):
            name = "share_stacks" if self.share_stacks else "decoder_layers"
            raise ConfigError(f"{name} needs architecture encoder-decoder, found {self.architecture}", f"unset {name}")
        if self.share_stacks and self.decoder_layers not in (0, self.layers):
            raise ConfigError(
                f"share_stacks needs as many decoder_layers as layers, found {self.decoder_layers} and {self.layers}",
                "leave decoder_layers at 0",
            )
        if self.positions == "transformer-xl" and (wrong := self._wrong_for_transformer_xl()):
            raise ConfigError(f"positions transformer-xl need {wrong}", "change it, or use positions learned or rotary")
        if self.embedding_width not in (0, self.width) and self.tie_embeddings and not self.head_transform:
            raise ConfigError(
                f"embedding_width {self.embedding_width} is not width {self.width}, so a tied output matrix "
                "needs head_transform",
                "set head_transform=true or tie_embeddings=false",
            )
        return self

    def _wrong_for_transformer_xl(self) -> str:
        if (self.architecture, self.norm_placement) != ("encoder", "post"):
            return f"a post-norm encoder, found {self.norm_placement}-norm {self.architecture}"
        if self.width % 2:
            return f"an even width, found {self.width}"
        if self.embedding_width not in (0, self.width):
            return f"embeddings as wide as the model, found embedding_width {self.embedding_width}"
        if self.qk_norm:
            return "qk_norm false, found true: its biases on the queries come before any norm"
        return ""

    @property
    def head_width(self) -> int:
        """Size of one attention head."""
        return self.head_size or self.width // self.heads

    @property
    def token_width(self) -> int:
        """Width of the embeddings, E."""
        return self.embedding_width or self.width

    @property
    def normalises_embeddings(self) -> bool:
        return self.norm_placement == "post" if self.embedding_norm is None else self.embedding_norm

    @property
    def depth(self) -> int:
        """Layers of both stacks together, for the scaled initialisation."""
        return self.layers + (self.decoder_layers or self.layers if self.architecture == "encoder-decoder" else 0)

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


def generator_config(config: TransformerConfig) -> TransformerConfig:
    """ELECTRA's generator: `generator_share` of the width, feed-forward and heads, at the same depth."""
    share = config.generator_share
    heads = max(1, round(config.heads * share))
    width = max(heads, round(config.width * share / heads) * heads)
    own = {
        "width": width,
        "heads": heads,
        "head_size": 0,
        "ff_width": max(1, round(config.ff_width * share)),
        "embedding_width": config.token_width,
        "tie_embeddings": True,
        "head_transform": True,
        "head_bias": True,
    }
    return section(TransformerConfig, {name: getattr(config, name) for name in TransformerConfig.model_fields} | own)


CONFIGS = Registry(
    "architecture",
    {
        "encoder": "modeling.architecture:TransformerConfig",
        "decoder": "modeling.architecture:TransformerConfig",
        "prefix-lm": "modeling.architecture:TransformerConfig",
        "encoder-decoder": "modeling.architecture:TransformerConfig",
        "word-vectors": "modeling.baseline_configs:WordVectorsConfig",
        "bilstm": "modeling.baseline_configs:ElmoConfig",
    },
)
"""Which config an architecture has."""


class ModelConfig(Protocol):
    """What every model's config has."""

    architecture: str
    vocab_size: int
    width: int
    max_length: int

    @property
    def padded_vocab_size(self) -> int: ...

    def with_vocabulary(self, vocab_size: int) -> Any: ...

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]: ...


def _any_model(value: Any) -> Any:
    """A preset's name, or fields, as the config of its architecture."""
    if isinstance(value, str):
        value = {"preset": value}
    if not isinstance(value, dict):
        return value
    if "preset" in value:
        changes = {k: v for k, v in value.items() if k != "preset"}
        value = {**PRESETS.load(value["preset"]), **changes}
    return section(CONFIGS.load(value.get("architecture", "encoder")), value)


AnyModel = Annotated[SerializeAsAny[Config], BeforeValidator(_any_model)]
"""A config field that holds any model's shape: a preset's name, `{"preset": name, field: value}`, or fields."""


def model_config(value: Any) -> Any:
    """The config that a preset's name or a mapping of fields stands for."""
    return _any_model(value)
