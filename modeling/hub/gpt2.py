"""GPT-2 (Radford et al. 2019), whose shape GPT-3's also is, and the first GPT (Radford et al. 2018), post-norm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from modeling.architecture import TransformerConfig
from modeling.hub.family import ACTIVATIONS, GELU_TANH, Family, FieldPair, HubClass, stack_blocks, vocabulary_rows
from modeling.hub.mapping import TURNED, StateMap, layer, rule

_DECODER: Mapping[str, Any] = {
    "architecture": "decoder",
    "norm": "layernorm",
    "embedding_norm": False,
    "positions": "learned",
    "position_offset": 0,
    "bias": True,
    "qk_norm": False,
    "token_types": 0,
    "head_transform": False,
    "head_bias": False,
    "head_scale": False,
}

_FIELDS = (
    FieldPair("n_embd", "width", 768),
    FieldPair("n_layer", "layers", 12),
    FieldPair("n_head", "heads", 12),
    FieldPair("layer_norm_epsilon", "norm_eps", 1e-5),
    FieldPair("resid_pdrop", "dropout", 0.1),
    FieldPair("embd_pdrop", "dropout", 0.1),
    FieldPair("attn_pdrop", "dropout", 0.1),
    FieldPair("initializer_range", "init_std", 0.02),
    FieldPair("tie_word_embeddings", "tie_embeddings", True),
)

_BUFFERS = (r"\.attn\.bias$", r"\.attn\.masked_bias$")
"""The causal mask, which older files hold."""


class _Gpt(Family):
    base, outside = "transformer.", ("lm_head.",)
    output, generates = "lm_head.weight", True
    tokens: ClassVar[str]
    positions: ClassVar[str]

    def limits(self, values: Mapping[str, Any], head: Mapping[str, Any], roles: Mapping[str, int]) -> Iterator[str]:
        if values["head_size"] * values["heads"] != values["width"]:
            yield f"head_size is {values['head_size']}, expected width / heads = {values['width'] / values['heads']:g}"
        if values["embedding_width"] != values["width"]:
            yield f"embedding_width is {values['embedding_width']}, expected width = {values['width']}"

    def state_map(self, config: TransformerConfig, head: Mapping[str, Any]) -> StateMap:
        own = "transformer.decoder"
        rules = [
            rule("transformer.tokens.weight", self.embedding, by=vocabulary_rows(config)),
            rule(f"{own}.positions.weight", f"transformer.{self.positions}.weight"),
        ]
        for n, ours in stack_blocks(config, "decoder"):
            theirs = f"transformer.h.{n}."
            rules += layer(f"{ours}.attention_norm", f"{theirs}ln_1")
            rules += layer(f"{ours}.attention.qkv", f"{theirs}attn.c_attn", by=TURNED)
            rules += layer(f"{ours}.attention.output", f"{theirs}attn.c_proj", by=TURNED)
            rules += layer(f"{ours}.ff_norm", f"{theirs}ln_2")
            rules += layer(f"{ours}.ff.input", f"{theirs}mlp.c_fc", by=TURNED)
            rules += layer(f"{ours}.ff.output", f"{theirs}mlp.c_proj", by=TURNED)
        if config.norm_placement == "pre":
            rules += layer(f"{own}.final_norm", "transformer.ln_f")
        if not config.tie_embeddings:
            rules.append(rule("head.matrix.weight", self.output, by=vocabulary_rows(config)))
        aliases = {self.output: self.embedding} if config.tie_embeddings else {}
        return StateMap(tuple(rules), aliases=aliases, left=_BUFFERS)


class Gpt2(_Gpt):
    model_type = "gpt2"
    classes = (HubClass("GPT2LMHeadModel", "language-model"), HubClass("GPT2Model", "language-model"))
    fixed: ClassVar[Mapping[str, Any]] = {**_DECODER, "norm_placement": "pre"}
    fields = (
        FieldPair("vocab_size", "vocab_size", 50_257),
        FieldPair("n_positions", "max_length", 1024),
        FieldPair("activation_function", "activation", "gelu_new", ACTIVATIONS),
        FieldPair("scale_attn_weights", "attention_scale", True),
        *_FIELDS,
    )
    accepted: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    embedding, positions = "transformer.wte.weight", "wpe"

    def more_written(self, values: Mapping[str, Any], roles: Mapping[str, int]) -> dict[str, Any]:
        return {"n_inner": values["ff_width"]}

    def more_read(self, theirs: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {"ff_width": theirs.get("n_inner") or 4 * theirs.get("n_embd", 768)}


class OpenAIGpt(_Gpt):
    model_type = "openai-gpt"
    classes = (HubClass("OpenAIGPTLMHeadModel", "language-model"), HubClass("OpenAIGPTModel", "language-model"))
    fixed: ClassVar[Mapping[str, Any]] = {**_DECODER, "norm_placement": "post", "attention_scale": True}
    fields = (
        FieldPair("vocab_size", "vocab_size", 40_478),
        FieldPair("n_positions", "max_length", 512),
        # its "gelu" is the tanh form
        FieldPair("afn", "activation", "gelu", {"gelu-tanh": ("gelu", *GELU_TANH), "relu": ("relu",)}),
        *_FIELDS,
    )
    embedding, positions = "transformer.tokens_embed.weight", "positions_embed"

    def limits(self, values: Mapping[str, Any], head: Mapping[str, Any], roles: Mapping[str, int]) -> Iterator[str]:
        yield from super().limits(values, head, roles)
        if values["ff_width"] != 4 * values["width"]:
            yield f"ff_width is {values['ff_width']}, expected 4 · width = {4 * values['width']}"

    def more_read(self, theirs: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {"ff_width": 4 * theirs.get("n_embd", 768)}
