import json

import pytest
import torch

from modeling.checkpoint import load_model, load_transformer, load_weights, save_model
from modeling.errors import ConfigError
from modeling.heads.classification import SequenceClassifier
from modeling.heads.electra import ReplacedTokenDetection
from modeling.heads.language import LanguageModel
from modeling.transformer import preset

CONFIG = preset("modern-tiny", vocab_size=100)
HEAD = {"name": "language-model", "settings": {}}


def test_a_saved_model_is_the_same_model_and_the_same_bytes(tmp_path):
    torch.manual_seed(0)
    model = LanguageModel(CONFIG)
    save_model(tmp_path / "a", model, CONFIG, HEAD)
    loaded = load_model(tmp_path / "a")
    assert loaded.config == CONFIG
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    save_model(tmp_path / "b", loaded, loaded.config, HEAD)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "config.json").read_text())["model"]["vocab_size"] == 100


def test_a_classifier_takes_the_trunk_of_a_language_model(tmp_path):
    model = LanguageModel(CONFIG)
    save_model(tmp_path, model, CONFIG)
    classifier = SequenceClassifier(CONFIG, 3)
    load_transformer(tmp_path, classifier.transformer)
    ids = torch.randint(0, 100, (2, 8))
    assert torch.equal(classifier.transformer(ids), model.transformer(ids))
    with pytest.raises(ConfigError, match="a fine-tuned model, expected a pretrained one"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match="tokens.weight"):
        load_transformer(tmp_path, SequenceClassifier(preset("modern-tiny", vocab_size=500), 3).transformer)


@pytest.mark.parametrize(
    "head", [None, {}, [], {"name": "language-model"}, {"name": 1, "settings": {}}, {"name": "tail", "settings": {}}]
)
def test_a_head_that_cannot_be_one_is_named(tmp_path, head):
    (tmp_path / "config.json").write_text(json.dumps({"model": CONFIG.model_dump(mode="json"), "head": head}))
    with pytest.raises(ConfigError, match="config.json: head is .*, expected its name .* language-model"):
        load_model(tmp_path)


def test_electra_goes_on_from_its_discriminator_or_from_another_encoder(tmp_path):
    """What is kept of it goes back to where it was, with the embeddings that the generator shares."""
    fields = {"layers": 2, "width": 32, "heads": 2, "ff_width": 64, "max_length": 32, "generator_share": 0.5}
    config = preset("electra-small", vocab_size=100, embedding_width=16, **fields)
    torch.manual_seed(0)
    first, second = ReplacedTokenDetection(config), ReplacedTokenDetection(config)
    save_model(tmp_path / "kept", first.kept, config, {"name": "discriminator", "settings": {}})
    new = load_weights(second, tmp_path / "kept")
    for name, value in first.discriminator.state_dict().items():
        assert torch.equal(value, second.discriminator.state_dict()[name]), name
    assert second.generator.tokens.weight is second.discriminator.transformer.tokens.weight
    assert all(name.startswith("generator") for name in new)
    assert "generator.tokens.weight" not in new and any(".blocks." in name for name in new)
    save_model(tmp_path / "bert", LanguageModel(config), config, HEAD)
    new = load_weights(second, tmp_path / "bert")
    assert {name for name in new if name.startswith("discriminator")} == {
        f"discriminator.{layer}.{part}" for layer in ("dense", "classifier") for part in ("weight", "bias")
    }
    other = preset("electra-small", vocab_size=100, embedding_width=16, **{**fields, "width": 64})
    with pytest.raises(ConfigError, match="safetensors: transformer.encoder.project.weight is .*, the model expects"):
        load_weights(ReplacedTokenDetection(other), tmp_path / "kept")


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="config.json: no such file"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"layers": "many"}, "head": {}}')
    with pytest.raises(ConfigError, match="config.json: not a model's config"):
        load_model(tmp_path)
