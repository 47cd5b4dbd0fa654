"""BERT (Devlin et al. 2018): `BertForMaskedLM`, `BertForPreTraining` with the next-sentence head, `BertModel`, tasks'.

Its layers' names are also RoBERTa's and ELECTRA's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor

from modeling.architecture import TransformerConfig
from modeling.heads.base import NEVER
from modeling.hub.family import (
    ACTIVATIONS,
    OUTPUT_HEADS,
    Family,
    FieldPair,
    HubClass,
    has_pairs,
    stack_blocks,
    vocabulary_rows,
)
from modeling.hub.mapping import Rule, StateMap, layer, rule, stacked
from modeling.hub.tasks import CLASSIFIER, SPAN, task_limits, task_rules

ENCODER: Mapping[str, Any] = {
    "architecture": "encoder",
    "norm": "layernorm",
    "norm_placement": "post",
    "embedding_norm": True,
    "positions": "learned",
    "bias": True,
    "qk_norm": False,
    "attention_scale": True,
    "head_transform": True,
    "head_bias": True,
    "head_scale": False,
}
"""What BERT's relatives have in common."""

FIELDS = (
    FieldPair("vocab_size", "vocab_size", 30_522),
    FieldPair("hidden_size", "width", 768),
    FieldPair("num_hidden_layers", "layers", 12),
    FieldPair("num_attention_heads", "heads", 12),
    FieldPair("intermediate_size", "ff_width", 3072),
    FieldPair("hidden_act", "activation", "gelu", ACTIVATIONS),
    FieldPair("layer_norm_eps", "norm_eps", 1e-12),
    FieldPair("hidden_dropout_prob", "dropout", 0.1),
    FieldPair("attention_probs_dropout_prob", "dropout", 0.1),
    FieldPair("initializer_range", "init_std", 0.02),
    FieldPair("tie_word_embeddings", "tie_embeddings", True),
)

ACCEPTED: Mapping[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute", None),
}

BUFFERS = (r"embeddings\.position_ids$", r"embeddings\.token_type_ids$")
"""What older files hold beside the weights."""


