"""Feature converters: the documented example, and a token-by-token account of every arrangement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import BadConfig
from tasks.objectives import convert as module
from tasks.objectives.base import IGNORED
from tasks.objectives.convert import convert, in_blocks, packed, positions, ragged
from tests.tasks.paired_rows import PAD, draw, objective, rows_for, vocabulary

EXAMPLE = {"inputs": [11, 99, 14, 1, 0], "targets": [99, 12, 13, 1, 0]}
EXPECTED: dict[str, dict[str, list[int]]] = {
    "encoder-decoder": {
        "input_ids": [11, 99, 14, 1, 0],
        "attention_mask": [1, 1, 1, 1, 0],
        "decoder_input_ids": [0, 99, 12, 13, 1],
        "decoder_attention_mask": [1, 1, 1, 1, 0],
        "labels": [99, 12, 13, 1, -100],
    },
    "prefix-lm": {
        "input_ids": [0, 11, 99, 14, 1, 99, 12, 13, 1, 0],
        "attention_mask": [1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
        "labels": [-100, -100, -100, -100, 99, 12, 13, 1, -100, -100],
        "prefix_mask": [1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
    },
}
EXPECTED["decoder"] = {name: values for name, values in EXPECTED["prefix-lm"].items() if name != "prefix_mask"}


@pytest.mark.parametrize("architecture", EXPECTED)
def test_worked_example(architecture: str) -> None:
    found = convert({name: np.array([row]) for name, row in EXAMPLE.items()}, architecture, vocabulary())
    assert set(found) == set(EXPECTED[architecture])
    shown = " ".join((module.__doc__ or "").split())
    for name, values in EXPECTED[architecture].items():
        assert found[name].dtype == (bool if "mask" in name else np.int64), name
        assert found[name][0].tolist() == values, name
        arrays = " ".join("." if value == IGNORED else str(value) for value in values)
        assert arrays in shown, f"the docstring does not show {name}: {arrays}"


def one_row(inputs: list[int], targets: list[int], width: int, prefix: bool) -> dict[str, list[Any]]:
    """One text as one stack reads it, by the book."""
    both = inputs + targets
    made = {
        "input_ids": ([PAD, *both])[: len(both)],
        "labels": [IGNORED] * len(inputs) + targets,
        "attention_mask": [True] * len(both),
        "position_ids": list(range(len(both))),
    }
    if prefix:
        made["prefix_mask"] = [i < len(inputs) + 1 for i in range(len(both))]
    return made


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(24, 60),
    kind=st.sampled_from(["span-corruption", "prefix", "iid-denoising"]),
    architecture=st.sampled_from(["prefix-lm", "decoder"]),
    apart=st.booleans(),
)
def test_one_stack_row_by_row(seed: int, length: int, kind: str, architecture: str, apart: bool) -> None:
    made = objective(kind, length, documents_apart=apart)
    drawn = draw(made, rows_for(kind, length, 6, seed, 0.1), seed)
    width = length if kind == "prefix" else 0
    found = convert(drawn, architecture, vocabulary(), apart, width)
    for at in range(6):
        rows = {
            side: [
                (token, segment)
                for token, segment in zip(
                    drawn[f"{side}s"][at].tolist(),
                    (drawn[f"{side}_segments"] if apart else np.zeros_like(drawn[f"{side}s"]))[at].tolist(),
                    strict=True,
                )
                if token != PAD
            ]
            for side in ("input", "target")
        }
        expected: dict[str, list[Any]] = {}
        for document in range(max(d for side in rows.values() for _, d in side) + 1):
            parts = [[token for token, d in rows[side] if d == document] for side in ("input", "target")]
            part = one_row(*parts, width, architecture == "prefix-lm")
            part["segment_ids"] = [document] * len(part["labels"])
            for name, values in part.items():
                expected[name] = expected.get(name, []) + values
        count = len(expected["labels"])
        if not apart:
            del expected["segment_ids"], expected["position_ids"]
        assert set(expected) == set(found)
        for name, values in expected.items():
            assert found[name][at, :count].tolist() == values, name
        assert not found["attention_mask"][at, count:].any() and (found["labels"][at, count:] == IGNORED).all()
        if apart:
            assert (np.diff(found["segment_ids"][at]) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(24, 60),
    kind=st.sampled_from(["span-corruption", "prefix", "iid-denoising", "infilling", "mass"]),
    apart=st.booleans(),
)
def test_two_stacks_row_by_row(seed: int, length: int, kind: str, apart: bool) -> None:
    drawn = draw(objective(kind, length, documents_apart=apart), rows_for(kind, length, 6, seed, 0.1), seed)
    found = convert(drawn, "encoder-decoder", vocabulary(), apart)
    np.testing.assert_array_equal(found["input_ids"], drawn["inputs"])
    np.testing.assert_array_equal(found["attention_mask"], drawn["inputs"] != PAD)
    np.testing.assert_array_equal(found["decoder_attention_mask"], drawn["targets"] != PAD)
    np.testing.assert_array_equal(found["labels"], np.where(drawn["targets"] != PAD, drawn["targets"], IGNORED))
    assert ("segment_ids" in found) == apart
    for at, targets in enumerate(drawn["targets"].tolist()):
        segments = drawn["target_segments"][at].tolist() if apart else [0] * len(targets)
        position = 0
        for i, token in enumerate(targets):
            begins = i == 0 or segments[i] != segments[i - 1]
            position = 0 if begins else position + 1
            assert found["decoder_input_ids"][at, i] == (PAD if begins else targets[i - 1])
            if apart and token != PAD:
                assert found["decoder_segment_ids"][at, i] == segments[i]
                if kind != "mass":
                    assert found["decoder_position_ids"][at, i] == position
    if apart:
        np.testing.assert_array_equal(found["position_ids"], positions(drawn["input_segments"]))
    if kind == "mass":
        np.testing.assert_array_equal(found["decoder_position_ids"], drawn["target_positions"])
    else:
        assert ("decoder_position_ids" in found) == apart


def test_no_label_stands_across_documents() -> None:
    """What a place reads and what it predicts are of one document: the document's beginning reads padding."""
    drawn = draw(objective("span-corruption", 90, documents_apart=True), rows_for("span-corruption", 90, 30, 0, 0.1))
    for architecture, ids, segments in (
        ("encoder-decoder", "decoder_input_ids", "decoder_segment_ids"),
        ("prefix-lm", "input_ids", "segment_ids"),
    ):
        found = convert(drawn, architecture, vocabulary(), True)
        first = np.ones(found[segments].shape, dtype=bool)
        first[:, 1:] = found[segments][:, 1:] != found[segments][:, :-1]
        assert first.sum() > 60 and (found[ids][first] == PAD).all()


