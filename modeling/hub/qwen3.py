"""Qwen3 (Yang et al. 2025, arXiv:2505.09388), dense: `Qwen3ForCausalLM`, which our gated modern decoder is.

Their heads share no keys and values here: grouped queries (Ainslie et al. 2023) have no counterpart in ours. A rotary
pair is rows (2i, 2i + 1) of a head in ours and (i, i + head size / 2) in theirs, so queries, keys and the weights of
their norms change order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from modeling.architecture import TransformerConfig
from modeling.hub.family import ACTIVATIONS, GELU_TANH, Family, FieldPair, HubClass, stack_blocks, vocabulary_rows
from modeling.hub.mapping import STACKED, Operation, StateMap, layer, rule

_HEADS, _ROTARY_BASE = 32, 10_000.0  # where a config.json leaves them out


@dataclass(frozen=True)
class Pairs(Operation):
    """Queries, keys and values one below the other, or a norm's weight; the first two in our order of pairs."""

    head_width: int

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([self._swapped(part, 2) if n < 2 else part for n, part in enumerate(parts)])

    def split(self, whole: Tensor, parts: int) -> Sequence[Tensor]:
        return [self._swapped(p, self.head_width // 2) if n < 2 else p for n, p in enumerate(whole.chunk(parts))]

    def _swapped(self, part: Tensor, rows: int) -> Tensor:
        """Each head's rows as a matrix of `rows`, transposed."""
        heads = part.unflatten(0, (-1, rows, self.head_width // rows))
        return heads.transpose(1, 2).reshape(part.shape)


class Qwen3(Family):
    model_type = "qwen3"
    classes = (HubClass("Qwen3ForCausalLM", "language-model"), HubClass("Qwen3Model", ""))
    fixed: ClassVar[Mapping[str, Any]] = {
        "architecture": "decoder",
        "norm": "rmsnorm",
        "norm_placement": "pre",
        "embedding_norm": False,
        "positions": "rotary",
        "bias": False,
        "qk_norm": True,
        "attention_scale": True,
        "token_types": 0,
        "head_transform": False,
        "head_bias": False,
        "head_scale": False,
    }
    fields = (
        FieldPair("vocab_size", "vocab_size", 151_936),
        FieldPair("hidden_size", "width", 4096),
        FieldPair("intermediate_size", "ff_width", 22_016),
        FieldPair("num_hidden_layers", "layers", 32),
        FieldPair("num_attention_heads", "heads", _HEADS),
        FieldPair("head_dim", "head_size", 128),
        FieldPair("max_position_embeddings", "max_length", 32_768),
        FieldPair("rms_norm_eps", "norm_eps", 1e-6),
        FieldPair(
            "hidden_act",
            "activation",
            "silu",
            {"swiglu": ("silu", "swish"), "geglu": ACTIVATIONS["gelu"], "geglu-tanh": GELU_TANH},
        ),
        FieldPair("attention_dropout", "dropout", 0.0),
        FieldPair("initializer_range", "init_std", 0.02),
        FieldPair("tie_word_embeddings", "tie_embeddings", False),
    )
    accepted: ClassVar[Mapping[str, tuple[Any, ...]]] = {"attention_bias": (False,), "use_sliding_window": (False,)}
    written: ClassVar[Mapping[str, Any]] = {"attention_bias": False, "use_sliding_window": False}
    base, outside = "model.", ("lm_head.",)
    output, embedding, generates = "lm_head.weight", "model.embed_tokens.weight", True

    def limits(self, values: Mapping[str, Any], head: Mapping[str, Any], roles: Mapping[str, int]) -> Iterator[str]:
        if values["embedding_width"] != values["width"]:
            yield f"embedding_width is {values['embedding_width']}, expected width = {values['width']}"

    def more_written(self, values: Mapping[str, Any], roles: Mapping[str, int]) -> dict[str, Any]:
        theta = values["rotary_base"]
        return {
            "num_key_value_heads": values["heads"],
            "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
            "rope_theta": theta,  # where transformers 4 reads it
        }

    def more_read(self, theirs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"rotary_base": _rope(theirs)[1].get("rope_theta", theirs.get("rope_theta", _ROTARY_BASE))}

    def wrong(self, theirs: Mapping[str, Any]) -> list[str]:
        heads = theirs.get("num_attention_heads", _HEADS)
        groups = theirs.get("num_key_value_heads", _HEADS)
        found = []
        if groups not in (heads, None):
            found.append(f"num_key_value_heads is {groups}, expected num_attention_heads = {heads}")
        if other := sorted(set(theirs.get("layer_types") or ()) - {"full_attention"}):
            found.append(f"layer_types has {', '.join(map(repr, other))}, expected 'full_attention' alone")
        name, rope = _rope(theirs)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if any(isinstance(value, Mapping) for value in rope.values()):
            found.append(f"{name} is by type of layer ({', '.join(map(repr, rope))}), expected one for all")
        elif kind != "default":
            found.append(f"{name}.rope_type is {kind!r}, expected 'default'")
        return found

    def tied(self, theirs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
        """Not where a config.json leaves it out, unlike in the other families."""
        return super().tied({"tie_word_embeddings": False, **theirs}, tensors)

    def state_map(self, config: TransformerConfig, head: Mapping[str, Any]) -> StateMap:
        pairs = Pairs(config.head_width)
        rules = [rule("transformer.tokens.weight", self.embedding, by=vocabulary_rows(config))]
        for n, ours in stack_blocks(config, "decoder"):
            theirs = f"model.layers.{n}."
            own, attention = f"{ours}.attention", f"{theirs}self_attn"
            rules += layer(f"{ours}.attention_norm", f"{theirs}input_layernorm", bias=False)
            rules.append(rule(f"{own}.qkv.weight", *(f"{attention}.{p}_proj.weight" for p in "qkv"), by=pairs))
            rules.append(rule(f"{own}.query_norm.weight", f"{attention}.q_norm.weight", by=pairs))
            rules.append(rule(f"{own}.key_norm.weight", f"{attention}.k_norm.weight", by=pairs))
            rules += layer(f"{own}.output", f"{attention}.o_proj", bias=False)
            rules += layer(f"{ours}.ff_norm", f"{theirs}post_attention_layernorm", bias=False)
            branches = (f"{theirs}mlp.{part}_proj.weight" for part in ("gate", "up"))
            rules.append(rule(f"{ours}.ff.input.weight", *branches, by=STACKED))
            rules += layer(f"{ours}.ff.output", f"{theirs}mlp.down_proj", bias=False)
        rules += layer("transformer.decoder.final_norm", "model.norm", bias=False)
        if not head["name"]:
            return StateMap(tuple(rules))
        if config.tie_embeddings:
            return StateMap(tuple(rules), aliases={self.output: self.embedding})
        return StateMap((*rules, rule("head.matrix.weight", self.output, by=vocabulary_rows(config))))


def _rope(theirs: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(field, its mapping) that says how positions turn; transformers 4 named it after the scaling that it may be."""
    for name in ("rope_scaling", "rope_parameters"):
        found = theirs.get(name)
        if isinstance(found, Mapping) and found:
            return name, found
    return "rope_parameters", {}
