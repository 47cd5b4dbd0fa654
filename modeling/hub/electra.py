"""ELECTRA (Clark et al. 2020): `ElectraForPreTraining`, the discriminator, and `ElectraForMaskedLM`, the generator.

A generator is a masked language model like any other, with narrow embeddings projected to the width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from modeling.architecture import TransformerConfig
from modeling.heads.base import NEVER
from modeling.hub.bert import BUFFERS, ENCODER, FIELDS, EncoderFamily, encoder_rules, no_types
from modeling.hub.family import FieldPair, HubClass, vocabulary_rows
from modeling.hub.mapping import StateMap, layer, rule
from modeling.hub.tasks import SPAN

_DEFAULTS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}


class Electra(EncoderFamily):
    model_type = "electra"
    classes = (
        HubClass("ElectraForPreTraining", "discriminator"),
        HubClass("ElectraForMaskedLM", "language-model"),
        HubClass("ElectraForQuestionAnswering", SPAN),
        HubClass("ElectraModel", ""),
    )
    fixed: ClassVar[Mapping[str, Any]] = {**ENCODER, "position_offset": 0}
    fields = (
        *(pair._replace(default=_DEFAULTS.get(pair.theirs, pair.default)) for pair in FIELDS),
        FieldPair("embedding_size", "embedding_width", 128),
    )
    base, outside = "electra.", ("discriminator_predictions.", "generator_predictions.", "generator_lm_head.", "class")
    output, embedding = "generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"

    def limits(self, values: Mapping[str, Any], head: Mapping[str, Any], roles: Mapping[str, int]) -> Iterator[str]:
        yield from super().limits(values, head, roles)
        if head["name"] == "language-model" and values["activation"] != "gelu":
            yield f"activation is {values['activation']}, expected gelu, which the output layer has in any case"

    def state_map(self, config: TransformerConfig, head: Mapping[str, Any]) -> StateMap:
        rules = encoder_rules(config, "electra.")
        aliases = {}
        if config.token_width != config.width:
            rules += layer("transformer.encoder.project", "electra.embeddings_project")
        if head["name"] == "discriminator":
            rules += layer("dense", "discriminator_predictions.dense")
            rules += layer("classifier", "discriminator_predictions.dense_prediction")
        elif head["name"] == SPAN:
            rules += layer("span", "qa_outputs")  # its classifier's first layer ends in a GELU, ours in a tanh
        elif head["name"]:
            rules += layer("head.dense", "generator_predictions.dense")
            rules += layer("head.norm", "generator_predictions.LayerNorm")
            rules.append(rule("head.bias", "generator_lm_head.bias", by=vocabulary_rows(config, NEVER)))
            if config.tie_embeddings:
                aliases = {self.output: self.embedding}
            else:
                rules.append(rule("head.matrix.weight", self.output, by=vocabulary_rows(config)))
        return StateMap(tuple(rules), blanks=no_types(config, "electra."), aliases=aliases, left=BUFFERS)