def test_impossible_arrangements_are_refused() -> None:
    drawn = {name: np.array([row]) for name, row in EXAMPLE.items()}
    with pytest.raises(BadConfig, match="'encoder' takes no inputs and targets"):
        convert(drawn, "encoder", vocabulary())
    with pytest.raises(ValueError, match="8 tokens together, more than the width of 7"):
        convert(drawn, "decoder", vocabulary(), width=7)


def test_ragged_rows() -> None:
    values, counts = np.array([1, 2, 3, 4, 5, 6], dtype=np.uint16), np.array([2, 0, 4])
    assert ragged(values, counts, 5, 9, 7).tolist() == [[1, 2, 7, 9, 9], [7, 9, 9, 9, 9], [3, 4, 5, 6, 7]]
    assert ragged(values, np.array([3, 3]), 3, 0).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert ragged(values, counts, 4, np.array([[7], [8], [9]])).tolist() == [[1, 2, 7, 7], [8] * 4, [3, 4, 5, 6]]
    assert ragged(values[:0], counts[:0], 4, 0).shape == (0, 4)
    rows = values.reshape(2, 3)
    assert packed(rows, rows % 2 == 0, 3, 0).tolist() == [[2, 0, 0], [4, 6, 0]]
    sizes = []

    def doubled(part: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(part))
        return {"twice": part * 2}

    many = np.arange(70).reshape(10, 7)
    assert in_blocks(doubled, many, tokens=28)["twice"].tolist() == (many * 2).tolist()
    assert sizes == [4, 4, 2]
