"""I.i.d. denoising, text infilling, MASS and salient spans: budgets, shares, and the text back from both sides."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import BadConfig
from tasks.objectives.infilling import poisson_thresholds
from tasks.objectives.salience import salient_spans
from tests.tasks.paired_rows import (
    BOS,
    EOS,
    FIRST,
    LAST,
    MASK,
    PAD,
    STOPS,
    V,
    assert_golden,
    draw,
    is_sentinel,
    objective,
    rows_for,
    text_of,
    vocabulary,
)


@pytest.mark.parametrize("name", ["iid_denoising", "infilling", "mass", "salient_spans"])
def test_worked_examples(name: str) -> None:
    assert_golden(name)


# ---------------------------------------------------------------- i.i.d. denoising


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(3, 50),
    density=st.sampled_from([0.05, 0.15, 0.5, 0.95]),
    apart=st.booleans(),
)
def test_iid_styles(seed: int, length: int, density: float, apart: bool) -> None:
    tokens = rows_for("iid-denoising", length, 7, seed, 0.1)
    drawn = {
        style: draw(
            objective("iid-denoising", length, style=style, noise_density=density, documents_apart=apart), tokens, seed
        )
        for style in ("bert", "mass", "replace-spans", "drop-tokens")
    }
    for at, row in enumerate(tokens):
        text = text_of(row)
        sides = {style: [text_of(found[side][at]) for side in ("inputs", "targets")] for style, found in drawn.items()}
        for inputs, targets in sides.values():
            assert inputs.pop() == EOS and targets.pop() == EOS
        masked, whole = sides["mass"]
        assert whole == text == sides["bert"][1]
        chosen = [before != after for before, after in zip(text, masked, strict=True)]
        assert all(after in (before, MASK) for before, after in zip(text, masked, strict=True))
        assert all(before >= FIRST for before, is_chosen in zip(text, chosen, strict=True) if is_chosen)
        # The same tokens are chosen whatever becomes of them.
        for before, after, is_chosen in zip(text, sides["bert"][0], chosen, strict=True):
            assert (after == MASK or FIRST <= after <= LAST) if is_chosen else after == before
        kept, dropped = sides["drop-tokens"]
        assert kept == [t for t, c in zip(text, chosen, strict=True) if not c]
        assert dropped == [t for t, c in zip(text, chosen, strict=True) if c]
        named, spelled = sides["replace-spans"]
        assert [t for t in named if is_sentinel(np.array(t))] == [t for t in spelled if is_sentinel(np.array(t))]
        if len(kept) + len(dropped) == len(text) and [t for t in spelled if not is_sentinel(np.array(t))] == dropped:
            assert [t for t in named if not is_sentinel(np.array(t))] == kept
        if apart:
            document = np.cumsum([0, *[t == EOS for t in text]])[: len(text)]
            for style in ("bert", "mass"):
                for side in ("input", "target"):
                    assert drawn[style][f"{side}_segments"][at, : len(text)].tolist() == document.tolist()
            of_dropped = drawn["drop-tokens"]["target_segments"][at, : len(dropped)].tolist()
            assert of_dropped == [d for d, c in zip(document.tolist(), chosen, strict=True) if c]


def test_iid_shares() -> None:
    tokens = np.random.default_rng(0).integers(FIRST, LAST + 1, (3000, 99))
    found = draw(objective("iid-denoising", 100, style="mass"), tokens)
    chosen = found["inputs"][:, :-1] == MASK
    # 297,000 draws: a standard deviation of 0.00066. A row's count varies as a binomial's: 99 · 0.15 · 0.85 = 12.6.
    assert abs(chosen.mean() - 0.15) < 0.003
    assert abs(chosen.sum(axis=1).var() - 12.6) < 1.5
    now = draw(objective("iid-denoising", 100), tokens)["inputs"][:, :-1][chosen]
    # 44,550 draws: a standard deviation of 0.0014.
    assert abs((now == MASK).mean() - 0.9) < 0.006
    assert set(np.unique(now)) == {MASK, *range(FIRST, LAST + 1)}


def test_replace_spans_always_fits() -> None:
    """Every other token chosen, both ends too: the one pattern whose targets would be one too long."""
    tokens = np.tile(np.array([11, 12, 13], dtype=np.uint16), (400, 1))
    found = draw(objective("iid-denoising", 4, style="replace-spans", noise_density=0.5), tokens)
    assert [V - 1, 12, 13, EOS] in found["inputs"].tolist() and (found["targets"][:, -1] != PAD).any()
    for inputs, targets in zip(found["inputs"], found["targets"], strict=True):
        assert EOS in inputs and EOS in targets
        assert sorted(t for t in [*text_of(inputs), *text_of(targets)] if FIRST <= t <= LAST) == [11, 12, 13]


def test_runs_without_a_sentinel_stay() -> None:
    tokens = np.random.default_rng(0).integers(FIRST, LAST + 1, (200, 40))
    words = vocabulary(sentinels=2)
    found = draw(objective("iid-denoising", 41, words, style="replace-spans", noise_density=0.4), tokens)
    assert (np.isin(found["inputs"], words.sentinels).sum(axis=1) <= 2).all()
    assert (is_sentinel(found["inputs"]) == np.isin(found["inputs"], words.sentinels)).all()
    for row, inputs, targets in zip(tokens, found["inputs"], found["targets"], strict=True):
        both = [t for t in [*text_of(inputs), *text_of(targets)] if FIRST <= t <= LAST]
        assert sorted(both) == sorted(row.tolist())


def test_runs_that_get_the_sentinels_are_anywhere_in_the_row() -> None:
    tokens = np.tile(np.arange(20, 60), (2000, 1))
    made = objective("iid-denoising", 41, vocabulary(sentinels=2), style="replace-spans", noise_density=0.4)
    found = draw(made, tokens)["targets"]
    hidden = np.array([(found == token).sum() for token in tokens[0]])
    # 3,350 tokens of either half, give or take 80: whole runs are named.
    assert hidden[:20].sum() == pytest.approx(hidden[20:].sum(), rel=0.1)


def test_the_mask_of_a_tokenizer_without_one() -> None:
    tokens = np.full((20, 30), 50)
    words = vocabulary(without=("mask",))
    found = draw(objective("iid-denoising", 31, words, style="mass", noise_density=0.5), tokens)
    assert set(np.unique(found["inputs"])) == {EOS, 50, words.sentinels[0]}
    with pytest.raises(BadConfig, match="needs a mask token or sentinels"):
        objective("iid-denoising", 31, vocabulary(sentinels=0, without=("mask",)))
    with pytest.raises(BadConfig, match="needs sentinels"):
        objective("iid-denoising", 31, vocabulary(sentinels=0), style="replace-spans")
    objective("iid-denoising", 31, vocabulary(sentinels=0, without=("mask",)), style="drop-tokens")


# ---------------------------------------------------------------- text infilling


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(4, 60),
    rate=st.sampled_from([0.05, 0.3, 0.6, 0.95]),
    mean=st.sampled_from([0.1, 1.0, 3.0, 10.0]),
    separators=st.sampled_from([0.0, 0.1]),
)
def test_infilling_covers_its_budget(seed: int, length: int, rate: float, mean: float, separators: float) -> None:
    tokens = rows_for("infilling", length, 7, seed, separators)
    made = objective("infilling", length, mask_rate=rate, poisson_lambda=mean, permute_sentences=False)
    found = draw(made, tokens, seed)
    np.testing.assert_array_equal(found["targets"], tokens)
    for row, inputs in zip(tokens, found["inputs"], strict=True):
        text, now = text_of(row), text_of(inputs)
        covered = math.ceil(rate * sum(t >= FIRST for t in text) - 1e-9)
        kept = [t for t in now if t != MASK]
        assert len(text) - len(kept) == covered
        assert [t for t in kept if t < FIRST] == [t for t in text if t < FIRST], "special tokens stay"
        rest = iter(text)
        assert all(token in rest for token in kept), "the kept tokens are in the text's order"
        assert now[0] == BOS and now[-1] == EOS and (MASK in now or not covered)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), length=st.integers(6, 70), apart=st.booleans())
def test_sentences_are_permuted_within_their_document(seed: int, length: int, apart: bool) -> None:
    rng = np.random.default_rng(seed)
    tokens = rows_for("infilling", length, 7, seed, 0.05)
    tokens[np.isin(tokens, STOPS)] = 50
    stops = (rng.random(tokens.shape) < 0.25) & (tokens >= FIRST)
    stops[:, 1:] &= ~stops[:, :-1] & (tokens[:, :-1] >= FIRST)  # no sentence of a stop alone
    tokens[stops] = STOPS[1]
    made = objective("infilling", length, documents_apart=apart)
    text = made._permuted(tokens, tokens >= FIRST, lambda n, stream: rng.integers(0, 1 << 32, (7, n), dtype=np.uint64))

    def documents(row: np.ndarray) -> list[list[tuple[int, ...]]]:
        """The sentences of each document; special tokens by themselves."""
        parts: list[list[tuple[int, ...]]] = [[]]
        for at, token in enumerate(text_of(row)):
            if token < FIRST:
                parts += [[(token,)], []]
            elif parts[-1] and not (row[at - 1] in STOPS and token not in STOPS):
                parts[-1][-1] += (token,)
            else:
                parts[-1].append((token,))
        return parts

    for before, after in zip(tokens, text, strict=True):
        for was, now in zip(documents(before), documents(after), strict=True):
            # A last sentence without a stop runs on into the next where it is moved: compare tokens and full sentences.
            assert sorted(t for s in was for t in s) == sorted(t for s in now for t in s)
            if was and was[-1][-1] in STOPS:
                assert sorted(was) == sorted(now)


def test_sentences_come_in_every_order_and_documents_do_not_mix() -> None:
    row = [BOS, 11, STOPS[1], 12, STOPS[0], 13, EOS, 14, STOPS[1], 15, STOPS[1], EOS]
    tokens = np.tile(np.array(row, dtype=np.uint16), (600, 1))
    found = draw(objective("infilling", 12, mask_rate=0.01, documents_apart=True), tokens)
    orders = {tuple(t for t in inputs if t in (11, 12, 13)) for inputs in found["inputs"].tolist()}
    assert {order for order in orders if len(order) == 3} == {
        (a, b, 36 - a - b) for a in (11, 12, 13) for b in (11, 12, 13) if a != b
    }
    assert {
        t
        for t in (11, 12, 13)
        for s, i in zip(found["input_segments"], found["inputs"], strict=True)
        for t in s[i == t]
    } == {0}
    np.testing.assert_array_equal(found["target_segments"], np.tile([0] * 7 + [1] * 5, (600, 1)))


def test_span_lengths_are_poisson() -> None:
    for mean in (0.5, 3.0, 20.0):
        chances = np.diff(poisson_thresholds(mean).astype(np.float64), prepend=0) / 2**32
        expected = [math.exp(-mean) * mean**k / math.factorial(k) for k in range(len(chances))]
        # 32-bit words hold a chance to 2⁻³².
        assert np.abs(chances - expected).max() < 1e-9 and sum(expected) > 1 - 1e-8
    tokens = np.tile(np.arange(40, 140, dtype=np.uint16), (1500, 1))
    tokens[:, 0], tokens[:, -1] = BOS, EOS
    found = draw(objective("infilling", 100, permute_sentences=False, mask_rate=0.3), tokens)
    # 30 of 98 tokens in spans of 3: about 10 spans and a half, and one of 20 is of length 0; the last one is cut.
    assert abs((found["inputs"] == MASK).sum(axis=1).mean() - 10.5) < 0.25
    # Away from the ends, which few spans can cover, all places are alike: 1500 · 30 / 96 = 469, and a little more for
    # what the ends lack; standard deviation below 18.
    hidden = np.array([[t not in row for t in range(51, 129)] for row in found["inputs"].tolist()]).sum(axis=0)
    assert np.abs(hidden - 469).max() < 80


def test_masks_that_are_put_in_are_anywhere_also_where_there_is_no_room_for_all() -> None:
    tokens = np.tile(np.arange(30, 130, dtype=np.uint16), (1500, 1))
    tokens[:, 0], tokens[:, -1] = BOS, EOS
    found = draw(objective("infilling", 100, permute_sentences=False, poisson_lambda=0.5), tokens)["inputs"]
    assert (found != PAD).all(), "short spans make no room for the many of length 0"
    # Each mask by the kept token before it; away from the ends about 450 for each, so 21,600 in either half.
    before = np.maximum.accumulate(np.where(found > MASK, found, 0), axis=1)[found == MASK]
    first, second = (np.count_nonzero((before >= low) & (before < low + 48)) for low in (32, 80))
    assert first == pytest.approx(second, rel=0.05), "seven standard deviations of each"


def test_infilling_needs_spellings_only_for_sentences() -> None:
    with pytest.raises(BadConfig, match="needs to know how tokens are spelled"):
        objective("infilling", 20, vocabulary(tokens=False))
    objective("infilling", 20, vocabulary(tokens=False), permute_sentences=False)


# ---------------------------------------------------------------- MASS


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(3, 60),
    rate=st.sampled_from([0.05, 0.5, 0.9]),
    separators=st.sampled_from([0.0, 0.1]),
    apart=st.booleans(),
)
def test_mass_masks_a_stretch(seed: int, length: int, rate: float, separators: float, apart: bool) -> None:
    tokens = rows_for("mass", length, 7, seed, separators)
    found = draw(objective("mass", length, mask_rate=rate, documents_apart=apart), tokens, seed)
    for at, row in enumerate(tokens):
        text = text_of(row)
        inputs, targets = text_of(found["inputs"][at]), text_of(found["targets"][at])
        places = found["target_positions"][at, : len(targets)]
        assert len(inputs) == len(text)
        wanted = max(1, round(rate * len(text)))
        assert len(targets) <= wanted
        if not apart:
            assert len(targets) == min(wanted, len(text) - 1)
            pieces = [(text, inputs, targets, places, 0)]
        else:
            ends = [0, *(i + 1 for i, t in enumerate(text) if t == EOS)]
            of = found["target_segments"][at, : len(targets)]
            pieces = [
                (text[a:b], inputs[a:b], [t for t, d in zip(targets, of, strict=True) if d == n], places[of == n], a)
                for n, (a, b) in enumerate(zip(ends, ends[1:], strict=False))
            ]
            assert sum(len(piece[2]) for piece in pieces) == len(targets)
            assert (
                found["input_segments"][at, : len(text)].tolist()
                == np.cumsum([0, *[t == EOS for t in text]])[:-1].tolist()
            )
        for was, now, stretch, where, _ in pieces:
            where = where.tolist()
            assert where == list(range(where[0], where[0] + len(where))) if where else not stretch
            assert [was[i] for i in where] == stretch
            assert not apart or EOS not in stretch, "no stretch crosses documents"
            for i, (before, after) in enumerate(zip(was, now, strict=True)):
                assert after == before or (i in where and before >= FIRST and (after == MASK or FIRST <= after <= LAST))


def test_mass_shares_and_starts() -> None:
    tokens = np.tile(np.array([*range(11, 60), EOS], dtype=np.uint16), (4000, 1))
    found = draw(objective("mass", 50), tokens)
    targets, now = found["targets"], np.take_along_axis(found["inputs"], found["target_positions"], axis=1)
    assert (targets != PAD).all() and targets.shape == (4000, 25)
    # 100,000 draws: a standard deviation of at most 0.0013.
    assert abs((now == MASK).mean() - 0.8) < 0.006
    assert abs((now == targets).mean() - 0.1) < 0.006
    starts, counts = np.unique(found["target_positions"][:, 0], return_counts=True)
    assert starts.tolist() == list(range(25))
    # 160 expected at each of 25 places, standard deviation 12.4.
    assert np.abs(counts - 160).max() < 5 * 12.4


# ---------------------------------------------------------------- salient spans


def spelled_rows(seed: int, length: int, rows: int) -> np.ndarray:
    """Rows with names, months and numbers in them."""
    tokens = rows_for("salient-spans", length, rows, seed, 0.05)
    rng = np.random.default_rng(seed + 1)
    chosen = (rng.random(tokens.shape) < 0.2) & (tokens >= FIRST)
    tokens[chosen] = rng.integers(20, 26, int(chosen.sum()))
    return tokens


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(4, 60),
    spans=st.sampled_from([1, 2, 7]),
    most=st.sampled_from([4, 8, 32]),
    apart=st.booleans(),
)
def test_salient_spans_are_masked_whole(seed: int, length: int, spans: int, most: int, apart: bool) -> None:
    tokens = spelled_rows(seed, length, 7)
    found = draw(
        objective("salient-spans", length, spans=spans, target_tokens=most, documents_apart=apart), tokens, seed
    )
    rows, starts, ends = salient_spans(tokens, vocabulary())
    for at, row in enumerate(tokens):
        text, inputs, targets = text_of(row), text_of(found["inputs"][at]), text_of(found["targets"][at])
        assert inputs.pop() == EOS and targets.pop() == EOS
        mine = [row[a:b].tolist() for r, a, b in zip(rows, starts, ends, strict=True) if r == at and b - a <= most - 2]
        cuts = np.flatnonzero(is_sentinel(np.array(targets, dtype=np.int64)))
        parts = [part.tolist()[1:] for part in np.split(np.array(targets), cuts)[1:]]
        assert sum(is_sentinel(np.array(t)) for t in inputs) == len(parts)
        if mine:
            assert 1 <= len(parts) <= spans and all(part in mine for part in parts)
            if spans == 1 or 1 + sum(len(part) + 1 for part in mine) <= most:
                assert len(parts) == min(spans, len(mine))
        else:
            assert len(parts) == (1 if any(t >= FIRST for t in text) else 0)
            assert all(1 <= len(part) <= 3 and min(part) >= FIRST for part in parts)
        back, spelled = [], iter(parts)
        for token in inputs:
            back += next(spelled) if is_sentinel(np.array(token)) else [token]
        assert back == text


def test_each_salient_span_is_as_likely() -> None:
    row = [30, 21, 22, 31, 23, 24, 32, 25, 33, 22, 34, 35]
    tokens = np.tile(np.array(row, dtype=np.uint16), (8000, 1))
    targets = draw(objective("salient-spans", 13), tokens)["targets"]
    _, counts = np.unique(targets, axis=0, return_counts=True)
    # Four spans, 2000 expected of each, standard deviation 39.
    assert len(counts) == 4 and np.abs(counts - 2000).max() < 5 * 39


def test_rows_without_a_salient_span_have_a_random_one() -> None:
    tokens = np.tile(np.arange(30, 41, dtype=np.uint16), (2200, 1))
    tokens[:, 7] = EOS
    found = draw(objective("salient-spans", 12), tokens)
    first, counts = np.unique(found["targets"][:, 1], return_counts=True)
    assert first.tolist() == [t for t in range(30, 41) if t != 37]
    # 220 expected from each of ten places, standard deviation 14.
    assert np.abs(counts - 220).max() < 5 * 14
    sizes: dict[int, Any] = {
        int(t): text_of(row) for t, row in zip(found["targets"][:, 1], found["targets"], strict=True)
    }
    assert sizes[30] == [V - 1, 30, 31, 32, EOS] and sizes[36] == [V - 1, 36, EOS] and sizes[40] == [V - 1, 40, EOS]


def test_salient_spans_need_spellings_and_sentinels() -> None:
    with pytest.raises(BadConfig, match="0 spellings"):
        objective("salient-spans", 20, vocabulary(tokens=False))
    with pytest.raises(BadConfig, match="spans 3 needs as many sentinels, the tokenizer has 2"):
        objective("salient-spans", 20, vocabulary(sentinels=2), spans=3)
