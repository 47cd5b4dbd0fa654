"""Masks: exact budgets, 80/10/10, specials untouched, and a sample's draw the same in any batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import BadConfig
from tasks.objectives.base import IGNORED, Vocabulary
from tasks.objectives.mlm import MaskedLanguageModel
from tasks.objectives.philox import below, philox4x32, sample_words

GOLDEN = Path(__file__).parent.parent / "golden"
PAD, UNK, CLS, SEP, MASK = range(5)
V = 100


def vocabulary(starts_word: np.ndarray | None = None) -> Vocabulary:
    special = np.zeros(V, dtype=bool)
    special[:5] = True
    roles = {"pad": PAD, "unk": UNK, "cls": CLS, "sep": SEP, "mask": MASK}
    return Vocabulary(V, roles, special, np.ones(V, dtype=bool) if starts_word is None else starts_word)


def objective(words: Vocabulary | None = None, **settings: object) -> MaskedLanguageModel:
    defaults = {"mask_rate": 0.15, "max_predictions": 0, "whole_word": False, "random_token": "ordinary"}
    return MaskedLanguageModel(words or vocabulary(), defaults | settings)


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


def draw(made: MaskedLanguageModel, tokens: np.ndarray, seed: int = 1, epoch: int = 0) -> dict[str, np.ndarray]:
    return made.draw(tokens, seed, np.full(len(tokens), epoch), np.arange(len(tokens)))


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
    golden = json.loads((GOLDEN / "mlm.json").read_text())
    made = objective(mask_rate=golden["mask_rate"]).draw(
        np.array([golden["tokens"]], dtype=np.uint16),
        golden["seed"],
        np.array([golden["epoch"]]),
        np.array([golden["index"]]),
    )
    assert made["input_ids"][0].tolist() == golden["input_ids"]
    assert made["labels"][0].tolist() == golden["labels"]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    rows=st.integers(1, 9),
    length=st.integers(4, 80),
    rate=st.floats(0.01, 0.9),
    limit=st.sampled_from([0, 1, 5, 20]),
    whole_word=st.booleans(),
)
def test_budget_specials_and_reconstruction(
    seed: int, rows: int, length: int, rate: float, limit: int, whole_word: bool
) -> None:
    tokens = sequences(seed % 1000, rows, length)
    starts = np.random.default_rng(seed % 997).random(V) < 0.6
    made = objective(vocabulary(starts), mask_rate=rate, max_predictions=limit, whole_word=whole_word)
    found = draw(made, tokens, seed)
    labelled = found["labels"] != IGNORED
    lengths = (tokens != PAD).sum(1)
    candidates = (tokens >= 5).sum(1)
    budget = np.minimum([max(1, round(float(n) * rate)) for n in lengths], limit or 1 << 30)
    if whole_word:
        assert (labelled.sum(1) <= budget).all()
    else:
        np.testing.assert_array_equal(labelled.sum(1), np.minimum(budget, candidates))
    assert (tokens[labelled] >= 5).all(), "a special token was masked"
    np.testing.assert_array_equal(np.where(labelled, found["labels"], found["input_ids"]), tokens)
    np.testing.assert_array_equal(found["attention_mask"], tokens != PAD)
    changed = found["input_ids"][labelled]
    assert ((changed == MASK) | (changed >= 5)).all(), "a special token was drawn at random"


@settings(max_examples=30, deadline=None)
@given(
    order=st.permutations(range(8)), keep=st.integers(1, 8), whole_word=st.booleans(), seed=st.integers(0, 2**63 - 1)
)
def test_a_sample_is_the_same_in_any_batch(order: list[int], keep: int, whole_word: bool, seed: int) -> None:
    tokens = sequences(3, 8, 40)
    starts = np.random.default_rng(1).random(V) < 0.6
    made = objective(vocabulary(starts), mask_rate=0.3, whole_word=whole_word)
    epochs, indices = np.arange(8) // 3, np.arange(8) * (1 << 33) + 5
    whole = made.draw(tokens, seed, epochs, indices)
    chosen = np.array(order[:keep])
    part = made.draw(tokens[chosen], seed, epochs[chosen], indices[chosen])
    for column in whole:
        np.testing.assert_array_equal(part[column], whole[column][chosen])


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
    assert set(np.unique(now[different])) == set(range(5, V))


def test_random_token_any_draws_special_tokens_too() -> None:
    tokens = np.full((4000, 64), 50, dtype=np.uint16)
    made = draw(objective(random_token="any"), tokens)
    assert {PAD, UNK, CLS, SEP} <= set(np.unique(made["input_ids"]))


def test_whole_words_are_masked_whole_and_fill_the_budget() -> None:
    """Words of 1, 2 and 3 pieces: every chosen word is chosen with all its pieces."""
    starts = np.zeros(V, dtype=bool)
    starts[5:40] = True
    rng = np.random.default_rng(2)
    rows = []
    for _ in range(200):
        row: list[int] = []
        while len(row) < 61:
            row += [int(rng.integers(5, 40)), *(int(t) for t in rng.integers(40, V, rng.integers(0, 3)))]
        rows.append([CLS, *row[:62], SEP])
    tokens = np.array([r + [PAD] * (65 - len(r)) for r in rows], dtype=np.uint16)
    found = draw(objective(vocabulary(starts), whole_word=True), tokens)
    labelled = found["labels"] != IGNORED
    for row, marks in zip(tokens, labelled, strict=True):
        for position in range(1, len(row)):
            if row[position] >= 40:  # a continuation goes with what is before it
                assert marks[position] == marks[position - 1]
    assert labelled.sum(1).mean() > 9  # of a budget of 10


def test_epochs_and_seeds_draw_anew() -> None:
    tokens = sequences(5, 50, 64)
    first = draw(objective(), tokens)["labels"]
    assert not np.array_equal(first, draw(objective(), tokens, epoch=1)["labels"])
    assert not np.array_equal(first, draw(objective(), tokens, seed=2)["labels"])
    np.testing.assert_array_equal(first, draw(objective(), tokens)["labels"])


def test_a_tokenizer_without_mask_is_refused() -> None:
    words = vocabulary()
    lacking = Vocabulary(V, {"pad": 0, "cls": 2, "sep": 3}, words.special, words.starts_word)
    with pytest.raises(BadConfig, match="needs a mask token"):
        objective(lacking)
