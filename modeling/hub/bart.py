"""BART (Lewis et al. 2020): `BartForConditionalGeneration`. Positions begin at row 2 of their table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from modeling.architecture import TransformerConfig
from modeling.heads.base import NEVER
from modeling.hub.family import ACTIVATIONS, Family, FieldPair, HubClass, stack_blocks, vocabulary_rows
from modeling.hub.mapping import StateMap, layer, rule, stacked

_BIAS = "final_logits_bias"


class Bart(Family):
    model_type = "bart"
    classes = (
        HubClass("BartForConditionalGeneration", "language-model"),
        HubClass("BartModel", "language-model"),  # its output layer is the embedding
    )
    fixed: ClassVar[Mapping[str, Any]] = {
        "architecture": "encoder-decoder",
        "norm": "layernorm",
        "norm_placement": "post",
        "norm_eps": 1e-5,
        "embedding_norm": True,
        "positions": "learned",
        "position_offset": 2,
        "bias": True,
        "qk_norm": False,
        "attention_scale": True,
        "token_types": 0,
        "head_transform": False,
        "head_scale": False,
    }
    fields = (
        FieldPair("vocab_size", "vocab_size", 50_265),
        FieldPair("max_position_embeddings", "max_length", 1024),
        FieldPair("d_model", "width", 1024),
        FieldPair("encoder_layers", "layers", 12),
        FieldPair("decoder_layers", "decoder_layers", 12),
        FieldPair("encoder_attention_heads", "heads", 16),
        FieldPair("encoder_ffn_dim", "ff_width", 4096),
        FieldPair("activation_function", "activation", "gelu", ACTIVATIONS),
        FieldPair("dropout", "dropout", 0.1),
        FieldPair("init_std", "init_std", 0.02),
        FieldPair("tie_word_embeddings", "tie_embeddings", True),
    )
    accepted: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "scale_embedding": (False,),
        "is_encoder_decoder": (True,),
        # of the first release, for its relatives
        "normalize_before": (False,),
        "add_final_layer_norm": (False,),
        "normalize_embedding": (True,),
        "static_position_embeddings": (False,),
        "extra_pos_embeddings": (2,),
    }
    written: ClassVar[Mapping[str, Any]] = {
        "is_encoder_decoder": True,
        "scale_embedding": False,
        "forced_eos_token_id": None,
    }
    base, outside = "model.", (_BIAS, "lm_head.", "classification_head.")
    output, embedding, generates = "lm_head.weight", "model.shared.weight", True
    decoder_start = 2

    def limits(self, values: Mapping[str, Any], head: Mapping[str, Any], roles: Mapping[str, int]) -> Any:
        if values["head_size"] * values["heads"] != values["width"]:
            yield f"head_size is {values['head_size']}, expected width / heads = {values['width'] / values['heads']:g}"
        if values["embedding_width"] != values["width"]:
            yield f"embedding_width is {values['embedding_width']}, expected width = {values['width']}"

    def more_written(self, values: Mapping[str, Any], roles: Mapping[str, int]) -> dict[str, Any]:
        return {
            "decoder_attention_heads": values["heads"],
            "decoder_ffn_dim": values["ff_width"],
            "attention_dropout": values["dropout"],
        }

    def more_read(self, theirs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"head_bias": _BIAS in tensors and bool(tensors[_BIAS].any())}

    def wrong(self, theirs: Mapping[str, Any]) -> list[str]:
        found = []
        for what, default in (("attention_heads", 16), ("ffn_dim", 4096)):
            encoder, decoder = (theirs.get(f"{stack}_{what}", default) for stack in ("encoder", "decoder"))
            if decoder != encoder:
                found.append(f"decoder_{what} is {decoder}, expected encoder_{what} = {encoder}")
        return found

    def state_map(self, config: TransformerConfig, head: Mapping[str, Any]) -> StateMap:
        rules = [rule("transformer.tokens.weight", self.embedding, by=vocabulary_rows(config))]
        embedded = {f"model.{stack}.embed_tokens.weight": self.embedding for stack in ("encoder", "decoder")}
        for stack in ("encoder", "decoder"):
            own, side = f"transformer.{stack}", f"model.{stack}."
            rules.append(rule(f"{own}.positions.weight", f"{side}embed_positions.weight"))
            rules += layer(f"{own}.embedding_norm", f"{side}layernorm_embedding")
            for n, ours in stack_blocks(config, stack):
                theirs = f"{side}layers.{n}."
                rules += stacked(f"{ours}.attention.qkv", (f"{theirs}self_attn.{part}_proj" for part in "qkv"))
                rules += layer(f"{ours}.attention.output", f"{theirs}self_attn.out_proj")
                rules += layer(f"{ours}.attention_norm", f"{theirs}self_attn_layer_norm")
                if stack == "decoder":
                    cross, over = f"{own}.cross.{n}", f"{theirs}encoder_attn"
                    rules += layer(f"{cross}.query", f"{over}.q_proj")
                    rules += stacked(f"{cross}.key_value", (f"{over}.{part}_proj" for part in "kv"))
                    rules += layer(f"{cross}.output", f"{over}.out_proj")
                    rules += layer(f"{cross}.norm", f"{over}_layer_norm")
                rules += layer(f"{ours}.ff.input", f"{theirs}fc1") + layer(f"{ours}.ff.output", f"{theirs}fc2")
                rules += layer(f"{ours}.ff_norm", f"{theirs}final_layer_norm")
        aliases, copies = {**embedded, self.output: self.embedding}, {}
        if not config.tie_embeddings:
            # their config has one field for the output matrix and for the stacks' embeddings, which then load apart
            aliases, copies = {}, embedded
            rules.append(rule("head.matrix.weight", self.output, by=vocabulary_rows(config)))
        if config.head_bias:
            rules.append(rule("head.bias", _BIAS, by=vocabulary_rows(config, NEVER, lead=(1,))))
        blanks = {} if config.head_bias else {_BIAS: (1, config.vocab_size)}
        left = (r"^model\.(encoder|decoder)\.version$",)
        return StateMap(tuple(rules), blanks=blanks, copies=copies, aliases=aliases, left=left)
