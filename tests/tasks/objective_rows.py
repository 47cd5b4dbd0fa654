"""A small vocabulary, rows of it and golden examples, for the tests of objectives."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from tasks.objectives import OBJECTIVES, SETTINGS
from tasks.objectives.base import Objective, Vocabulary

GOLDEN = Path(__file__).parent.parent / "golden"
PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = {"pad": PAD, "unk": UNK, "cls": CLS, "sep": SEP, "mask": MASK, "bos": CLS, "eos": SEP}
V = 100
CONTINUES = 40
"""Ids from here on continue a word."""


def vocabulary(starts_word: np.ndarray | None = None, tokens: tuple[str, ...] = ()) -> Vocabulary:
    """100 tokens of which 5 are special; ids from CONTINUES on continue a word where nothing else is said."""
    special = np.zeros(V, dtype=bool)
    special[:5] = True
    return Vocabulary(V, SPECIAL, special, np.arange(V) < CONTINUES if starts_word is None else starts_word, tokens)


def objective(kind: str = "mlm", length: int = 128, words: Vocabulary | None = None, **settings: Any) -> Any:
    """The objective of that name over `vocabulary()`."""
    made: Objective = OBJECTIVES.load(kind)(words or vocabulary(), SETTINGS.load(kind)(**settings), length)
    return made


def sequences(seed: int, rows: int, length: int) -> np.ndarray:
    """[CLS] text [SEP] text … [SEP] [PAD]…, with separators at random places and random lengths."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, V, (rows, length)).astype(np.uint16)
    tokens[rng.random((rows, length)) < 0.05] = SEP
    tokens[:, 0] = CLS
    for row, end in enumerate(rng.integers(3, length + 1, rows)):
        tokens[row, end - 1] = SEP
        tokens[row, end:] = PAD
    return tokens


def draw(made: Objective, tokens: np.ndarray, seed: int = 1, epoch: int = 0, **facts: Any) -> dict[str, np.ndarray]:
    """Rows 0, 1, 2 … of an epoch."""
    return made.draw(tokens, seed, np.full(len(tokens), epoch), np.arange(len(tokens)), facts or None)


def word_of(tokens: np.ndarray) -> list[int]:
    """The number of the word that each token of one row belongs to; −1 for special tokens. Token by token."""
    numbers, word, inside = [], -1, False
    for token in tokens.tolist():
        if token < 5:
            numbers.append(-1)
        else:
            word += token < CONTINUES or not inside
            numbers.append(word)
        inside = token >= 5
    return numbers


def assert_golden(kind: str, name: str, blanks: dict[str, int] | None = None) -> None:
    """The objective draws tests/golden/<name>.json, and its module's docstring shows those arrays.

    blanks: by column the value that the docstring shows as a dot, where that is not −100.
    """
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    made = objective(kind, len(golden["tokens"]), **golden["settings"])
    shown = [
        " ".join(line.split())
        for line in (importlib.import_module(f"tasks.objectives.{name}").__doc__ or "").splitlines()
    ]
    for expected in golden["expected"]:
        found = made.draw(
            np.array([golden["tokens"]], dtype=np.uint16),
            golden["seed"],
            np.array([expected.pop("epoch")]),
            np.array([golden["index"]]),
        )
        for column, values in expected.items():
            assert found[column][0].tolist() == values, column
            if column in ("original_ids", "uniforms"):
                continue
            blank = (blanks or {}).get(column, -100)
            row = " ".join([column, *("." if value == blank else str(value) for value in values)])
            assert any(row in line for line in shown), f"the docstring of {name} does not show {row!r}"
