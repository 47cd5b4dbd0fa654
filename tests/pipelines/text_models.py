"""Tiny models with random weights and a tokenizer of each kind, in folders: what tests of text stand on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cluster.store import Owner, Store
from modeling.architecture import TransformerConfig
from modeling.checkpoint import save_model
from modeling.heads.language import LanguageModel
from pipelines.runs import RunRecord
from tasks.tokenizer import TOKENIZERS, sentinel_ids, special_ids
from tasks.tokenizers.base import TokenizerSettings

TEXT = "The café is naïve, isn't it? 東京 is a city; the 🙂 laughs (at 3.14). Don't stop: the cat and the dog run."
SHAPE = {"layers": 2, "width": 32, "heads": 2, "ff_width": 64, "max_length": 48, "init_std": 0.2}
PLAIN = {"head_transform": False, "norm_placement": "pre", "tie_embeddings": False}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "decoder": ("gpt2", {"architecture": "decoder", **PLAIN}, {"kind": "causal"}),
    "words": ("bpe-words", {"architecture": "decoder", **PLAIN, "positions": "rotary"}, {}),
    "prefix-lm": ("wordpiece", {"architecture": "prefix-lm", **PLAIN}, {"kind": "prefix"}),
    "t5": (
        "unigram",
        {"architecture": "encoder-decoder", **PLAIN, "positions": "relative", "norm": "rmsnorm"},
        {"kind": "span-corruption"},
    ),
    "bart": ("bpe", {"architecture": "encoder-decoder", "tie_embeddings": False}, {"kind": "infilling"}),
    "bert": ("wordpiece", {}, {"kind": "mlm"}),
    "roberta": ("bpe", {"position_offset": 2}, {}),
}


def tokenizer(folder: Path, kind: str) -> int:
    """A tokenizer of a kind, trained on a few words; its size."""
    sizes = {"gpt2": 300, "bpe": 300, "bpe-words": 120, "wordpiece": 120, "unigram": 100}
    texts = [TEXT] * 4 + [word for word in TEXT.split() for _ in range(3)]
    made = TOKENIZERS.load(kind)(texts, TokenizerSettings(sizes[kind], True, 2, 8 if kind == "unigram" else 0))
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    info = {"special_tokens": special_ids(made), "sentinels": len(sentinel_ids(made))}
    (folder / "tokenizer-info.json").write_text(json.dumps(info))
    return int(made.get_vocab_size())


def save_models(base: Path) -> dict[str, Path]:
    """A folder for each of `MODELS`."""
    found = {}
    for name, (kind, fields, settings) in MODELS.items():
        found[name] = base / name
        config = TransformerConfig(**{**SHAPE, **fields, "vocab_size": tokenizer(base / name, kind)})
        torch.manual_seed(1)
        save_model(base / name, LanguageModel(config), config, {"name": "language-model", "settings": settings})
    return found


def published(store: Store, key: str, folder: Path | None, kind: str, stage: str) -> str:
    """An artifact in the store, with a copy of a folder's files."""
    claim = store.claim(key, Owner.here("test"))
    out = store.attempt_folder(claim)  # type: ignore[arg-type]
    for path in folder.iterdir() if folder else ():
        (out / path.name).write_bytes(path.read_bytes())
    store.publish(claim, out, {"task": "T", "kind": kind, "stage": stage})  # type: ignore[arg-type]
    return key


def recorded(store: Store, name: str, stages: dict[str, str]) -> None:
    """A finished run of these stages and keys."""
    entries = {stage: {"key": key, "state": "done"} for stage, key in stages.items()}
    RunRecord.create(store, name, {"recipe": "r", "plan": name}, entries).finish("done")
