"""A small vocabulary with sentinels and rows of it, for the tests of objectives with inputs and targets."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from tasks.objectives import OBJECTIVES, SETTINGS
from tasks.objectives.base import Vocabulary

GOLDEN = Path(__file__).parent.parent / "golden"
PAD, EOS, MASK, BOS, UNK = range(5)
ROLES = {"pad": PAD, "eos": EOS, "mask": MASK, "bos": BOS, "unk": UNK}
V = 200
FIRST, LAST = 5, 139
"""Of the ordinary tokens; the 60 above are sentinels, <extra_id_0> the last id."""
STOPS = (8, 9)
SPELLED = {8: "?", 9: ".", 10: ",", 20: "In", 21: "March", 22: "1990", 23: "Marie", 24: "Curie", 25: "Paris"}


def vocabulary(sentinels: int = 60, without: tuple[str, ...] = (), tokens: bool = True) -> Vocabulary:
    special = np.ones(V, dtype=bool)
    special[FIRST : LAST + 1] = False
    return Vocabulary(
        V,
        {role: token for role, token in ROLES.items() if role not in without},
        special,
        np.ones(V, dtype=bool),
        tuple(SPELLED.get(i, f"w{i}") for i in range(V)) if tokens else (),
        tuple(range(V - 1, V - 1 - sentinels, -1)),
    )


def objective(kind: str, length: int, words: Vocabulary | None = None, **settings: Any) -> Any:
    return OBJECTIVES.load(kind)(words or vocabulary(), SETTINGS.load(kind)(**settings), length)


def rows_for(
    kind: str, length: int, rows: int, seed: int, separators: float = 0.05, padded: bool = True, **settings: Any
):
    """Raw rows as `Layout` describes them: separators at random places, random lengths."""
    layout = SETTINGS.load(kind)(**settings).layout(length)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(FIRST, LAST + 1, (rows, layout.tokens)).astype(np.uint16)
    tokens[rng.random(tokens.shape) < separators] = EOS
    least = len(layout.begin) + len(layout.end) + 1
    for row in range(rows):
        end = int(rng.integers(least, layout.tokens + 1)) if padded and row % 3 == 0 else layout.tokens
        for at, role in enumerate(layout.begin):
            tokens[row, at] = ROLES[role]
        for at, role in enumerate(reversed(layout.end)):
            tokens[row, end - 1 - at] = ROLES[role]
        tokens[row, end:] = PAD
    return tokens


def draw(made: Any, tokens: np.ndarray, seed: int = 1, epoch: int = 0) -> dict[str, np.ndarray]:
    """Rows 0, 1, 2 … of an epoch."""
    return made.draw(tokens, seed, np.full(len(tokens), epoch), np.arange(len(tokens)))


def is_sentinel(tokens: np.ndarray) -> np.ndarray:
    return tokens > LAST


def text_of(row: np.ndarray) -> list[int]:
    """A row without its padding."""
    return row[: int((row != PAD).sum())].tolist()


def assert_golden(name: str) -> None:
    """The objective draws tests/golden/<name>.json, and its module's docstring shows those arrays."""
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    shown = [
        " ".join(line.split())
        for line in (importlib.import_module(f"tasks.objectives.{name}").__doc__ or "").splitlines()
    ]
    for case in golden["cases"]:
        made = objective(golden["kind"], golden["length_tokens"], **case["settings"])
        tokens = np.array([case["tokens"]], dtype=np.uint16)
        at = np.array([golden["epoch"]]), np.array([golden["index"]])
        found = made.draw(tokens, golden["seed"], *at)
        assert set(found) - {"attention_mask"} == set(case["expected"])
        for column, values in {"tokens": case["tokens"], **case["expected"]}.items():
            if column != "tokens":
                assert found[column][0].tolist() == values, column
            row = " ".join([column, *("." if value == -100 else str(value) for value in values)])
            assert any(row in line for line in shown), f"the docstring of {name} does not show {row!r}"
