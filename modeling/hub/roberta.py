"""RoBERTa (Liu et al. 2019): BERT's layers; positions begin after the pad id, so that padding has a row of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor

from modeling.architecture import TransformerConfig
from modeling.hub.bert import (
    BUFFERS,
    ENCODER,
    FIELDS,
    EncoderFamily,
    encoder_rules,
    no_types,
    output_rules,
    unfactorised,
)
from modeling.hub.family import OUTPUT_HEADS, HubClass
from modeling.hub.mapping import StateMap
from modeling.hub.tasks import CLASSIFIER, SPAN, task_rules


class Roberta(EncoderFamily):
    model_type = "roberta"
    classes = (
        HubClass("RobertaForMaskedLM", "language-model"),
        HubClass("RobertaForSequenceClassification", CLASSIFIER),
        HubClass("RobertaForQuestionAnswering", SPAN),
        HubClass("RobertaModel", ""),
    )
    fixed: ClassVar[Mapping[str, Any]] = ENCODER
    fields = (FIELDS[0]._replace(default=50_265), *FIELDS[1:])
    base, outside = "roberta.", ("lm_head.", "classifier.")
    output, embedding = "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"

    def limits(self, values: Mapping[str, Any], head: Mapping[str, Any], roles: Mapping[str, int]) -> Iterator[str]:
        yield from super().limits(values, head, roles)
        yield from unfactorised(values)
        if values["position_offset"] != roles.get("pad", values["position_offset"] - 1) + 1:
            yield f"position_offset is {values['position_offset']}, expected the pad id + 1 = {roles['pad'] + 1}"
        if not values["position_offset"]:
            yield "position_offset is 0, expected the pad id + 1"
        if head["name"] in OUTPUT_HEADS and values["activation"] != "gelu":
            yield f"activation is {values['activation']}, expected gelu, which the output layer has in any case"

    def more_written(self, values: Mapping[str, Any], roles: Mapping[str, int]) -> dict[str, Any]:
        return {**super().more_written(values, roles), "pad_token_id": values["position_offset"] - 1}

    def wrong(self, theirs: Mapping[str, Any]) -> list[str]:
        pad, rows = theirs.get("pad_token_id", 1), theirs.get("max_position_embeddings", 512)
        if isinstance(pad, int) and 0 <= pad < rows - 1:
            return []
        return [f"pad_token_id is {pad!r}, expected an id with positions after it, of {rows}"]

    def more_read(self, theirs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        found = super().more_read(theirs, tensors)
        offset = theirs.get("pad_token_id", 1) + 1
        return {**found, "position_offset": offset, "max_length": found["max_length"] - offset}

    def state_map(self, config: TransformerConfig, head: Mapping[str, Any]) -> StateMap:
        rules = encoder_rules(config, "roberta.")
        parts: dict[str, Any] = {}
        if head["name"] in OUTPUT_HEADS:
            names = ("lm_head.dense", "lm_head.layer_norm", "lm_head")
            more, parts = output_rules(config, *names, embedding=self.embedding)
            rules += more
        rules += task_rules(head, "classifier.dense", "classifier.out_proj")
        left = (*BUFFERS, r"^lm_head\.bias$", r"^roberta\.pooler\.")
        return StateMap(tuple(rules), blanks=no_types(config, "roberta."), left=left, **parts)
