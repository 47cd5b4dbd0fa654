"""XLNet's examples: how many targets, where, and in which order."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.objectives.base import IGNORED
from tasks.objectives.ngram import length_thresholds
from tasks.objectives.philox import sample_words
from tasks.objectives.units import ORDER
from tests.tasks.objective_rows import CLS, CONTINUES, PAD, SEP, V, assert_golden, draw, objective, word_of


def rows(seed: int, count: int, length: int) -> np.ndarray:
    """text [SEP] text … [SEP] [CLS] [PAD]…"""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, V, (count, length)).astype(np.uint16)
    tokens[rng.random((count, length)) < 0.05] = SEP
    for row, end in enumerate(rng.integers(3, length + 1, count)):
        tokens[row, end - 2 : end] = SEP, CLS
        tokens[row, end:] = PAD
    return tokens


def test_worked_example() -> None:
    assert_golden("permutation", "permutation", {"ranks": -1})


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    length=st.integers(4, 150),
    share=st.one_of(st.just(85 / 512), st.floats(0.02, 0.95)),
    span_max=st.integers(1, 20),
)
def test_targets_and_their_order(seed: int, length: int, share: float, span_max: int) -> None:
    tokens = rows(seed % 991, 5, length)
    found = draw(objective("permutation", length, target_share=share, span_max=span_max), tokens, seed)
    np.testing.assert_array_equal(found["input_ids"], tokens)
    np.testing.assert_array_equal(found["attention_mask"], tokens != PAD)
    target = found["labels"] != IGNORED
    np.testing.assert_array_equal(found["labels"][target], tokens[target])
    assert (tokens[target] >= 5).all(), "a special token is a target"
    wanted = np.array([max(1, round(float(n) * share)) for n in (tokens != PAD).sum(1)])
    np.testing.assert_array_equal(target.sum(1), np.minimum(wanted, (tokens >= 5).sum(1)))
    for ranks, own in zip(found["ranks"], target, strict=True):
        assert sorted(ranks[own]) == list(range(own.sum())) and (ranks[~own] == -1).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), length=st.integers(8, 150), span_max=st.integers(1, 9))
def test_spans_told_one_by_one(seed: int, length: int, span_max: int) -> None:
    """The spans before what is still wanting is filled up: they are all among the targets."""
    tokens = rows(seed % 991, 3, length)
    found = draw(objective("permutation", length, span_max=span_max), tokens, seed)["labels"] != IGNORED
    thresholds = length_thresholds(span_max).tolist()
    for index, row in enumerate(tokens):
        random = sample_words(seed, np.array([0]), np.array([index]), 4 * length, ORDER)[0].tolist()
        numbers, left, place, expected = word_of(row), int(found[index].sum()), 0, set()
        while place < length and left:
            word, offset = random.pop(0), random.pop(0)
            n = min(1 + sum(word >= threshold for threshold in thresholds), left)
            context = round(n * 512 / 85)
            before = offset * context >> 32
            begin = place + before
            while begin < length and (numbers[begin] < 0 or begin and numbers[begin - 1] == numbers[begin]):
                begin += 1
            end = begin
            while end < min(length, begin + n) and numbers[end] >= 0:
                end += 1
            expected |= set(range(begin, end))
            left -= end - begin
            place = end + context - before
        assert expected <= set(np.flatnonzero(found[index]))


def test_85_of_512_and_every_order_is_as_likely() -> None:
    tokens = np.random.default_rng(1).integers(5, V, (400, 512))
    tokens[:, -2:] = SEP, CLS
    found = draw(objective("permutation", 512), tokens)
    target = found["labels"] != IGNORED
    assert (target.sum(1) == 85).all()
    # Targets begin words more often than other tokens do: spans start there.
    first = target & ~np.pad(target, ((0, 0), (1, 0)))[:, :-1]
    assert (tokens[first] < CONTINUES).mean() > 1.5 * (tokens[target] < CONTINUES).mean() * 0.8
    # They go on: one target follows another more often than at 1 in 6.
    assert target[:, 1:][target[:, :-1]].mean() > 0.3
    # The order has nothing to do with the place: the mean of 400 correlations, each with deviation 0.11.
    places = np.argsort(np.where(target, np.arange(512), 512), axis=1)[:, :85]
    ranks = np.take_along_axis(found["ranks"], places, 1)
    correlations = [np.corrcoef(own, np.arange(85))[0, 1] for own in ranks]
    assert abs(np.mean(correlations)) < 5 * 0.11 / 20
    # Each target is first, second … as often: 400/85 = 4.7 expected at a place, a deviation of 2.2.
    assert np.bincount(ranks[:, 0], minlength=85).max() < 4.7 + 7 * 2.2


def test_no_span_crosses_a_document() -> None:
    """Documents of two one-piece words: spans of up to 9 tokens end where the document does."""
    tokens = np.tile([10, 11, SEP], 40)[None].repeat(50, 0)
    found = draw(objective("permutation", 120, span_max=9, documents_apart=True), tokens)
    assert (tokens[found["labels"] != IGNORED] != SEP).all()
    np.testing.assert_array_equal(found["segment_ids"][0], np.repeat(np.arange(40), 3))
    np.testing.assert_array_equal(found["position_ids"][0], np.tile([0, 1, 2], 40))