class EncoderFamily(Family):
    """What BERT, RoBERTa, ELECTRA and ALBERT share."""

    accepted = ACCEPTED
    written: ClassVar[Mapping[str, Any]] = {"is_decoder": False, "add_cross_attention": False}

    def limits(self, values: Mapping[str, Any], head: Mapping[str, Any], roles: Mapping[str, int]) -> Iterator[str]:
        if values["head_size"] * values["heads"] != values["width"]:
            yield f"head_size is {values['head_size']}, expected width / heads = {values['width'] / values['heads']:g}"
        yield from task_limits(head)

    def more_written(self, values: Mapping[str, Any], roles: Mapping[str, int]) -> dict[str, Any]:
        return {
            "type_vocab_size": max(1, values["token_types"]),
            "max_position_embeddings": values["max_length"] + values["position_offset"],
        }

    def more_read(self, theirs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """A single segment embedding of zeros is none."""
        types = int(theirs.get("type_vocab_size", 2))
        table = next((t for name, t in tensors.items() if name.endswith("token_type_embeddings.weight")), None)
        none = types == 1 and table is not None and not bool(table.any())
        return {"token_types": 0 if none else types, "max_length": int(theirs.get("max_position_embeddings", 512))}


class Bert(EncoderFamily):
    model_type = "bert"
    classes = (
        HubClass("BertForMaskedLM", "language-model"),
        HubClass("BertForPreTraining", "language-model", pairs="nsp"),
        HubClass("BertForSequenceClassification", CLASSIFIER),
        HubClass("BertForQuestionAnswering", SPAN),
        HubClass("BertModel", ""),
    )
    fixed: ClassVar[Mapping[str, Any]] = {**ENCODER, "position_offset": 0}
    fields = FIELDS
    base, outside = "bert.", ("cls.", "classifier.")
    output, embedding = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"

    def limits(self, values: Mapping[str, Any], head: Mapping[str, Any], roles: Mapping[str, int]) -> Iterator[str]:
        yield from super().limits(values, head, roles)
        yield from unfactorised(values)

    def state_map(self, config: TransformerConfig, head: Mapping[str, Any]) -> StateMap:
        rules = encoder_rules(config, "bert.")
        parts: dict[str, Any] = {}
        if head["name"] in OUTPUT_HEADS:
            names = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions")
            more, parts = output_rules(config, *names, embedding=self.embedding)
            rules += more
        rules += task_rules(head, "bert.pooler.dense", "classifier")
        if has_pairs(head):
            rules += layer("pair.pooler", "bert.pooler.dense") + layer("pair.classifier", "cls.seq_relationship")
        left = (*BUFFERS, r"^cls\.predictions\.bias$", r"^bert\.pooler\.", r"^cls\.seq_relationship\.")
        return StateMap(tuple(rules), blanks=no_types(config, "bert."), left=left, **parts)


def unfactorised(values: Mapping[str, Any]) -> Iterator[str]:
    """That the embeddings are as wide as the model."""
    if values["embedding_width"] != values["width"]:
        yield f"embedding_width is {values['embedding_width']}, expected width = {values['width']}"


def encoder_rules(config: TransformerConfig, base: str) -> list[Rule]:
    """Embeddings and layers as BERT names them."""
    rules = embedding_rules(config, base)
    for n, ours in stack_blocks(config, "encoder"):
        theirs = f"{base}encoder.layer.{n}."
        rules += stacked(
            f"{ours}.attention.qkv", (f"{theirs}attention.self.{part}" for part in ("query", "key", "value"))
        )
        rules += layer(f"{ours}.attention.output", f"{theirs}attention.output.dense")
        rules += layer(f"{ours}.attention_norm", f"{theirs}attention.output.LayerNorm")
        rules += layer(f"{ours}.ff.input", f"{theirs}intermediate.dense")
        rules += layer(f"{ours}.ff.output", f"{theirs}output.dense")
        rules += layer(f"{ours}.ff_norm", f"{theirs}output.LayerNorm")
    return rules


def embedding_rules(config: TransformerConfig, base: str) -> list[Rule]:
    """Tokens, positions, segments and their norm."""
    own, theirs = "transformer.encoder", f"{base}embeddings"
    rules = [
        rule("transformer.tokens.weight", f"{theirs}.word_embeddings.weight", by=vocabulary_rows(config)),
        rule(f"{own}.positions.weight", f"{theirs}.position_embeddings.weight"),
    ]
    if config.token_types:
        rules.append(rule(f"{own}.token_types.weight", f"{theirs}.token_type_embeddings.weight"))
    return rules + layer(f"{own}.embedding_norm", f"{theirs}.LayerNorm")


def no_types(config: TransformerConfig, base: str) -> dict[str, tuple[int, ...]]:
    """The table of zeros that stands for no segment embeddings."""
    return {} if config.token_types else {f"{base}embeddings.token_type_embeddings.weight": (1, config.token_width)}


def output_rules(
    config: TransformerConfig, dense: str, norm: str, output: str, embedding: str
) -> tuple[list[Rule], dict[str, Any]]:
    """(rules, aliases and copies) of the masked-LM head: `output` has a bias, and a decoder with weight and bias.

    The decoder's own bias counts; with a tied matrix it is `output`'s, otherwise that one is a copy nothing reads.
    """
    rules = layer("head.dense", dense) + layer("head.norm", norm)
    bias, decoder = f"{output}.bias", f"{output}.decoder"
    by = vocabulary_rows(config, NEVER)
    if config.tie_embeddings:
        aliases = {f"{decoder}.weight": embedding, f"{decoder}.bias": bias}
        return [*rules, rule("head.bias", bias, by=by)], {"aliases": aliases}
    rules.append(rule("head.bias", f"{decoder}.bias", by=by))
    rules.append(rule("head.matrix.weight", f"{decoder}.weight", by=vocabulary_rows(config)))
    return rules, {"copies": {bias: f"{decoder}.bias"}}
