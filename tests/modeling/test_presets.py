"""Every preset against what was published of it, counted without allocating a weight."""

from __future__ import annotations

import pytest
import torch

from modeling.architecture import PRESETS, generator_config, model_config
from modeling.checkpoint import build_model
from modeling.flops import parameter_counts
from modeling.published import PUBLISHED, Published

UNPUBLISHED = {"mass-base", "modern-tiny", "modern-mini", "modern-small", "modern-base"}


def counted(name: str, published: Published) -> int:
    """Parameters of the preset without the padded rows of the vocabulary, which nobody else has."""
    config = model_config(name).with_vocabulary(published.vocab_size)
    with torch.device("meta"):
        model = build_model(config, {"name": published.head, "settings": {"kind": "skip-gram"}})
    rows, padded = config.vocab_size, config.padded_vocab_size
    total = parameter_counts(model)["total"]
    return total - sum(p.numel() // padded * (padded - rows) for p in model.parameters() if p.shape[0] == padded)


def test_every_preset_has_a_published_count_or_is_known_not_to() -> None:
    assert set(PRESETS) == set(PUBLISHED) | UNPUBLISHED


@pytest.mark.parametrize(
    "name", [n for n in PUBLISHED if model_config(n).architecture not in ("bilstm", "word-vectors")]
)
def test_parameters_are_those_published(name: str) -> None:
    published = PUBLISHED[name]
    found = counted(name, published) + published.lacks
    # 0: the released config gives the figure to the last digit
    assert abs(found - published.parameters) <= published.within * published.parameters, f"{found:,}"


def test_chinchilla_and_gopher_without_their_matrices_of_positions() -> None:
    """The figures of the papers include them: 7.6 % of the smaller, 7.7 % of the larger model."""
    assert counted("chinchilla-70b", PUBLISHED["chinchilla-70b"]) == 64_687_974_400
    assert counted("gopher-280b", PUBLISHED["gopher-280b"]) == 258_224_967_680


@pytest.mark.parametrize(
    ("name", "width", "heads", "ff_width"),
    [("electra-small", 64, 1, 256), ("electra-base", 256, 4, 1024), ("electra-large", 256, 4, 1024)],
)
def test_electras_generators_have_the_released_shapes(name: str, width: int, heads: int, ff_width: int) -> None:
    config = generator_config(model_config(name).with_vocabulary(30_522))
    assert (config.width, config.heads, config.ff_width, config.layers) == (
        width,
        heads,
        ff_width,
        model_config(name).layers,
    )
    if name == "electra-small":
        with torch.device("meta"):
            total = parameter_counts(build_model(config, {"name": "language-model", "settings": {}}))["total"]
        assert total == 4_620_026 + 6 * 128 + 6  # transformers' ElectraForMaskedLM, and six padded rows


def test_released_word_vectors_are_the_table_of_tokens() -> None:
    for name in ("word2vec", "glove"):
        published = PUBLISHED[name]
        config = model_config(name).with_vocabulary(published.vocab_size)
        with torch.device("meta"):
            model = build_model(config, {"name": published.head, "settings": {"kind": "skip-gram"}})
        assert model.tokens.weight.numel() == published.parameters


def test_elmos_recurrent_layers_and_its_characters_make_the_published_total() -> None:
    published = PUBLISHED["elmo"]
    with torch.device("meta"):
        model = build_model(model_config("elmo").with_vocabulary(64), {"name": published.head, "settings": {}})
    found = parameter_counts(model)["recurrent"] + published.lacks
    assert found == pytest.approx(published.parameters, rel=published.within)


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "prefix-lm", "encoder-decoder"])
@pytest.mark.parametrize("name", ["modern-tiny", "modern-base"])
def test_the_modern_recipe_is_for_every_architecture(name: str, architecture: str) -> None:
    config = model_config({"preset": name, "architecture": architecture, "vocab_size": 100, "width": 64, "heads": 2})
    model = build_model(config, {"name": "language-model", "settings": {}})
    ids = torch.randint(0, 100, (2, 9))
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}
    if architecture == "encoder-decoder":
        batch["decoder_input_ids"] = ids
    if architecture == "prefix-lm":
        batch["prefix_mask"] = torch.arange(9).expand(2, 9) < 4
    loss = model(batch)
    assert int(loss.count) == 18
    loss.loss_sum.backward()
    # every output projection starts at zero, so what stands before it has no gradient yet, but it has one
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_presets_fields_can_be_changed() -> None:
    config = model_config({"preset": "gpt2-124M", "layers": 2})
    assert (config.layers, config.width, config.vocab_size) == (2, 768, 0)
