"""XLNet (Yang et al. 2019): `XLNetLMHeadModel`, whose logits are either stream's, and `XLNetModel`.

Their attention keeps matrices as [width, heads, head size]. Memory of earlier rows is switched off in what is
written; files that ask for it are read all the same: without memories to see, it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from modeling.architecture import TransformerConfig
from modeling.heads.base import NEVER
from modeling.hub.family import ACTIVATIONS, Family, FieldPair, HubClass, stack_blocks, vocabulary_rows
from modeling.hub.mapping import Operation, Rule, StateMap, layer, rule

_MAX_LENGTH = 512  # nothing in the model limits it; the released ones were trained on 512
_TYPES = 3  # segments A and B and that of [CLS]; whatever their number, only "same or different" has a weight
_OUTPUT: Mapping[str, Any] = {"head_transform": False, "head_bias": True, "head_scale": False}


@dataclass(frozen=True)
class Reshaped(Operation):
    """The same numbers in the same order, in other dimensions."""

    ours: tuple[int, ...]
    theirs: tuple[int, ...]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return _of_shape(parts[0], self.theirs).reshape(self.ours)

    def split(self, whole: Tensor, parts: int) -> Sequence[Tensor]:
        return [whole.reshape(self.theirs)]


@dataclass(frozen=True)
class Heads(Operation):
    """Matrices [width, heads, head size], one below the other as [heads · head size, width]."""

    theirs: tuple[int, int, int]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([_of_shape(part, self.theirs).flatten(1).T for part in parts])

    def split(self, whole: Tensor, parts: int) -> Sequence[Tensor]:
        return [part.T.reshape(self.theirs) for part in whole.chunk(parts)]


def _of_shape(part: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(part.shape) != shape:
        raise RuntimeError(f"shape {tuple(part.shape)}, expected {shape}")
    return part


class XLNet(Family):
    model_type = "xlnet"
    classes = (
        HubClass("XLNetLMHeadModel", "permutation-language-model"),
        HubClass("XLNetLMHeadModel", "language-model"),
        HubClass("XLNetModel", ""),
    )
    fixed: ClassVar[Mapping[str, Any]] = {
        "architecture": "encoder",
        "norm": "layernorm",
        "norm_placement": "post",
        "embedding_norm": False,
        "positions": "transformer-xl",
        "bias": True,
        "qk_norm": False,
        "attention_scale": True,
        **_OUTPUT,
    }
    fields = (
        FieldPair("vocab_size", "vocab_size", 32_000),
        FieldPair("d_model", "width", 1024),
        FieldPair("n_layer", "layers", 24),
        FieldPair("n_head", "heads", 16),
        FieldPair("d_inner", "ff_width", 4096),
        FieldPair("ff_activation", "activation", "gelu", ACTIVATIONS),
        FieldPair("layer_norm_eps", "norm_eps", 1e-12),
        FieldPair("dropout", "dropout", 0.1),
        FieldPair("initializer_range", "init_std", 0.02),
        FieldPair("tie_word_embeddings", "tie_embeddings", True),
        # no fields of theirs; beside the others they do no harm
        FieldPair("seq_len", "max_length", _MAX_LENGTH),
        FieldPair("type_vocab_size", "token_types", _TYPES),
    )
    accepted: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "attn_type": ("bi",),
        "bi_data": (False,),
        "clamp_len": (-1, 0),
        "untie_r": (True,),
        "is_decoder": (False,),
    }
    written: ClassVar[Mapping[str, Any]] = {
        "attn_type": "bi",
        "bi_data": False,
        "clamp_len": -1,
        "mem_len": None,
        "reuse_len": None,
        "use_mems_eval": False,
        "use_mems_train": False,
    }
    base, outside = "transformer.", ("lm_loss.", "sequence_summary.", "logits_proj.", "classifier.", "qa_outputs.")
    output, embedding = "lm_loss.weight", "transformer.word_embedding.weight"

    def limits(self, values: Mapping[str, Any], head: Mapping[str, Any], roles: Mapping[str, int]) -> Iterator[str]:
        if values["head_size"] * values["heads"] != values["width"]:
            yield f"head_size is {values['head_size']}, expected width / heads = {values['width'] / values['heads']:g}"
        if values["embedding_width"] != values["width"]:
            yield f"embedding_width is {values['embedding_width']}, expected width = {values['width']}"
        if head["name"] == "permutation-language-model":  # `fixed` asks this of a language model's head only
            for name, value in _OUTPUT.items():
                if values[name] != value:
                    yield f"{name} is {str(values[name]).lower()}, expected {str(value).lower()}"

    def more_written(self, values: Mapping[str, Any], roles: Mapping[str, int]) -> dict[str, Any]:
        return {"d_head": values["head_size"]}

    def more_read(self, theirs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Segments whose weights are all zeros are none."""
        found: dict[str, Any] = {"head_size": theirs.get("d_head") or 0}
        if "vocab_size" not in theirs and "n_token" in theirs:  # its name in the first releases
            found["vocab_size"] = theirs["n_token"]
        segments = [t for name, t in tensors.items() if name.endswith((".seg_embed", ".r_s_bias"))]
        if segments and not any(bool(t.any()) for t in segments):
            found["token_types"] = 0
        return found

    def state_map(self, config: TransformerConfig, head: Mapping[str, Any]) -> StateMap:
        rules = [
            rule("transformer.tokens.weight", self.embedding, by=vocabulary_rows(config)),
            rule(
                "transformer.encoder.mask_embedding",
                "transformer.mask_emb",
                by=Reshaped((config.width,), (1, 1, config.width)),
            ),
        ]
        blanks: dict[str, tuple[int, ...]] = {}
        for n, ours in stack_blocks(config, "encoder"):
            theirs = f"transformer.layer.{n}."
            rules += _attention(config, f"{ours}.attention.", f"{theirs}rel_attn.")
            rules += layer(f"{ours}.attention_norm", f"{theirs}rel_attn.layer_norm")
            rules += layer(f"{ours}.ff.input", f"{theirs}ff.layer_1") + layer(
                f"{ours}.ff.output", f"{theirs}ff.layer_2"
            )
            rules += layer(f"{ours}.ff_norm", f"{theirs}ff.layer_norm")
            if not config.token_types:
                shape = (config.heads, config.head_width)
                blanks |= {f"{theirs}rel_attn.seg_embed": (2, *shape), f"{theirs}rel_attn.r_s_bias": shape}
        aliases: dict[str, str] = {}
        if head["name"]:
            rules.append(rule("head.bias", "lm_loss.bias", by=vocabulary_rows(config, NEVER)))
            if config.tie_embeddings:
                aliases[self.output] = self.embedding
            else:
                rules.append(rule("head.matrix.weight", self.output, by=vocabulary_rows(config)))
        return StateMap(tuple(rules), blanks=blanks, aliases=aliases)


def _attention(config: TransformerConfig, ours: str, theirs: str) -> list[Rule]:
    D, H, d = config.width, config.heads, config.head_width
    bias = Reshaped((H * d,), (H, d))
    rules = [
        rule(f"{ours}query.weight", f"{theirs}q", by=Heads((D, H, d))),
        rule(f"{ours}key_value.weight", *(f"{theirs}{part}" for part in "kv"), by=Heads((D, H, d))),
        rule(f"{ours}position.weight", f"{theirs}r", by=Heads((D, H, d))),
        rule(f"{ours}output.weight", f"{theirs}o", by=Reshaped((D, H * d), (D, H, d))),
        rule(f"{ours}content_bias", f"{theirs}r_w_bias", by=bias),
        rule(f"{ours}position_bias", f"{theirs}r_r_bias", by=bias),
    ]
    if config.token_types:
        rules.append(rule(f"{ours}segment_bias", f"{theirs}r_s_bias", by=bias))
        rules.append(rule(f"{ours}segments", f"{theirs}seg_embed", by=Reshaped((2, H * d), (2, H, d))))
    return rules
