"""Words as hashes, shingles, and what signatures estimate: against plain Python, and against the theory's bounds."""

from __future__ import annotations

import re
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.cleaning import words as words_module
from tasks.cleaning.minhash import Banding, buckets, choose_banding, signatures, similarity
from tasks.cleaning.words import Words, grams, placed_words, word_hashes

TEXTS = st.lists(st.text(alphabet="abcAB ,.'-\n\u00a0éÉ–日本\u200dไ1", max_size=40), max_size=8)


def plain_words(text: str) -> list[str]:
    """The same words by regular expressions, of the characters that tests draw."""
    spaced = re.sub("([日本ไ])", r" \1 ", re.sub("–", " ", text.lower()))
    return re.sub(f"[{re.escape(string.punctuation)}\u200d]", "", spaced).split()


def of(texts: list[str], n: int) -> np.ndarray:
    return word_hashes(texts).hashes[word_hashes(texts).offsets[n] : word_hashes(texts).offsets[n + 1]]


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_words_are_those_of_plain_python(texts: list[str]) -> None:
    found = word_hashes(texts)
    plain = [plain_words(text) for text in texts]
    assert np.diff(found.offsets).tolist() == [len(each) for each in plain]
    # equal words have equal hashes, different ones different ones
    flat = [word for each in plain for word in each]
    assert len(set(zip(flat, found.hashes.tolist(), strict=True))) == len(set(flat)) == len(set(found.hashes.tolist()))
    for number, text in enumerate(texts):
        assert of(texts, number).tolist() == word_hashes([text]).hashes.tolist()


@given(st.text(alphabet="abcAB ,.'-\n\u00a0éÉ–日本\u200dไ1", max_size=60))
@settings(max_examples=200, deadline=None)
def test_places_of_words(text: str) -> None:
    placed = placed_words(text)
    assert placed.hashes.tolist() == word_hashes([text]).hashes.tolist()
    shown = [text[start:end] for start, end in zip(placed.starts.tolist(), placed.ends.tolist(), strict=True)]
    assert [plain_words(each) for each in shown] == [[word] for word in plain_words(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't  STOP--now!", ["don't", "stop--now"]),
        ("ΑΒΓ Straße İx", ["αβγ", "straße", "İx"]),
        ("a\u200bb\tc\x00d", ["a", "b", "c", "d"]),
        ("日本語です word", ["日", "本", "語", "で", "す", "word"]),
        ("... -- ™ !", []),
        ("", []),
    ],
)
def test_words_of_examples(text: str, words: list[str]) -> None:
    assert word_hashes([text]).hashes.tolist() == word_hashes(words).hashes.tolist()
    assert len(word_hashes([text]).hashes) == len(words)


def test_long_texts_are_cut_where_words_end_and_without_regard_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["x", "ab cde " * 60, "日本" * 120, "y" * 300 + " z", "é" + " ab" * 100]
    whole = word_hashes(texts)
    monkeypatch.setattr(words_module, "GROUP", 32)
    monkeypatch.setattr(words_module, "PIECE", 64)
    cut = word_hashes(texts)
    assert np.diff(cut.offsets).tolist() == [1, 120, 240, 300 // 64 + 1 + 1, 101]
    for number in (0, 1, 2, 4):
        same = slice(*whole.offsets[number : number + 2]), slice(*cut.offsets[number : number + 2])
        assert whole.hashes[same[0]].tolist() == cut.hashes[same[1]].tolist()
    for number, text in enumerate(texts):
        assert of(texts, number).tolist() == word_hashes([text]).hashes.tolist() == placed_words(text).hashes.tolist()


@given(TEXTS, st.integers(1, 6), st.booleans())
@settings(max_examples=100, deadline=None)
def test_grams(texts: list[str], n: int, short: bool) -> None:
    found = grams(word_hashes(texts), n, short=short)
    plain = []
    for text in texts:
        words = plain_words(text)
        plain.append([tuple(words[i : i + n]) for i in range(len(words) - n + 1)])
        if short and 0 < len(words) < n:
            plain[-1] = [tuple(words)]
    assert np.diff(found.offsets).tolist() == [len(each) for each in plain]
    flat = [gram for each in plain for gram in each]
    assert len(set(zip(flat, found.hashes.tolist(), strict=True))) == len(set(flat)) == len(set(found.hashes.tolist()))


# ---------------------------------------------------------------- signatures


def pairs(draw: np.random.Generator, count: int, size: int, shared: int) -> tuple[Words, float]:
    """`count` pairs of sets of `size` hashes of which `shared` are in both; and their Jaccard similarity."""
    union = draw.integers(0, 2**64, (count, 2 * size - shared), dtype=np.uint64)
    flat = np.concatenate([union[:, :size], union[:, size - shared :]], axis=1).reshape(-1)
    return Words(flat, np.arange(2 * count + 1) * size), shared / (2 * size - shared)


@pytest.mark.parametrize(("size", "shared"), [(1, 0), (2, 1), (6, 5), (40, 30), (400, 300), (3000, 2700)])
def test_estimates_have_the_mean_of_the_theory_and_no_more_variance(size: int, shared: int) -> None:
    count, values = 500, 128
    sets, jaccard = pairs(np.random.default_rng(0), count, size, shared)
    signed = signatures(sets, values)
    found = similarity(signed[::2], signed[1::2])
    # K independent permutations: variance J(1 - J)/K. Bounds: five standard errors, of both.
    variance = jaccard * (1 - jaccard) / values
    chance = 4 * 2.0**-16  # that 16 bits agree by accident
    assert abs(found.mean() - jaccard) <= 5 * (variance / count) ** 0.5 + chance
    assert found.var() <= variance * (1 + 5 * (2 / count) ** 0.5) + chance


def test_a_signature_is_of_the_set_alone() -> None:
    draw = np.random.default_rng(1)
    one, two = draw.integers(0, 2**64, (2, 50), dtype=np.uint64)
    shuffled = draw.permutation(np.concatenate([one, one[:20]]))
    sets = [one, shuffled, two, np.empty(0, np.uint64)]
    together = signatures(Words(np.concatenate(sets), np.cumsum([0, *map(len, sets)])), 64)
    assert (together[0] == together[1]).all() and (together[3] == 0xFFFF).all()
    assert (together[0] != together[2]).sum() > 60
    for number, each in enumerate(sets):
        assert (signatures(Words(each, np.array([0, len(each)])), 64)[0] == together[number]).all()


def test_bands_find_pairs_as_often_as_the_formula_says() -> None:
    banding, count = Banding(17, 7), 2000
    for shared in (260, 240, 200):
        sets, jaccard = pairs(np.random.default_rng(shared), count, 280, shared)
        signed = buckets(signatures(sets, 128), banding)
        found = (signed[::2] == signed[1::2]).any(axis=1).mean()
        expected = banding.found(jaccard)
        assert abs(found - expected) <= 5 * (expected * (1 - expected) / count) ** 0.5 + 0.01


def test_choice_of_bands() -> None:
    assert choose_banding(128, 0.8, 0.98) == Banding(17, 7)
    for values, threshold in ((128, 0.8), (128, 0.5), (256, 0.9), (64, 0.7), (16, 0.8), (128, 1.0)):
        for weight in (0.5, 0.9, 0.98):
            chosen = choose_banding(values, threshold, weight)
            assert chosen.bands * chosen.rows <= values
        assert choose_banding(values, threshold, 0.98).found(threshold) > 0.9
        assert choose_banding(values, threshold, 0.98).found(threshold) >= chosen.found(threshold) - 1e-9
    assert Banding(2, 1).found(0.5) == 0.75
