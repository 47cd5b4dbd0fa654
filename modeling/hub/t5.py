"""T5 1.0 and 1.1 (Raffel et al. 2020; 1.1 in their code): `T5ForConditionalGeneration`.

1.1 has gated layers, an output matrix of its own, and no scale before it. Their config says the latter two by one
field, `tie_word_embeddings`; transformers 5 has `scale_decoder_outputs` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from modeling.architecture import TransformerConfig
from modeling.hub.family import ACTIVATIONS, Family, FieldPair, HubClass, stack_blocks, vocabulary_rows
from modeling.hub.mapping import STACKED, Rule, StateMap, rule, stacked

_MAX_LENGTH = 512  # nothing in the model limits it; the released configs say 512


class T5(Family):
    model_type = "t5"
    classes = (
        HubClass("T5ForConditionalGeneration", "language-model"),
        HubClass("T5WithLMHeadModel", "language-model"),  # its name in the first releases
    )
    fixed: ClassVar[Mapping[str, Any]] = {
        "architecture": "encoder-decoder",
        "norm": "rmsnorm",
        "norm_placement": "pre",
        "embedding_norm": False,
        "positions": "relative",
        "bias": False,
        "qk_norm": False,
        "attention_scale": False,
        "token_types": 0,
        "head_transform": False,
        "head_bias": False,
    }
    fields = (
        FieldPair("vocab_size", "vocab_size", 32_128),
        FieldPair("d_model", "width", 512),
        FieldPair("d_kv", "head_size", 64),
        FieldPair("d_ff", "ff_width", 2048),
        FieldPair("num_layers", "layers", 6),
        FieldPair("num_heads", "heads", 8),
        FieldPair("relative_attention_num_buckets", "relative_buckets", 32),
        FieldPair("relative_attention_max_distance", "relative_max_distance", 128),
        FieldPair("n_positions", "max_length", _MAX_LENGTH),
        FieldPair(
            "feed_forward_proj",
            "activation",
            "relu",
            {"geglu-tanh": ("gated-gelu", "gated-gelu_new"), "swiglu": ("gated-silu",), **ACTIVATIONS},
        ),
        FieldPair("dropout_rate", "dropout", 0.1),
        FieldPair("layer_norm_epsilon", "norm_eps", 1e-6),
        FieldPair("tie_word_embeddings", "tie_embeddings", True),
        FieldPair("scale_decoder_outputs", "head_scale", True),
    )
    accepted: ClassVar[Mapping[str, tuple[Any, ...]]] = {"is_encoder_decoder": (True,)}
    written: ClassVar[Mapping[str, Any]] = {"is_encoder_decoder": True}
    output, embedding, generates = "lm_head.weight", "shared.weight", True

    def limits(self, values: Mapping[str, Any], head: Mapping[str, Any], roles: Mapping[str, int]) -> Any:
        if values["embedding_width"] != values["width"]:
            yield f"embedding_width is {values['embedding_width']}, expected width = {values['width']}"

    def more_written(self, values: Mapping[str, Any], roles: Mapping[str, int]) -> dict[str, Any]:
        return {"num_decoder_layers": values["decoder_layers"]}

    def more_read(self, theirs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        scaled = theirs.get("scale_decoder_outputs", theirs.get("tie_word_embeddings", True))
        return {
            "decoder_layers": theirs.get("num_decoder_layers") or 0,
            "head_scale": scaled,
            # the released models' weights were trained without a scale in attention, for which they begin smaller
            "init": "fan-in",
        }

    def tied(self, theirs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
        """By the tensors alone: the config's field is about the scale (transformers reads it so)."""
        if self.output not in tensors:
            return True
        return theirs.get("tie_word_embeddings", True) is not False and super().tied(theirs, tensors)

    def state_map(self, config: TransformerConfig, head: Mapping[str, Any]) -> StateMap:
        rules = [rule("transformer.tokens.weight", self.embedding, by=vocabulary_rows(config))]
        aliases = {f"{stack}.embed_tokens.weight": self.embedding for stack in ("encoder", "decoder")}
        for stack in ("encoder", "decoder"):
            own = f"transformer.{stack}"
            relative = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            rules.append(rule(f"{own}.relative.weight", relative))
            for n, ours in stack_blocks(config, stack):
                rules += _block(config, ours, f"{own}.cross.{n}", f"{stack}.block.{n}.layer.", stack == "decoder")
            rules.append(rule(f"{own}.final_norm.weight", f"{stack}.final_layer_norm.weight"))
        if config.tie_embeddings:
            aliases[self.output] = self.embedding
        else:
            rules.append(rule("head.matrix.weight", self.output, by=vocabulary_rows(config)))
        # files of the first release have a table of positions that the attention over the encoder never read
        left = (r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias",)
        return StateMap(tuple(rules), aliases=aliases, left=left)


def _block(config: TransformerConfig, ours: str, cross: str, theirs: str, decoder: bool) -> list[Rule]:
    def attention(qkv: str) -> list[str]:
        return [f"{theirs}0.SelfAttention.{part}" for part in qkv]

    rules = stacked(f"{ours}.attention.qkv", attention("qkv"), bias=False)
    rules.append(rule(f"{ours}.attention.output.weight", f"{theirs}0.SelfAttention.o.weight"))
    rules.append(rule(f"{ours}.attention_norm.weight", f"{theirs}0.layer_norm.weight"))
    if decoder:
        rules.append(rule(f"{cross}.query.weight", f"{theirs}1.EncDecAttention.q.weight"))
        rules += stacked(f"{cross}.key_value", [f"{theirs}1.EncDecAttention.{part}" for part in "kv"], bias=False)
        rules.append(rule(f"{cross}.output.weight", f"{theirs}1.EncDecAttention.o.weight"))
        rules.append(rule(f"{cross}.norm.weight", f"{theirs}1.layer_norm.weight"))
    last = f"{theirs}{2 if decoder else 1}"
    inner = f"{last}.DenseReluDense"
    if "glu" in config.activation:
        rules.append(rule(f"{ours}.ff.input.weight", f"{inner}.wi_0.weight", f"{inner}.wi_1.weight", by=STACKED))
    else:
        rules.append(rule(f"{ours}.ff.input.weight", f"{inner}.wi.weight"))
    rules.append(rule(f"{ours}.ff.output.weight", f"{inner}.wo.weight"))
    rules.append(rule(f"{ours}.ff_norm.weight", f"{last}.layer_norm.weight"))
    return rules
