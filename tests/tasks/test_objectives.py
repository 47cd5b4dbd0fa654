"""What all masked objectives keep: random words, budgets, 80/10/10, specials untouched, the same in any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import BadConfig
from tasks.objectives.base import IGNORED, Vocabulary
from tasks.objectives.philox import below, philox4x32, sample_words
from tasks.objectives.settings import Masked
from tests.tasks.objective_rows import (
    CLS,
    MASK,
    PAD,
    SEP,
    UNK,
    V,
    assert_golden,
    draw,
    objective,
    sequences,
    vocabulary,
)

SPELLINGS = tuple(["#"] * 5 + [["London", "1990", "word", "."][i % 4] for i in range(V - 5)])
UNITS = ("token", "word", "ngram", "span", "salient")


def spelled() -> Vocabulary:
    return vocabulary(tokens=SPELLINGS)


def test_philox_known_answers() -> None:
    """The three vectors that Random123 ships for philox4x32-10."""
    ones = 0xFFFFFFFF
    for counter, key, expected in [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ones,) * 4, (ones,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]:
        words = philox4x32(tuple(np.array([c], dtype=np.uint64) for c in counter), key)
        assert " ".join(f"{int(w[0]):08x}" for w in words) == expected


def test_words_do_not_depend_on_how_many_are_asked_for() -> None:
    epochs, indices = np.array([0, 3]), np.array([5, 1 << 40])
    few, many = sample_words(9, epochs, indices, 3), sample_words(9, epochs, indices, 50)
    assert few.shape == (2, 4) and many.shape == (2, 52)
    np.testing.assert_array_equal(many[:, :4], few)
    assert not np.array_equal(many, sample_words(9, epochs, indices, 50, stream=1))
    assert below(many, 7).min() == 0 and below(many, 7).max() == 6


def test_worked_example() -> None:
    assert_golden("mlm", "mlm")


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    rows=st.integers(1, 9),
    length=st.integers(4, 80),
    rate=st.floats(0.01, 0.9),
    limit=st.sampled_from([0, 1, 5, 20]),
    unit=st.sampled_from(UNITS),
)
def test_budget_specials_and_reconstruction(
    seed: int, rows: int, length: int, rate: float, limit: int, unit: str
) -> None:
    tokens = sequences(seed % 1000, rows, length)
    made = objective(length=length, words=spelled(), mask_rate=rate, max_predictions=limit, unit=unit)
    found = draw(made, tokens, seed)
    labelled = found["labels"] != IGNORED
    candidates = (tokens >= 5).sum(1)
    if unit == "span":
        budget = np.ceil(np.round(candidates * rate, 9))
    else:
        budget = np.array([max(1, round(float(n) * rate)) for n in (tokens != PAD).sum(1)])
    budget = np.minimum(np.minimum(budget, limit or 1 << 30), candidates)
    if unit in ("token", "span"):
        np.testing.assert_array_equal(labelled.sum(1), budget)
    else:
        assert (labelled.sum(1) <= budget).all()
    assert (tokens[labelled] >= 5).all(), "a special token was masked"
    np.testing.assert_array_equal(np.where(labelled, found["labels"], found["input_ids"]), tokens)
    np.testing.assert_array_equal(found["attention_mask"], tokens != PAD)
    changed = found["input_ids"][labelled]
    assert ((changed == MASK) | (changed >= 5)).all(), "a special token was drawn at random"
    assert set(found) == {"input_ids", "labels", "attention_mask"}


ANY: list[tuple[str, dict[str, Any]]] = [
    *(("mlm", {"mask_rate": 0.3, "unit": unit}) for unit in UNITS),
    ("mlm", {"mask_rate": 0.6, "unit": "span", "span_boundary": True, "documents_apart": True}),
    ("rtd", {"mask_rate": 0.3, "documents_apart": True}),
    ("permutation", {"documents_apart": True}),
]


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(8)),
    keep=st.integers(1, 8),
    which=st.sampled_from(ANY),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_sample_is_the_same_in_any_batch(
    order: list[int], keep: int, which: tuple[str, dict[str, Any]], seed: int
) -> None:
    """Rows of very different lengths, so that the batch's longest row changes with the choice."""
    tokens = sequences(3, 8, 90)
    made = objective(which[0], 90, spelled(), **which[1])
    epochs, indices = np.arange(8) // 3, np.arange(8) * (1 << 33) + 5
    whole = made.draw(tokens, seed, epochs, indices)
    chosen = np.array(order[:keep])
    part = made.draw(tokens[chosen], seed, epochs[chosen], indices[chosen])
    assert set(part) == set(whole)
    for column in whole:
        np.testing.assert_array_equal(part[column], whole[column][chosen], err_msg=column)


@pytest.mark.parametrize("which", ANY, ids=lambda which: "-".join([which[0], str(which[1].get("unit", ""))]))
def test_epochs_and_seeds_draw_anew_and_the_rows_are_left_alone(which: tuple[str, dict[str, Any]]) -> None:
    tokens = sequences(5, 50, 64)
    before = tokens.copy()
    made = objective(which[0], 64, spelled(), **which[1])
    first = draw(made, tokens)
    assert not np.array_equal(first["labels"], draw(made, tokens, epoch=1)["labels"])
    assert not np.array_equal(first["labels"], draw(made, tokens, seed=2)["labels"])
    np.testing.assert_array_equal(first["labels"], draw(made, tokens)["labels"])
    np.testing.assert_array_equal(tokens, before)
    # A batch may come in any memory order and integer type.
    turned = draw(made, np.asfortranarray(tokens.astype(np.int64)))
    for column, values in first.items():
        np.testing.assert_array_equal(turned[column], values, err_msg=column)
        assert values.dtype == {"attention_mask": bool, "uniforms": np.float32}.get(column, np.int64), column
    assert set(made.columns) == set(first) - {"attention_mask", "segment_ids", "position_ids"}


