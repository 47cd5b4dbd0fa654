"""A tokenizer artifact of a few words and a task's data set, written by hand: what fine-tuning tests stand on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from modeling.architecture import TransformerConfig
from tasks.base import Task
from tasks.datasets import write_rows
from tasks.downstream.spec import Row

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
TINY = TransformerConfig(
    layers=1, width=32, heads=2, ff_width=64, max_length=64, norm_placement="pre", norm="rmsnorm", init_std=0.2
)


class SomeTokenizer(Task):
    produces: ClassVar[str] = "tokenizer"


class SomeModel(Task):
    produces: ClassVar[str] = "model"


class SomeData(Task):
    produces: ClassVar[str] = "dataset"


class SomeScore(Task):
    produces: ClassVar[str] = "score"


def tokenizer_folder(folder: Path, words: Sequence[str]) -> Path:
    """A word-level tokenizer over `words`, in the tokenizer artifact's format."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = [f"[{name.upper()}]" for name in SPECIAL] + list(dict.fromkeys(words))
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    info = {"kind": "words", "vocab_size": len(names), "special_tokens": SPECIAL}
    (folder / "tokenizer-info.json").write_text(json.dumps(info))
    return folder


def data_folder(folder: Path, facts: Mapping[str, Any], **splits: Sequence[Row]) -> Path:
    """A data set artifact of rows written by hand."""
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        write_rows(folder / f"{split}.parquet", rows)
    known = {"task": "made-up", "labels": [], "splits": {split: len(rows) for split, rows in splits.items()}}
    (folder / "dataset.json").write_text(json.dumps({**known, **facts}))
    return folder
