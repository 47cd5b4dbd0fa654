"""ALBERT (Lan et al. 2020): one layer's weights for all, narrow embeddings projected to the width, sentence order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from modeling.architecture import TransformerConfig
from modeling.hub.bert import BUFFERS, ENCODER, FIELDS, EncoderFamily, embedding_rules, no_types, output_rules
from modeling.hub.family import OUTPUT_HEADS, FieldPair, HubClass, has_pairs
from modeling.hub.mapping import StateMap, layer, stacked
from modeling.hub.tasks import CLASSIFIER, SPAN, task_rules

_DEFAULTS = {
    "vocab_size": 30_000,
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "intermediate_size": 16_384,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class Albert(EncoderFamily):
    model_type = "albert"
    classes = (
        HubClass("AlbertForMaskedLM", "language-model"),
        HubClass("AlbertForPreTraining", "language-model", pairs="sop"),
        HubClass("AlbertForSequenceClassification", CLASSIFIER),
        HubClass("AlbertForQuestionAnswering", SPAN),
        HubClass("AlbertModel", ""),
    )
    fixed: ClassVar[Mapping[str, Any]] = {**ENCODER, "position_offset": 0, "share_layers": True}
    fields = (
        *(pair._replace(default=_DEFAULTS.get(pair.theirs, pair.default)) for pair in FIELDS),
        FieldPair("embedding_size", "embedding_width", 128),
    )
    accepted: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "num_hidden_groups": (1,),
        "inner_group_num": (1,),
        "position_embedding_type": ("absolute", None),
    }
    written: ClassVar[Mapping[str, Any]] = {"num_hidden_groups": 1, "inner_group_num": 1}
    base, outside = "albert.", ("predictions.", "sop_classifier.", "classifier.")
    output, embedding = "predictions.decoder.weight", "albert.embeddings.word_embeddings.weight"

    def limits(self, values: Mapping[str, Any], head: Mapping[str, Any], roles: Mapping[str, int]) -> Iterator[str]:
        yield from super().limits(values, head, roles)
        if values["embedding_width"] == values["width"]:
            yield f"embedding_width is width ({values['width']}), expected another: ALBERT always projects"

    def state_map(self, config: TransformerConfig, head: Mapping[str, Any]) -> StateMap:
        rules = embedding_rules(config, "albert.")
        rules += layer("transformer.encoder.project", "albert.encoder.embedding_hidden_mapping_in")
        ours, theirs = "transformer.encoder.blocks.0", "albert.encoder.albert_layer_groups.0.albert_layers.0."
        rules += stacked(f"{ours}.attention.qkv", (f"{theirs}attention.{part}" for part in ("query", "key", "value")))
        rules += layer(f"{ours}.attention.output", f"{theirs}attention.dense")
        rules += layer(f"{ours}.attention_norm", f"{theirs}attention.LayerNorm")
        rules += layer(f"{ours}.ff.input", f"{theirs}ffn") + layer(f"{ours}.ff.output", f"{theirs}ffn_output")
        rules += layer(f"{ours}.ff_norm", f"{theirs}full_layer_layer_norm")
        parts: dict[str, Any] = {}
        if head["name"] in OUTPUT_HEADS:
            names = ("predictions.dense", "predictions.LayerNorm", "predictions")
            more, parts = output_rules(config, *names, embedding=self.embedding)
            rules += more
        rules += task_rules(head, "albert.pooler", "classifier")
        if has_pairs(head):
            rules += layer("pair.pooler", "albert.pooler") + layer("pair.classifier", "sop_classifier.classifier")
        left = (*BUFFERS, r"^predictions\.bias$", r"^albert\.pooler\.", r"^sop_classifier\.")
        return StateMap(tuple(rules), blanks=no_types(config, "albert."), left=left, **parts)
