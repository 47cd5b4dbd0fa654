"""Words, n-grams and spans: each against the same rule told token by token, and in its statistics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.objectives import ngram, spans
from tasks.objectives.base import IGNORED
from tasks.objectives.philox import sample_words
from tasks.objectives.units import ORDER, PICKS
from tests.tasks.objective_rows import (
    CLS,
    CONTINUES,
    MASK,
    PAD,
    SEP,
    V,
    assert_golden,
    draw,
    objective,
    sequences,
    word_of,
)

ANY_ROWS = given(
    seed=st.integers(0, 2**63 - 1),
    length=st.integers(4, 120),
    rate=st.floats(0.01, 0.95),
    limit=st.sampled_from([0, 7]),
)


def labelled(found: dict[str, np.ndarray]) -> np.ndarray:
    return found["labels"] != IGNORED


@pytest.mark.parametrize("name", ["whole_word", "ngram", "spans"])
def test_worked_examples(name: str) -> None:
    assert_golden("mlm", name, {"boundary_left": -1, "boundary_right": -1, "boundary_offset": 0})


def shuffled_words(words: list[list[int]], random: list[int]) -> list[int]:
    """Fisher-Yates: numbers of the words in the order in which they are tried."""
    order = list(range(len(words)))
    for step in range(len(order)):
        place = step + (random[step] * (len(order) - step) >> 32)
        order[step], order[place] = order[place], order[step]
    return order


def words_of(row: np.ndarray) -> list[list[int]]:
    """The positions of each word of a row."""
    numbers = word_of(row)
    return [[i for i, n in enumerate(numbers) if n == word] for word in range(max(numbers) + 1)]


def budget(row: np.ndarray, rate: float, limit: int) -> int:
    return min(max(1, round(float((row != PAD).sum()) * rate)), limit or 1 << 30)


@settings(max_examples=60, deadline=None)
@ANY_ROWS
def test_whole_words_told_word_by_word(seed: int, length: int, rate: float, limit: int) -> None:
    tokens = sequences(seed % 991, 4, length)
    found = labelled(draw(objective(length=length, unit="word", mask_rate=rate, max_predictions=limit), tokens, seed))
    for index, row in enumerate(tokens):
        words, left, expected = words_of(row), budget(row, rate, limit), set()
        random = sample_words(seed, np.array([0]), np.array([index]), length, ORDER)[0].tolist()
        for word in shuffled_words(words, random):
            if len(words[word]) <= left:
                left -= len(words[word])
                expected |= set(words[word])
        assert set(np.flatnonzero(found[index])) == expected


@settings(max_examples=60, deadline=None)
@ANY_ROWS
def test_ngrams_told_word_by_word(seed: int, length: int, rate: float, limit: int) -> None:
    tokens = sequences(seed % 991, 4, length)
    made = objective(length=length, unit="ngram", mask_rate=rate, max_predictions=limit, ngram_max=4)
    found = labelled(draw(made, tokens, seed))
    thresholds = ngram.length_thresholds(4).tolist()
    for index, row in enumerate(tokens):
        words, left, expected = words_of(row), budget(row, rate, limit), set()
        random, drawn = (
            sample_words(seed, np.array([0]), np.array([index]), length, stream)[0].tolist()
            for stream in (ORDER, PICKS)
        )
        for step, word in enumerate(shuffled_words(words, random)):
            n = next(n for n, threshold in enumerate(thresholds, 1) if drawn[step] < threshold)
            gram = [word]
            while len(gram) < n and gram[-1] + 1 < len(words) and words[gram[-1] + 1][0] == words[gram[-1]][-1] + 1:
                gram.append(gram[-1] + 1)
            places = [place for w in gram for place in words[w]]
            while len(places) > left and len(gram) > 1:
                gram.pop()
                places = [place for w in gram for place in words[w]]
            if len(places) <= left and not expected & set(places):
                left -= len(places)
                expected |= set(places)
        assert set(np.flatnonzero(found[index])) == expected


@settings(max_examples=60, deadline=None)
@ANY_ROWS
def test_spans_told_token_by_token(seed: int, length: int, rate: float, limit: int) -> None:
    tokens = sequences(seed % 991, 4, length)
    made = objective(length=length, unit="span", mask_rate=rate, max_predictions=limit, span_boundary=True)
    batch = draw(made, tokens, seed)
    found = labelled(batch)
    thresholds = spans.length_thresholds(0.2, 10)
    for index, row in enumerate(tokens):
        ordinary = [i for i, token in enumerate(row) if token >= 5]
        numbers, expected = word_of(row), set()
        wanted = min(int(np.ceil(round(len(ordinary) * rate, 9))), len(ordinary), limit or 1 << 30)
        random = sample_words(seed, np.array([0]), np.array([index]), 8000, ORDER)[0].tolist()
        while len(expected) < wanted:
            anchor = ordinary[random.pop(0) * len(ordinary) >> 32]
            size = int(spans.lengths(np.array(random.pop(0), dtype=np.uint64), thresholds))
            if anchor in expected:
                continue
            place = numbers.index(numbers[anchor])
            while place < length and row[place] >= 5 and numbers[place] < numbers[anchor] + size:
                if len(expected) < wanted:
                    expected.add(place)
                place += 1
        assert set(np.flatnonzero(found[index])) == expected
        # The boundary columns, token by token.
        for place in range(length):
            boundary = [int(batch[f"boundary_{name}"][index, place]) for name in ("left", "right", "offset")]
            if place not in expected:
                assert boundary == [-1, -1, 0]
                continue
            left, right = place, place
            while left in expected:
                left -= 1
            while right in expected:
                right += 1
            assert boundary == [left, right, place - left]


def test_boundary_is_left_out_where_there_is_no_token_outside() -> None:
    """Two rows without special tokens, masked at their inner ends, are two spans, and neither has an outside."""
    found = spans.boundaries(np.array([1, 2, 3, 4, 6]), (2, 4))
    assert found["boundary_left"].tolist() == [[-1, -1, -1, -1], [-1, -1, 1, -1]]
    assert found["boundary_right"].tolist() == [[-1, -1, -1, -1], [-1, -1, 3, -1]]
    assert found["boundary_offset"].tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]


def test_span_lengths_are_truncated_not_clipped() -> None:
    """Mean 3.797 words; clipping to 10 would give 4.46."""
    thresholds = spans.length_thresholds(0.2, 10)
    shares = np.diff(thresholds.astype(np.float64), prepend=0) / 2**32
    assert abs((shares * np.arange(1, 11)).sum() - 3.797) < 5e-4
    words = sample_words(3, np.zeros(1000), np.arange(1000), 400)
    found = spans.lengths(words, thresholds)
    assert found.min() == 1 and found.max() == 10
    # 400,000 draws with a standard deviation of 2.6: 0.0041 for their mean, and 0.016 is four of them.
    assert abs(found.mean() - 3.797) < 0.016
    counts = np.bincount(found.ravel())[1:] / found.size
    np.testing.assert_allclose(counts[1:] / counts[:-1], 0.8, rtol=0.05)  # ± 5 deviations of the rarest, 1 %


def test_ngram_lengths_are_as_one_over_n() -> None:
    assert (np.diff(ngram.length_thresholds(3).astype(float), prepend=0) / 2**32).round(6).tolist() == [
        0.545455,
        0.272727,
        0.181818,
    ]
    # The first n-gram of a row is free to be of any length: with a budget of three words, one row tells.
    tokens = np.arange(5, 35)[None].repeat(6000, 0)
    made = objective(length=30, unit="ngram", mask_rate=0.1)
    marks = labelled(draw(made, tokens))
    assert (marks.sum(1) == 3).all()
    runs = (marks & ~np.pad(marks, ((0, 0), (1, 0)))[:, :-1]).sum(1)
    # One run: a trigram, 2/11, a rarity otherwise (two that touch: at most 3 · 2/30).
    assert 2 / 11 - 0.02 < (runs == 1).mean() < 2 / 11 + 0.2


def test_one_draw_for_a_span_and_one_for_each_piece_of_a_word() -> None:
    rng = np.random.default_rng(4)
    tokens = rng.integers(5, V, (800, 64))
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    span = draw(objective(length=64, unit="span", span_boundary=True), tokens)
    whole = draw(objective(length=64, unit="word"), tokens)

    def masked_with_the_one_before(found: dict[str, np.ndarray], together: np.ndarray) -> float:
        is_mask = found["input_ids"] == MASK
        return float((is_mask[:, 1:] == is_mask[:, :-1])[together[:, 1:]].mean())

    assert masked_with_the_one_before(span, span["boundary_offset"] > 1) == 1.0
    together = labelled(whole) & (tokens >= CONTINUES)
    # 0.8² + 0.2² = 0.68 of about 5,000 pairs: a standard deviation of 0.007.
    assert abs(masked_with_the_one_before(whole, together) - 0.68) < 0.03
    # Random tokens differ within a span.
    labels = labelled(span)
    random = labels & (span["input_ids"] != MASK) & (span["input_ids"] != tokens)
    both = random[:, 1:] & random[:, :-1]
    assert (span["input_ids"][:, 1:] != span["input_ids"][:, :-1])[both].mean() > 0.95


def test_whole_words_fill_the_budget() -> None:
    """Words of 1, 2 and 3 pieces: every chosen word is chosen with all its pieces."""
    rng = np.random.default_rng(2)
    rows = []
    for _ in range(200):
        row: list[int] = []
        while len(row) < 61:
            row += [int(rng.integers(5, 40)), *(int(t) for t in rng.integers(40, V, rng.integers(0, 3)))]
        rows.append([CLS, *row[:62], SEP])
    tokens = np.array([r + [PAD] * (65 - len(r)) for r in rows], dtype=np.uint16)
    marks = labelled(draw(objective(length=65, unit="word"), tokens))
    for row, chosen in zip(tokens, marks, strict=True):
        for position in range(1, len(row)):
            if row[position] >= CONTINUES:  # a continuation goes with what is before it
                assert chosen[position] == chosen[position - 1]
    assert marks.sum(1).mean() > 9  # of a budget of 10


def test_every_position_is_as_likely() -> None:
    """Words of one piece, so that a position is a word: no unit prefers the row's beginning."""
    tokens = np.random.default_rng(0).integers(5, CONTINUES, (3000, 64))
    for unit, slack in (("word", 5), ("ngram", 0), ("span", 0)):
        marks = labelled(draw(objective(length=64, unit=unit), tokens)).sum(0)
        expected = marks.sum() / 64  # about 470, a standard deviation of 20
        if slack:
            assert abs(marks - expected).max() < slack * 20
        # Spans that start anywhere and go right leave the first places out more often; beyond a length all are alike.
        assert abs(marks[12:] - marks[12:].mean()).max() < 6 * 20
