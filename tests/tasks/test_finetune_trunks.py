"""Fine-tuning on every trunk: it learns, what should stay frozen stays, and the tokens a text is framed with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cluster.errors import BadConfig
from modeling.architecture import model_config
from modeling.checkpoint import build_model, save_model
from tasks.downstream.encode import Encoder
from tasks.downstream.spec import Row
from tasks.finetune import Finetune
from tests.tasks.small_model import TINY, SomeData, SomeModel, SomeTokenizer, data_folder, tokenizer_folder
from tests.tasks.stage import run_stage
from tests.tasks.test_finetune import CLASSES, LOOP, WORDS, class_rows, evaluate, tune

V = 5 + len(WORDS)
TRUNKS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "decoder": ({**TINY.model_dump(), "architecture": "decoder"}, "language-model", {}),
    "prefix-lm": ({**TINY.model_dump(), "architecture": "prefix-lm"}, "language-model", {}),
    "encoder-decoder": ({**TINY.model_dump(), "architecture": "encoder-decoder"}, "language-model", {}),
    "word-vectors": ({"architecture": "word-vectors", "width": 32}, "word-vectors", {"kind": "skip-gram"}),
    "glove": ({"architecture": "word-vectors", "width": 32}, "glove", {}),
    "bilstm": ({"architecture": "bilstm", "width": 32, "hidden": 32, "dropout": 0.0}, "bidirectional-lm", {}),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("t") / "tokenizer", WORDS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_folder(tmp_path_factory.mktemp("d") / "data", CLASSES, train=class_rows(), validation=class_rows())


def pretrained(folder: Path, name: str) -> Path:
    """A saved model with random weights, large enough to be features."""
    fields, head, settings = TRUNKS[name]
    config = model_config({**fields, "vocab_size": V})
    torch.manual_seed(0)
    model = build_model(config, {"name": head, "settings": settings})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight[V:] = 0
    save_model(folder, model, config, {"name": head, "settings": settings})
    return folder


@pytest.mark.parametrize("name", TRUNKS)
def test_every_trunk_learns_the_labels(name: str, tmp_path: Path, tokenizer: Path, data: Path) -> None:
    init = pretrained(tmp_path / "init", name)
    pooling = "last" if name == "decoder" else "mean"
    model = tune(tmp_path / "tuned", data, tokenizer, init=init, pooling=pooling)
    assert evaluate(tmp_path / "score", model, data)["primary"] == 1.0


@pytest.mark.parametrize("name", ["word-vectors", "glove", "bilstm"])
def test_features_of_the_earlier_systems_stay_as_they_are(
    name: str, tmp_path: Path, tokenizer: Path, data: Path
) -> None:
    init = pretrained(tmp_path / "init", name)
    tuned = load_file(tune(tmp_path / "tuned", data, tokenizer, init=init) / "model.safetensors")
    before = load_file(init / "model.safetensors")
    if name == "bilstm":
        kept = [n for n in before if n.startswith("bilstm.")]
        assert kept and all(torch.equal(before[n], tuned[f"transformer.{n}"]) for n in kept)
        assert not torch.equal(tuned["transformer.mix.weights"], torch.zeros(3)), "the mix of layers is learnt"
    else:
        expected = before["tokens.weight"] + (before["contexts.weight"] if name == "glove" else 0)
        assert torch.equal(tuned["transformer.tokens.weight"], expected)
    # from scratch there is nothing to keep: all of it trains
    fields = TRUNKS[name][0]
    scratch = load_file(tune(tmp_path / "scratch", data, tokenizer, model=fields) / "model.safetensors")
    assert evaluate(tmp_path / "score", tmp_path / "scratch", data)["primary"] == 1.0
    assert scratch.keys() == tuned.keys()


def test_a_probe_trains_the_head_alone(tmp_path: Path, tokenizer: Path, data: Path) -> None:
    init = pretrained(tmp_path / "init", "decoder")
    tuned = load_file(tune(tmp_path / "tuned", data, tokenizer, init=init, method="probe") / "model.safetensors")
    before = load_file(init / "model.safetensors")
    trunk = [name for name in before if name.startswith("transformer.")]
    assert trunk and all(torch.equal(before[name], tuned[name]) for name in trunk)
    assert tuned["classifier.weight"].abs().max() > 0.1


def test_random_weights_in_another_models_shape(tmp_path: Path, tokenizer: Path, data: Path) -> None:
    init = pretrained(tmp_path / "init", "decoder")
    task = Finetune(dataset=SomeData(), tokenizer=SomeTokenizer(), like=SomeModel(), loop=LOOP, length_tokens=32)
    out = run_stage(task, tmp_path / "out", dataset=data, tokenizer=tokenizer, like=init).out
    assert json.loads((out / "training.json").read_text())["init"] == "random"
    own, theirs = (json.loads((folder / "config.json").read_text())["model"] for folder in (out, init))
    assert own == theirs
    with pytest.raises(BadConfig, match="both init and like"):
        Finetune(dataset=SomeData(), tokenizer=SomeTokenizer(), init=SomeModel(), like=SomeModel())


@pytest.mark.parametrize(
    ("special", "one", "two"),
    [
        ({"pad": 0, "cls": 2, "sep": 3, "bos": 2, "eos": 3}, [2, 5, 3], [2, 5, 3, 6, 3]),
        ({"pad": 0, "bos": 2, "eos": 3}, [2, 5, 3], [2, 5, 3, 6, 3]),
        ({"pad": 0, "eos": 3}, [5, 3], [5, 3, 6, 3]),
    ],
)
def test_how_texts_are_framed(
    tmp_path: Path, tokenizer: Path, special: dict[str, int], one: list[int], two: list[int]
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer-info.json").write_text(json.dumps({"vocab_size": V, "special_tokens": special}))
    encoder = Encoder(tmp_path, 16)
    features = encoder.texts([Row("a", "red", label=0.0), Row("b", "red", "green", label=0.0)])
    assert [f.ids for f in features] == [one, two]
    assert [f.boundary for f in features] == [len(one), len(one)]
