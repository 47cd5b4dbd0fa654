import json

import pytest
import torch

from modeling.checkpoint import load_model, load_transformer, save_model
from modeling.errors import ConfigError
from modeling.heads.classification import SequenceClassifier
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


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="config.json: no such file"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"layers": "many"}, "head": {}}')
    with pytest.raises(ConfigError, match="config.json: not a model's config"):
        load_model(tmp_path)
