"""Span corruption and prefixes; and what holds for every objective with inputs and targets."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import BadConfig
from tasks.objectives import OBJECTIVES, SETTINGS
from tasks.objectives.convert import convert
from tests.tasks.paired_rows import (
    EOS,
    FIRST,
    LAST,
    PAD,
    UNK,
    assert_golden,
    draw,
    is_sentinel,
    objective,
    rows_for,
    text_of,
    vocabulary,
)

PAIRED: list[tuple[str, dict[str, Any]]] = [
    ("span-corruption", {}),
    ("span-corruption", {"rolled": True, "noise_density": 0.3}),
    ("prefix", {}),
    ("iid-denoising", {"style": "bert"}),
    ("iid-denoising", {"style": "mass"}),
    ("iid-denoising", {"style": "replace-spans"}),
    ("iid-denoising", {"style": "drop-tokens"}),
    ("infilling", {}),
    ("infilling", {"permute_sentences": False, "poisson_lambda": 0.5}),
    ("mass", {}),
    ("salient-spans", {"spans": 2}),
]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("kind", "options"), PAIRED)
def test_a_sample_is_the_same_in_any_batch(kind: str, options: dict[str, Any], apart: bool) -> None:
    made = objective(kind, 40, documents_apart=apart, **options)
    tokens = rows_for(kind, 40, 9, 3)
    epochs, indices = np.arange(9) // 3, np.arange(9) * (1 << 33) + 5
    whole = made.draw(tokens, 11, epochs, indices)
    for chosen in (np.array([4]), np.array([8, 0, 3]), np.arange(8, -1, -1)):
        part = made.draw(tokens[chosen], 11, epochs[chosen], indices[chosen])
        for column in whole:
            np.testing.assert_array_equal(part[column], whole[column][chosen], err_msg=column)
    # More rows than one block has: 1,200 · 40 tokens.
    many = np.arange(1200) % 9
    for column, values in made.draw(tokens[many], 11, epochs[many], indices[many]).items():
        np.testing.assert_array_equal(values, whole[column][many], err_msg=column)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("kind", "options"), PAIRED)
def test_shapes_types_and_padding(kind: str, options: dict[str, Any], apart: bool) -> None:
    made = objective(kind, 33, documents_apart=apart, **options)
    tokens = rows_for(kind, 33, 20, 5)
    before = tokens.copy()
    found = draw(made, tokens)
    np.testing.assert_array_equal(tokens, before)
    widths = dict(zip(("inputs", "targets"), SETTINGS.load(kind)(**options).lengths(33), strict=True))
    segments = {"input_segments", "target_segments"} if apart else set()
    assert set(found) == {"inputs", "targets"} | segments | ({"target_positions"} if kind == "mass" else set())
    assert set(made.columns) == set(found)
    for column, values in found.items():
        width = widths["inputs" if column.startswith("input") else "targets"]
        assert values.shape == (20, width) and values.dtype == np.int64, column
        if column in widths:
            assert not ((values[:, :-1] == PAD) & (values[:, 1:] != PAD)).any(), "padding stands at the end"
        if column.endswith("segments"):
            assert (np.diff(values, axis=1) >= 0).all() and (values[:, 0] >= 0).all()
    again = draw(made, tokens)
    others = [draw(made, tokens, seed=2), draw(made, tokens, epoch=1)]
    assert all(np.array_equal(found[column], again[column]) for column in found)
    assert not any(all(np.array_equal(found[column], other[column]) for column in found) for other in others)
    for integers in (np.int32, np.uint8, np.int64):
        same = draw(made, tokens.astype(integers))
        assert all(np.array_equal(found[column], same[column]) for column in found)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("kind", "options"), PAIRED)
def test_rows_of_almost_nothing(kind: str, options: dict[str, Any], apart: bool) -> None:
    made = objective(kind, 24, documents_apart=apart, **options)
    width = SETTINGS.load(kind)(**options).layout(24).tokens
    rows = [[], [EOS], [11], [11, 12], [EOS] * width, [11] * width]
    tokens = np.array([row + [PAD] * (width - len(row)) for row in rows], dtype=np.uint16)
    whole = draw(made, tokens)
    for count in (0, 1, 4):
        part = draw(made, tokens[:count])
        assert all(np.array_equal(part[column], whole[column][:count]) for column in whole)
    for architecture in made.settings.architectures:
        found = convert(whole, architecture, made.vocabulary, apart)
        assert all(len(values) == len(rows) for values in found.values())
    # Nothing is lost of a text too short to be corrupted.
    for row in (1, 2):
        both = {*whole["inputs"][row].tolist(), *whole["targets"][row].tolist()}
        assert set(rows[row]) <= both


# ---------------------------------------------------------------- span corruption


def rebuilt(inputs: list[int], targets: list[int]) -> list[int]:
    """The text: each sentinel of the inputs replaced by what the targets have behind it; both without EOS."""
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in targets:
        if is_sentinel(np.array(token)):
            current = spans[token] = []
        else:
            current.append(token)
    return [t for token in inputs for t in spans.get(token, [token])]


def test_worked_examples() -> None:
    assert_golden("span_corruption")
    assert_golden("prefix")


@pytest.mark.parametrize(
    ("length", "raw", "target"), [(128, 141, 29), (256, 284, 58), (512, 568, 114), (1024, 1137, 229)]
)
def test_table_of_lengths_is_filled_exactly(length: int, raw: int, target: int) -> None:
    kind = SETTINGS.load("span-corruption")()
    assert (kind.layout(length).tokens, *kind.lengths(length)) == (raw, length, target)
    found = draw(objective("span-corruption", length), rows_for("span-corruption", length, 8, 0, 0.0, padded=False))
    assert found["inputs"].shape == (8, length) and found["targets"].shape == (8, target)
    assert (found["inputs"] != PAD).all() and (found["targets"] != PAD).all()
    assert (found["inputs"][:, -1] == EOS).all() and (found["targets"][:, -1] == EOS).all()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(24, 90),
    density=st.sampled_from([0.1, 0.15, 0.3, 0.5]),
    mean=st.sampled_from([1.5, 2.0, 3.0, 5.0]),
    separators=st.sampled_from([0.0, 0.02, 0.1, 0.5]),
    rolled=st.booleans(),
    apart=st.booleans(),
)
def test_budget_and_reconstruction(
    seed: int, length: int, density: float, mean: float, separators: float, rolled: bool, apart: bool
) -> None:
    options = {"noise_density": density, "mean_span": mean, "rolled": rolled}
    tokens = rows_for("span-corruption", length, 8, seed, separators, **options)
    tokens[5, 2] = UNK  # special, and no separator
    found = draw(objective("span-corruption", length, documents_apart=apart, **options), tokens, seed)
    for at, row in enumerate(tokens):
        text, inputs, targets = text_of(row), text_of(found["inputs"][at]), text_of(found["targets"][at])
        n = min(max(round(len(text) * density), 1), len(text) - 1)
        k = max(1, round(n / mean)) if n else 0
        stretches = [len(s) for s in "".join(" " if t < FIRST else "x" for t in text).split()]
        enough = bool(stretches) and all(size >= 2 * n for size in stretches)  # any of them could take all the noise
        assert inputs.pop() == EOS and targets.pop() == EOS
        names = [t for t in inputs if is_sentinel(np.array(t))]
        assert names == [t for t in targets if is_sentinel(np.array(t))]
        assert all(t >= FIRST for t in targets), "a special token was noise"
        assert len(targets) - len(names) <= n and len(names) <= k
        if enough:
            assert (len(targets) - len(names), len(names)) == (n, k)
        if apart:
            of_inputs, of_targets = found["input_segments"][at], found["target_segments"][at]
            back = []
            for document in range(int(of_inputs.max()) + 1):
                mine = [t for t, d in zip(inputs, of_inputs, strict=False) if d == document]
                its = [t for t, d in zip(targets, of_targets, strict=False) if d == document]
                named = [t for t in mine if is_sentinel(np.array(t))]
                assert named == list(vocabulary().sentinels[: len(named)]), "sentinels begin anew"
                back += rebuilt(mine, its)
        else:
            assert names == list(vocabulary().sentinels[: len(names)])
            back = rebuilt(inputs, targets)
        assert back == text[: len(back)], "the text comes back"
        assert len(back) == len(text) or (len(back) == length - 1 and not enough)
        for before, after in zip(inputs, inputs[1:], strict=False):
            assert not (is_sentinel(np.array(before)) and is_sentinel(np.array(after))), "adjacent noise is one span"
        if not rolled:
            for before, token in zip([EOS, *inputs], inputs, strict=False):
                assert not (before < FIRST and is_sentinel(np.array(token))), "a stretch begins without noise"


def noise_of(found: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """bool like tokens, whose tokens are all different within a row: which are in the targets."""
    return np.array(
        [np.isin(row, target[target >= FIRST]) for row, target in zip(tokens, found["targets"], strict=True)]
    )


def test_all_masks_are_equally_likely() -> None:
    """8 tokens, 4 of noise in 2 spans: 3 ways to cut the noise, 3 to cut the rest."""
    tokens = np.tile(np.array([*range(11, 19), PAD], dtype=np.uint16), (9000, 1))
    found = draw(objective("span-corruption", 8, noise_density=0.5, mean_span=2.0), tokens)
    masks, counts = np.unique(noise_of(found, tokens)[:, :8], axis=0, return_counts=True)
    expected = {
        tuple(np.repeat([False, True, False, True], [a, b, 4 - a, 4 - b]).tolist())
        for a in (1, 2, 3)
        for b in (1, 2, 3)
    }
    assert {tuple(mask.tolist()) for mask in masks} == expected
    # χ² with 8 degrees of freedom: beyond 31.8 once in 10,000.
    assert ((counts - 1000) ** 2 / 1000).sum() < 31.8


def test_rolled_masks_are_the_others_turned() -> None:
    tokens = np.tile(np.array([*range(11, 19), PAD], dtype=np.uint16), (9000, 1))
    found = draw(objective("span-corruption", 8, noise_density=0.5, mean_span=2.0, rolled=True), tokens)
    masks = noise_of(found, tokens)[:, :8]
    found_masks, counts = np.unique(masks, axis=0, return_counts=True)
    # Any 4 of 8 in 2 runs, of which none is cut by the row's ends.
    expected = {
        mask
        for chosen in combinations(range(8), 4)
        for mask in [tuple(i in chosen for i in range(8))]
        if sum(mask[i] and not (i and mask[i - 1]) for i in range(8)) == 2 and not (mask[0] and mask[7])
    }
    assert {tuple(mask.tolist()) for mask in found_masks} == expected
    assert masks[:, 0].mean() > 0.2 and masks[:, 7].mean() < 0.9
    assert counts.min() > 100


def test_separators_leave_counts_exact_and_share_them_fairly() -> None:
    tokens = np.random.default_rng(0).permuted(np.tile(np.arange(11, 130), (3000, 1)), axis=1)[:, :57].astype(np.uint16)
    tokens[:, 9], tokens[:, 29], tokens[:, 56] = EOS, EOS, EOS
    made = objective("span-corruption", 52)
    assert made.settings.layout(52).tokens == 57
    found = draw(made, tokens)
    assert (found["inputs"] != PAD).all() and (found["targets"] != PAD).all()
    share = [noise_of(found, tokens)[:, first:end].sum() for first, end in ((0, 9), (10, 29), (30, 56))]
    # 27,000 noise tokens go by 9 : 19 : 26 ordinary ones, but for spans that have two of these each: 4 : 9 : 13.
    # A standard deviation of a share is about 0.007.
    assert np.abs(np.array(share) / 27000 - np.array([4, 9, 13]) / 26).max() < 0.03


def test_rows_of_tiny_documents_still_fit() -> None:
    rows = np.full((2, 141), EOS, dtype=np.uint16)
    rows[0, ::2] = 11
    rows[1, ::3] = 12
    rows[1, 1::3] = 13
    found = draw(objective("span-corruption", 128), rows)
    assert not is_sentinel(found["inputs"][0]).any()
    assert text_of(found["inputs"][0]) == [*rows[0, :127].tolist(), EOS] and text_of(found["targets"][0]) == [EOS]
    assert is_sentinel(found["inputs"][1]).any()


def test_too_few_sentinels_or_tokens_between_spans_are_refused() -> None:
    with pytest.raises(BadConfig, match="makes 28 spans, the tokenizer has 20 sentinels"):
        objective("span-corruption", 512, vocabulary(sentinels=20))
    with pytest.raises(ValueError, match="more spans than tokens to stand between them"):
        objective("span-corruption", 64, noise_density=0.8, mean_span=1.0)
    with pytest.raises(BadConfig, match="needs sentinels"):
        objective("span-corruption", 64, vocabulary(sentinels=0))


# ---------------------------------------------------------------- prefix


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(2, 60),
    shares=st.sampled_from([(0.0, 1.0), (0.25, 0.5), (0.9, 0.95), (0.0, 0.01)]),
    apart=st.booleans(),
)
def test_prefix_and_rest_are_the_row(seed: int, length: int, shares: tuple[float, float], apart: bool) -> None:
    tokens = rows_for("prefix", length, 7, seed, 0.1)
    made = objective("prefix", length, least_share=shares[0], most_share=shares[1], documents_apart=apart)
    found = draw(made, tokens, seed)
    for at, row in enumerate(tokens):
        text, inputs, targets = text_of(row), text_of(found["inputs"][at]), text_of(found["targets"][at])
        if len(text) < length and targets:
            assert targets.pop() == EOS
        if not apart:
            assert inputs + targets == text and inputs and (targets or len(text) == 1)
            least, most = shares[0] * len(text), shares[1] * len(text)
            assert least <= len(inputs) <= most or len(inputs) in (1, len(text) - 1, int(np.ceil(least)))
            continue
        documents = np.split(text, np.flatnonzero(np.array(text) == EOS) + 1)
        for number, document in enumerate(d.tolist() for d in documents if len(d)):
            first = [t for t, d in zip(inputs, found["input_segments"][at], strict=False) if d == number]
            rest = [t for t, d in zip(targets, found["target_segments"][at], strict=False) if d == number]
            assert first + rest == document and first and (rest or len(document) == 1)


def test_cuts_are_uniform() -> None:
    tokens = np.tile(np.arange(11, 21, dtype=np.uint16), (9000, 1))
    sizes = (draw(objective("prefix", 10), tokens)["inputs"] != PAD).sum(axis=1)
    values, counts = np.unique(sizes, return_counts=True)
    assert values.tolist() == list(range(1, 10))
    # χ² with 8 degrees of freedom: beyond 31.8 once in 10,000.
    assert ((counts - 1000) ** 2 / 1000).sum() < 31.8
    sizes = (draw(objective("prefix", 10, least_share=0.25, most_share=0.5), tokens)["inputs"] != PAD).sum(axis=1)
    assert np.unique(sizes).tolist() == [3, 4, 5]


@pytest.mark.parametrize("shares", [(0.07, 0.29), (0.55, 0.58)])
def test_shares_that_floating_point_cannot_hold_are_whole_numbers_of_tokens(shares: tuple[float, float]) -> None:
    """0.07 · 100 is 7.000000000000001 and 0.29 · 100 is 28.999999999999996: both bounds are cuts, as documented."""
    tokens = np.full((2000, 100), FIRST, dtype=np.uint16)
    made = objective("prefix", 100, least_share=shares[0], most_share=shares[1])
    sizes = (draw(made, tokens)["inputs"] != PAD).sum(axis=1)
    assert (sizes.min(), sizes.max()) == (round(100 * shares[0]), round(100 * shares[1]))


def test_vocabulary_has_what_the_tests_rely_on() -> None:
    words = vocabulary()
    assert words.ordinary.tolist() == list(range(FIRST, LAST + 1)) and words.sentinels[0] == words.size - 1


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in PAIRED}))
def test_padding_must_not_be_the_end_of_a_text(kind: str) -> None:
    """Inputs and targets are told apart by their padding, so an end inside would vanish."""
    words = vocabulary()
    shared = replace(words, special_tokens={**words.special_tokens, "pad": EOS})
    with pytest.raises(BadConfig, match=f"objective '{kind}': the tokenizer has one token, {EOS}, for padding and"):
        OBJECTIVES.load(kind)(shared, SETTINGS.load(kind)(), 40)
