"""What MODEL may be: every name of a model finds it, locally and in a remote store; others are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import BadConfig
from cluster.store import Store
from pipelines.models import find_model
from tests.pipelines.text_models import published, recorded, save_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(params=["local", "memory"])
def filled(request: Any, tmp_path: Path, models: dict[str, Path], monkeypatch: Any) -> Store:
    """A store with two runs: one with a pretrained model and a fine-tuned one, one with two sizes."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    store = Store(str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}")
    corpus = published(store, "aa" * 32, None, "corpus", "ingest")
    large = published(store, "bb" * 32, models["decoder"], "model", "pretrain")
    small = published(store, "bb" * 31 + "cc", models["bert"], "model", "pretrain-small")
    tuned = published(store, "dd" * 32, models["bert"], "model", "finetune")
    recorded(store, "gpt-20250101-000000-aaaa", {"ingest": corpus, "pretrain": large, "finetune": tuned})
    recorded(store, "sizes-20250102-000000-bbbb", {"ingest": corpus, "pretrain-a": large, "pretrain-b": small})
    recorded(store, "one-20250103-000000-cccc", {"ingest": corpus, "only": small, "later": "ee" * 32})
    return store


def test_a_model_is_found_by_every_name(filled: Store, models: dict[str, Path], monkeypatch: Any) -> None:
    monkeypatch.setattr("pipelines.cli_options.store_at", lambda url: filled)

    def same(name: str, model: str) -> None:
        found = find_model(name, filled.url)
        assert (found / "config.json").read_bytes() == (models[model] / "config.json").read_bytes(), name

    for name, model in [
        ("gpt-20250101-000000-aaaa", "decoder"),
        ("gpt", "decoder"),
        ("gpt/finetune", "bert"),
        ("sizes/pretrain-b", "bert"),
        ("latest", "bert"),
        ("latest/only", "bert"),
        ("dddddd", "bert"),
        ("bb" * 32, "decoder"),
        (str(models["t5"]), "t5"),
    ]:
        same(name, model)


def test_what_is_no_model_is_said_with_candidates(filled: Store, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("pipelines.cli_options.store_at", lambda url: filled)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text('{"hidden_size": 3}')
    for name, said in [
        ("sizes", "made 2 models and none is stage 'pretrain'\n  name one: sizes-20250102-000000-bbbb/pretrain-a, "),
        ("gpt/ingest", "gpt/ingest is a corpus"),
        ("gpt/pretain", "did you mean 'pretrain'"),
        ("one/later", "has no artifact"),
        ("gtp", "no run 'gtp'"),
        ("bbbbbbbb", f"2 keys begin with bbbbbbbb\n  give more of the key: for instance {'bb' * 32}, "),
        ("aaaaaa", "aaaaaa is a corpus"),
        ("./nowhere", "./nowhere: no such folder"),
        ("./empty", "./empty: no config.json in it"),
        ("full", "neither a Triptych model"),
        ("empty", "no run 'empty'"),
    ]:
        with pytest.raises(BadConfig) as caught:
            find_model(name, filled.url)
        assert said in str(caught.value), name