@pytest.mark.parametrize("which", ANY, ids=lambda which: "-".join([which[0], str(which[1].get("unit", ""))]))
def test_rows_of_special_tokens_only(which: tuple[str, dict[str, Any]]) -> None:
    made = objective(which[0], 8, spelled(), **which[1])
    for tokens in (np.array([[CLS, SEP] + [PAD] * 6, [CLS, UNK, SEP] + [PAD] * 5]), np.empty((0, 8), np.int64)):
        found = draw(made, tokens)
        assert (found["labels"] == IGNORED).all() and found["labels"].shape == tokens.shape
        np.testing.assert_array_equal(found["input_ids"], tokens)


def test_shares_of_mask_random_and_kept() -> None:
    tokens = np.random.default_rng(0).integers(5, V, (4000, 128)).astype(np.uint16)
    found = draw(objective(), tokens)
    chosen = found["labels"] != IGNORED
    now, was = found["input_ids"][chosen], found["labels"][chosen]
    count = chosen.sum()
    assert count == 4000 * 19
    # 76,000 draws: a standard deviation of at most 0.0015, so 0.006 is four of them.
    assert abs((now == MASK).mean() - 0.8) < 0.006
    different = (now != MASK) & (now != was)
    assert abs(different.mean() - 0.1 * (1 - 1 / 95)) < 0.006
    assert abs((now == was).mean() - 0.1 * (1 + 1 / 95)) < 0.006
    # Every position is as likely as every other: 594 expected, standard deviation 22.5.
    per_position = chosen.sum(0)
    assert abs(per_position - count / 128).max() < 5 * 22.5
    # Every ordinary token is as likely as every other: 80 expected, standard deviation 9.
    drawn = np.bincount(now[different], minlength=V)
    assert not drawn[:5].any() and abs(drawn[5:] - different.sum() / 95).max() < 5 * 9


@pytest.mark.parametrize(("mask_share", "random_share"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.25)])
@pytest.mark.parametrize("unit", UNITS)
def test_other_shares(mask_share: float, random_share: float, unit: str) -> None:
    tokens = np.random.default_rng(1).integers(5, V, (500, 128))
    made = objective(words=spelled(), unit=unit, mask_share=mask_share, random_share=random_share)
    found = draw(made, tokens)
    chosen = found["labels"] != IGNORED
    now, was = found["input_ids"][chosen], found["labels"][chosen]
    # At least 500 · 2 spans with a draw each: a standard deviation of at most 0.016, and 0.065 is four of them.
    assert abs((now == MASK).mean() - mask_share) < (0.065 if 0 < mask_share < 1 else 1e-9)
    kept = 1 - mask_share - random_share
    assert abs((now == was).mean() - kept - random_share / 95) < (0.065 if 0 < random_share < 1 else 0.01)


def test_random_token_any_draws_special_tokens_too() -> None:
    tokens = np.full((4000, 64), 50, dtype=np.uint16)
    made = draw(objective(random_token="any"), tokens)
    assert {PAD, UNK, CLS, SEP} <= set(np.unique(made["input_ids"]))


def test_documents_apart() -> None:
    tokens = np.array([[CLS, 10, 11, SEP, 12, 13, 14, SEP, 15, SEP, PAD, PAD]])
    found = draw(objective(length=12, documents_apart=True), tokens)
    np.testing.assert_array_equal(found["segment_ids"], [[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3]])
    np.testing.assert_array_equal(found["position_ids"], [[0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 0, 1]])
    assert "segment_ids" not in draw(objective(length=12), tokens)


@pytest.mark.parametrize("pairs", ["nsp", "sop"])
def test_rows_of_pairs_have_token_types_and_labels(pairs: str) -> None:
    made = objective(length=10, pairs=pairs)
    tokens = np.array([[CLS, 10, 11, SEP, 12, 13, 14, SEP, PAD, PAD], [CLS, 10, SEP, 11, 12, 13, 14, 15, 16, SEP]])
    facts = {"boundary": np.array([4, 3], dtype=np.int32), "pair_label": np.array([1, 0], dtype=np.int8)}
    found = draw(made, tokens, **facts)
    np.testing.assert_array_equal(
        found["token_type_ids"], [[0, 0, 0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]]
    )
    assert found["pair_labels"].tolist() == [1, 0]
    assert found["token_type_ids"].dtype == found["pair_labels"].dtype == np.int64
    assert made.columns == ("input_ids", "labels", "token_type_ids", "pair_labels")
    # Masks do not depend on the pairs' labels: they are those of the row alone.
    np.testing.assert_array_equal(found["labels"], draw(objective(length=10), tokens)["labels"])
    with pytest.raises(ValueError, match="come with their facts"):
        draw(made, tokens)


def test_what_cannot_be_is_refused() -> None:
    words = vocabulary()
    lacking = Vocabulary(V, {"pad": 0, "cls": 2, "sep": 3, "eos": 3}, words.special, words.starts_word)
    for kind in ("mlm", "rtd"):
        with pytest.raises(BadConfig, match="needs a mask token"):
            objective(kind, words=lacking)
    objective("permutation", words=lacking)
    with pytest.raises(ValueError, match="pairs sop with documents_apart"):
        Masked(pairs="sop", documents_apart=True)
