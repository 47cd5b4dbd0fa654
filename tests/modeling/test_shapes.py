"""Names and shapes from a config, against those of the modules, built without memory."""

import pytest
import torch

from modeling.architecture import PRESETS, model_config
from modeling.checkpoint import build_model
from modeling.flops import count_by_group, parameter_counts
from modeling.heads.classification import SequenceClassifier, SpanExtractor
from modeling.shapes import CLASSIFIER, count, parameter_shapes

LM = {"name": "language-model", "settings": {}}
SPANS = {"name": "language-model", "settings": {"pairs": "sop", "span_boundary": True, "span_max": 10}}
RTD = {"name": "replaced-token-detection", "settings": {}}
OF_PRESET = {
    "xlnet": {"name": "permutation-language-model", "settings": {}},
    "word2vec": {"name": "word-vectors", "settings": {"kind": "skip-gram"}},
    "glove": {"name": "glove", "settings": {}},
    "elmo": {"name": "bidirectional-lm", "settings": {}},
    "electra": RTD,
}


def of_module(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_the_modules_parameters(name):
    config = model_config({"preset": name, "vocab_size": 1000})
    head = next((head for start, head in OF_PRESET.items() if name.startswith(start)), LM)
    with torch.device("meta"):
        model = build_model(config, head)
    found = parameter_shapes(config, head)
    assert found == of_module(model)
    assert count_by_group(found.items()) == parameter_counts(model)
    assert count(found) == parameter_counts(model)["total"]


@pytest.mark.parametrize(
    ("fields", "head"),
    [
        ({"preset": "bert-tiny"}, SPANS),
        ({"preset": "modern-tiny", "architecture": "encoder-decoder", "token_types": 2, "decoder_layers": 3}, LM),
        ({"preset": "t5-small", "share_stacks": True, "embedding_width": 64, "tie_embeddings": False}, LM),
        ({"preset": "modern-tiny", "architecture": "decoder", "activation": "geglu-tanh", "head_size": 16}, LM),
        ({"preset": "albert-base", "layers": 2}, {"name": "discriminator", "settings": {}}),
        ({"preset": "xlnet-base", "layers": 2, "share_layers": True, "token_types": 0}, OF_PRESET["xlnet"]),
    ],
)
def test_options_that_no_preset_has(fields, head):
    config = model_config({**fields, "vocab_size": 1000})
    with torch.device("meta"):
        assert parameter_shapes(config, head) == of_module(build_model(config, head))


@pytest.mark.parametrize("name", ["bert-tiny", "t5-small", "xlnet-base", "elmo", "word2vec"])
def test_a_tasks_model_is_a_trunk_and_a_classifier(name):
    config = model_config({"preset": name, "vocab_size": 1000})
    pooling = "mean" if name == "word2vec" else "cls"
    with torch.device("meta"):
        pooled, spans = SequenceClassifier(config, 3, pooling), SpanExtractor(config)
    head = {"name": "classifier", "settings": {"labels": 3, "pooling": pooling}}
    assert parameter_shapes(config, head) == of_module(pooled)
    assert count(parameter_shapes(config, CLASSIFIER)) == sum(p.numel() for p in spans.parameters())
