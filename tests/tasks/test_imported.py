"""ImportModel and ImportTokenizer: from a folder of the Hub, of Triptych, or from far."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from pydantic import ValidationError

from cluster.errors import BadConfig
from modeling.architecture import TransformerConfig
from modeling.checkpoint import build_model, load_model, save_model
from modeling.errors import ConfigError
from modeling.hub import export_model
from pipelines.identity import code_roots
from tasks.imported import ImportModel, ImportTokenizer
from tests.tasks.small_model import SPECIAL, tokenizer_folder
from tests.tasks.stage import digests, run_stage

HEAD = {"name": "language-model", "settings": {"pairs": "nsp"}}
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dogs", "ran"]
CONFIG = TransformerConfig(
    vocab_size=len(SPECIAL) + len(WORDS), layers=2, width=32, heads=2, ff_width=48, max_length=24, token_types=2
)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """(Triptych's, the Hub's) of one model with its tokenizer."""
    ours = tokenizer_folder(tmp_path / "ours", WORDS)
    torch.manual_seed(1)
    save_model(ours, build_model(CONFIG, HEAD), CONFIG, HEAD)
    export_model(ours, tmp_path / "hub")
    return ours, tmp_path / "hub"


@pytest.mark.parametrize("which", [0, 1])
def test_a_folder_of_either_layout_becomes_a_model(which: int, folders: tuple[Path, Path], tmp_path: Path) -> None:
    source = folders[which]
    context = run_stage(ImportModel(source=str(source)), tmp_path / "out")
    ids = torch.randint(0, CONFIG.vocab_size, (2, 9))
    before, after = load_model(folders[0]), load_model(context.out)
    assert torch.equal(before.transformer(ids), after.transformer(ids)) and after.config == before.config
    assert after.pair is not None
    assert context.metrics == {
        "parameters": sum(value.numel() for value in before.state_dict().values()),
        "vocab_size": CONFIG.vocab_size,
    }
    for name in ("tokenizer.json", "tokenizer-info.json"):
        assert (context.out / name).is_file()
    info = json.loads((context.out / "tokenizer-info.json").read_text())
    assert {role: info["special_tokens"][role] for role in SPECIAL} == SPECIAL
    again = run_stage(ImportModel(source=str(source)), tmp_path / "again")
    assert digests(context.out) == digests(again.out)


@pytest.mark.parametrize("which", [0, 1])
def test_the_tokenizer_alone(which: int, folders: tuple[Path, Path], tmp_path: Path) -> None:
    context = run_stage(ImportTokenizer(source=str(folders[which])), tmp_path / "out")
    assert set(digests(context.out)) == {"tokenizer.json", "tokenizer-info.json"}
    assert (context.out / "tokenizer.json").read_bytes() == (folders[0] / "tokenizer.json").read_bytes()
    info = json.loads((context.out / "tokenizer-info.json").read_text())
    assert {role: info["special_tokens"][role] for role in SPECIAL} == SPECIAL
    assert context.metrics == {"vocab_size": CONFIG.vocab_size} == {"vocab_size": info["vocab_size"]}
    assert any("mask 4" in line for line in context.logged)


def test_the_key_follows_the_content_not_the_place(folders: tuple[Path, Path], tmp_path: Path) -> None:
    stage, moved = ImportModel(source=str(folders[1])), tmp_path / "elsewhere" / "moved"
    shutil.copytree(folders[1], moved)
    (moved / "README.md").write_text("a page about the model is no part of it")
    (moved / "onnx").mkdir()
    (moved / "onnx" / "config.json").write_text("{}")
    assert ImportModel(source=str(moved)).external() == stage.external()
    names = [file["name"] for file in stage.external()["files"]]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert ImportModel(source=str(moved)).external() != stage.external()
    assert ImportTokenizer(source=str(moved)).external() == ImportTokenizer(source=str(folders[1])).external()


def test_a_model_that_is_far_away(folders: tuple[Path, Path], tmp_path: Path) -> None:
    far = fsspec.filesystem("memory")
    far.put(str(folders[1]), "/models/far", recursive=True)
    try:
        found = run_stage(ImportModel(source="memory://models/far"), tmp_path / "far")
        near = run_stage(ImportModel(source=str(folders[1])), tmp_path / "near")
        assert digests(found.out) == digests(near.out)
        assert run_stage(ImportTokenizer(source="memory://models/far/"), tmp_path / "tokenizer").metrics
    finally:
        far.rm("/models", recursive=True)


def test_shards_are_taken_whole_and_copies_of_them_left(folders: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    hub = folders[1]
    tensors = load_file(hub / "model.safetensors")
    halves = [dict(list(tensors.items())[n::2]) for n in range(2)]
    names = [f"model-0000{n + 1}-of-00002.safetensors" for n in range(2)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, str(hub / name))
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (hub / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    both = {file["name"] for file in ImportModel(source=str(hub)).external()["files"]}
    assert "model.safetensors" in both and not both & set(names)
    (hub / "model.safetensors").unlink()
    assert set(names) <= {file["name"] for file in ImportModel(source=str(hub)).external()["files"]}
    context = run_stage(ImportModel(source=str(hub)), tmp_path / "out")
    ids = torch.randint(0, CONFIG.vocab_size, (2, 9))
    assert torch.equal(load_model(folders[0]).transformer(ids), load_model(context.out).transformer(ids))


def test_what_is_missing_is_said_when_the_plan_is_made(folders: tuple[Path, Path], tmp_path: Path) -> None:
    hub = folders[1]
    with pytest.raises(BadConfig, match="no such file: .*nowhere"):
        ImportModel(source=str(tmp_path / "nowhere")).external()
    with pytest.raises(BadConfig, match="is a file, expected a model's folder"):
        ImportModel(source=str(hub / "config.json")).external()
    (hub / "tokenizer.json").unlink()
    with pytest.raises(BadConfig, match=r"no tokenizer.json[\s\S]*AutoTokenizer"):
        ImportTokenizer(source=str(hub)).external()
    (hub / "model.safetensors").unlink()
    with pytest.raises(BadConfig, match="has no model.safetensors"):
        ImportModel(source=str(hub)).external()
    (hub / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadConfig, match=r"pytorch_model.bin is a pickle[\s\S]*save_pretrained"):
        ImportModel(source=str(hub)).external()
    (hub / "config.json").unlink()
    with pytest.raises(BadConfig, match=r"has no config.json[\s\S]*it holds: "):
        ImportModel(source=str(hub)).external()


def test_the_familys_code_is_part_of_the_key(folders: tuple[Path, Path]) -> None:
    assert code_roots(ImportModel(source=str(folders[1]))) == ["tasks.imported:ImportModel", "modeling.hub.bert:Bert"]
    assert code_roots(ImportModel(source=str(folders[0]))) == ["tasks.imported:ImportModel"]


def test_a_model_of_another_family_is_refused_by_name(folders: tuple[Path, Path]) -> None:
    path = folders[1] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "mamba"}))
    with pytest.raises(ValidationError, match="unknown family of the Hub 'mamba'; .*known: albert, bert"):
        ImportModel(source=str(folders[1]))


def test_an_option_that_we_do_not_have_is_refused_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = folders[1] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_decoder": True}))
    with pytest.raises(ConfigError, match="is_decoder is True, expected False"):
        run_stage(ImportModel(source=str(folders[1])), tmp_path / "out")
