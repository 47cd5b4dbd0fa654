"""word2vec's windows and GloVe's counts against plain loops, and the statistics that they are drawn by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import BadConfig, BadData
from tasks.objectives.base import Vocabulary
from tasks.objectives.cooccurrence import Cooccurrence
from tasks.objectives.settings import ContinuousBagOfWords as CbowSettings
from tasks.objectives.settings import Cooccurrence as GloveSettings
from tasks.objectives.settings import SkipGram as SkipGramSettings
from tasks.objectives.word_windows import ContinuousBagOfWords, Noise, SkipGram

GOLDEN = Path(__file__).parent.parent / "golden"
PAD, EOS, UNK = range(3)
V = 40


def vocabulary(size: int = V, specials: int = 3, counts: np.ndarray | None = None) -> Vocabulary:
    special = np.arange(size) < specials
    if counts is None:
        counts = np.where(special, 999, 1000 // np.maximum(np.arange(size), 1))
    roles = {"pad": PAD, "eos": EOS} | ({"unk": UNK} if specials > 2 else {})
    return Vocabulary(size, roles, special, np.ones(size, dtype=bool), counts=counts)


def rows_of(seed: int, rows: int, length: int, documents: float = 0.1) -> np.ndarray:
    """Words with separators and unknown words at random places; rows of every length, padded."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, V, (rows, length)).astype(np.uint16)
    tokens[rng.random((rows, length)) < documents] = EOS
    tokens[rng.random((rows, length)) < 0.05] = UNK
    for row, end in enumerate(rng.integers(0, length + 1, rows)):
        tokens[row, end:] = PAD
    return tokens


def draw(made: SkipGram, tokens: np.ndarray, seed: int = 1, epoch: int = 0) -> dict[str, np.ndarray]:
    return made.draw(tokens, seed, np.full(len(tokens), epoch), np.arange(len(tokens)))


@pytest.mark.parametrize("name", ["skip_gram", "cbow"])
def test_worked_example_of_windows(name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    asked = {"window": golden["window_words"], "negatives": golden["negatives_each"], "subsample": golden["subsample"]}
    kind, told = (SkipGram, SkipGramSettings) if name == "skip_gram" else (ContinuousBagOfWords, CbowSettings)
    tokens = np.array([golden["tokens"]], dtype=np.uint16)
    made = kind(vocabulary(20, 2), told(**asked), tokens.shape[1])
    found = made.draw(tokens, golden["seed"], np.array([golden["epoch"]]), np.array([golden["index"]]))
    assert found["input_ids"][0].tolist() == golden["input_ids"]
    assert ["".join(".x"[int(x)] for x in row) for row in found["window"][0]] == golden["window"]
    assert found["negatives"][0].tolist() == golden["negatives"]


def test_worked_example_of_counts() -> None:
    golden = json.loads((GOLDEN / "glove.json").read_text())
    told, words = GloveSettings(window=golden["window_words"], x_max=golden["x_max"]), vocabulary(10, 2)
    tokens = np.array([golden["tokens"]], dtype=np.uint16)
    (rows,) = Cooccurrence.prepare([tokens], words, told, golden["length_tokens"])
    assert rows["counts"][0].tolist() == golden["counts"]
    made = Cooccurrence(words, told, golden["length_tokens"])
    found = made.draw(rows["tokens"], 0, np.array([0]), np.array([0]), rows)
    assert found["input_ids"][0].tolist() == golden["input_ids"]
    assert found["context_ids"][0].tolist() == golden["context_ids"]
    np.testing.assert_allclose(found["weights"][0], golden["weights"], rtol=1e-6)  # float32
    np.testing.assert_allclose(found["log_counts"][0], np.log(np.maximum(golden["counts"], 1)), rtol=1e-6)


# ---------------------------------------------------------------- word2vec


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    rows=st.integers(1, 6),
    length=st.integers(1, 60),
    window=st.integers(1, 8),
    negatives=st.integers(1, 6),
    subsample=st.sampled_from([0.0, 1e-4, 1e-2]),
)
def test_windows_against_a_plain_loop(
    seed: int, rows: int, length: int, window: int, negatives: int, subsample: float
) -> None:
    tokens = rows_of(seed % 1000, rows, length)
    made = SkipGram(vocabulary(), SkipGramSettings(window=window, negatives=negatives, subsample=subsample), length)
    found = draw(made, tokens, seed)
    assert found["window"].shape == (rows, length, 2 * window + 1)
    assert found["negatives"].shape == (rows, length, negatives)
    for row in range(rows):
        # The words that stayed are a subsequence of the row's words; each lies in one document.
        kept = found["input_ids"][row][found["attention_mask"][row]].tolist()
        assert found["input_ids"][row].tolist() == kept + [PAD] * (length - len(kept))
        ordinary = [(t, d) for t, d in zip(tokens[row].tolist(), _document(tokens[row]), strict=True) if t > UNK]
        if not subsample:
            assert kept == [t for t, _ in ordinary]
            document = [d for _, d in ordinary]
            for centre in range(len(kept)):
                marked = np.flatnonzero(found["window"][row, centre]) - window
                radius = abs(marked).max(initial=0)
                inside = [
                    o
                    for o in range(-radius, radius + 1)
                    if o and 0 <= centre + o < len(kept) and document[centre + o] == document[centre]
                ]
                assert marked.tolist() == inside
        else:
            left = iter(t for t, _ in ordinary)
            assert all(any(t == other for other in left) for t in kept)
    assert not found["window"][~found["attention_mask"]].any()
    assert (found["negatives"][found["attention_mask"]] > UNK).all(), "a special token was drawn"
    assert (found["negatives"][~found["attention_mask"]] == PAD).all()
    centres, offsets = np.nonzero(found["window"].reshape(-1, 2 * window + 1))
    assert found["attention_mask"].ravel()[centres + offsets - window].all()


def _document(row: np.ndarray) -> list[int]:
    return (np.cumsum(row == EOS) - (row == EOS)).tolist()


def test_windows_reach_over_dropped_and_special_tokens_but_not_over_separators() -> None:
    tokens = np.array([[3, UNK, 4, 20, EOS, 21, 22]])
    rare = np.where(np.arange(V) < 20, 10**9, 10)
    made = SkipGram(vocabulary(counts=rare), SkipGramSettings(window=1, subsample=1e-9), 7)
    found = draw(made, tokens)
    assert found["input_ids"][0].tolist() == [20, 21, 22, PAD, PAD, PAD, PAD]
    assert found["window"][0, :3].tolist() == [[False] * 3, [False, False, True], [True, False, False]]
    everything = SkipGram(vocabulary(counts=rare), SkipGramSettings(window=1, subsample=0), 7)
    kept = draw(everything, tokens)
    assert kept["input_ids"][0, :5].tolist() == [3, 4, 20, 21, 22]
    assert kept["window"][0, 0].tolist() == [False, False, True], "3 and 4 are neighbours"


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(8)), keep=st.integers(1, 8), seed=st.integers(0, 2**63 - 1))
def test_a_sample_is_the_same_in_any_batch(order: list[int], keep: int, seed: int) -> None:
    tokens = rows_of(3, 8, 40)
    made = SkipGram(vocabulary(), SkipGramSettings(subsample=0.02), 40)
    epochs, indices = np.arange(8) // 3, np.arange(8) * (1 << 33) + 5
    whole, chosen = made.draw(tokens, seed, epochs, indices), np.array(order[:keep])
    part = made.draw(tokens[chosen], seed, epochs[chosen], indices[chosen])
    for column in whole:
        np.testing.assert_array_equal(part[column], whole[column][chosen])


def test_epochs_and_seeds_draw_anew() -> None:
    tokens, made = rows_of(5, 20, 64), SkipGram(vocabulary(), SkipGramSettings(subsample=0.02), 64)
    first = draw(made, tokens)
    for column in ("input_ids", "window", "negatives"):
        assert not np.array_equal(first[column], draw(made, tokens, epoch=1)[column])
        assert not np.array_equal(first[column], draw(made, tokens, seed=2)[column])
        np.testing.assert_array_equal(first[column], draw(made, tokens)[column])


def test_shares_of_kept_words_radii_and_noise() -> None:
    """Against √(t / f), 1 … window in equal parts, and frequency^0.75."""
    words = vocabulary()
    frequency = np.where(words.special, 0, words.counts) / words.counts[3:].sum()
    tokens = np.random.default_rng(0).integers(3, V, (4000, 64)).astype(np.uint16)
    told = SkipGramSettings(window=4, negatives=3, subsample=0.01)
    found = draw(SkipGram(words, told, 64), tokens)
    kept = np.bincount(found["input_ids"].ravel(), minlength=V) / np.bincount(tokens.ravel(), minlength=V).clip(1)
    expected = np.minimum(1, np.sqrt(0.01 / frequency[3:]))
    # About 6,900 of each word: a standard deviation of at most 0.006, so 0.03 is five of them.
    assert abs(kept[3:] - expected).max() < 0.03
    assert expected.min() < 0.3 and expected.max() == 1

    # Radii of centres with four neighbours on either side; 100,000 of them, deviation 0.0014.
    reach = found["window"].sum(2)[:, 4:20]
    assert (found["attention_mask"][:, 24]).all()
    radius = np.bincount(reach.ravel() // 2, minlength=5) / reach.size
    assert radius[0] == 0 and abs(radius[1:] - 0.25).max() < 0.01

    noise = found["negatives"][found["attention_mask"]]
    share = np.bincount(noise.ravel(), minlength=V) / noise.size
    power = np.where(words.special, 0, words.counts) ** 0.75
    # About 500,000 draws: a deviation of at most 0.0005.
    assert abs(share - power / power.sum()).max() < 0.0025


@settings(max_examples=50, deadline=None)
@given(weights=st.lists(st.floats(0, 1e9), min_size=1, max_size=40).filter(any))
def test_noise_is_drawn_by_its_weights_exactly(weights: list[float]) -> None:
    """The columns' shares add up to the distribution, whatever it is."""
    given_ = np.array(weights)
    noise = Noise.of(given_)
    share = np.zeros(len(given_))
    own = noise.threshold / 2.0**32
    np.add.at(share, noise.ids[1], own)
    np.add.at(share, noise.ids[0], 1 - own)
    # Thresholds are rounded to 2^-32 in each of at most 40 columns.
    np.testing.assert_allclose(share / share.sum(), given_ / given_.sum(), atol=1e-8)
    ends = np.array([0, 2**32 - 1], dtype=np.uint64)
    assert (given_[noise.draw(ends)] > 0).all()


def test_counts_that_are_missing_are_named() -> None:
    tokens, words = rows_of(0, 2, 8), vocabulary()
    without = Vocabulary(V, words.special_tokens, words.special, words.starts_word)
    with pytest.raises(BadConfig, match="'cbow' needs the tokens' counts"):
        draw(ContinuousBagOfWords(without, CbowSettings(), 8), tokens)
    with pytest.raises(BadData, match="no ordinary token"):
        draw(SkipGram(vocabulary(counts=np.zeros(V, dtype=np.int64)), SkipGramSettings(), 8), tokens)


# ---------------------------------------------------------------- GloVe


def counted(tokens: np.ndarray, window: int) -> dict[tuple[int, int], float]:
    """X of a stream of tokens, by its definition."""
    found: dict[tuple[int, int], float] = {}
    document: list[int] = []
    for token in [*tokens.tolist(), EOS]:
        if token in (EOS, PAD):
            for i, a in enumerate(document):
                for j, b in enumerate(document):
                    if i != j and abs(i - j) <= window:
                        found[a, b] = found.get((a, b), 0) + 1 / abs(i - j)
            document = []
        elif token > UNK:
            document.append(token)
    return found


def prepared(rows: list[np.ndarray], window: int, length: int) -> tuple[dict[tuple[int, int], float], list[Any]]:
    batches = list(Cooccurrence.prepare(iter(rows), vocabulary(), GloveSettings(window=window), length))
    found: dict[tuple[int, int], float] = {}
    for batch in batches:
        assert all(column.shape[1] == length for column in batch.values())
        for i, j, x in zip(*(batch[c].ravel().tolist() for c in ("tokens", "contexts", "counts")), strict=True):
            if x:
                assert (i, j) not in found, "a pair was given twice"
                found[i, j] = x
            else:
                assert (i, j) == (PAD, PAD)
    return found, batches


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 8),
    length=st.integers(1, 30),
    window=st.integers(1, 12),
    pieces=st.integers(1, 4),
    row=st.integers(1, 9),
)
def test_counts_against_their_definition(seed: int, rows: int, length: int, window: int, pieces: int, row: int) -> None:
    """Documents go on from row to row, and where the rows are cut into batches plays no part."""
    tokens = rows_of(seed, rows, length, documents=0.03)
    found, batches = prepared(np.array_split(tokens, pieces), window, row)
    expected = counted(tokens.ravel(), window)
    assert found.keys() == expected.keys()
    # Fixed point is good to 2^-33 per pair, float32 to 2^-24 of the sum.
    np.testing.assert_allclose([found[pair] for pair in expected], list(expected.values()), rtol=1e-6)
    _, whole = prepared([tokens], window, row)
    assert len(batches) == len(whole)
    for a, b in zip(batches, whole, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_pieces_that_are_counted_apart_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.objectives.cooccurrence as module

    tokens = rows_of(1, 60, 50, documents=0.01)
    whole, _ = prepared([tokens], 5, 16)
    monkeypatch.setattr(module, "_PIECE", 7)
    monkeypatch.setattr(module, "_ROWS", 3)
    parts, batches = prepared([tokens], 5, 16)
    assert parts == whole
    assert len(batches) > 2 and all(len(b["counts"]) == 3 for b in batches[:-1])
    first = batches[0]["tokens"].ravel()
    assert not np.array_equal(first, np.sort(first)), "rows of pairs are shuffled"


def test_weights_and_padding() -> None:
    made = Cooccurrence(vocabulary(), GloveSettings(), 4)
    facts = {"contexts": np.array([[4, 5, 6, PAD]]), "counts": np.array([[100.0, 400.0, 1.0, 0.0]])}
    found = made.draw(np.array([[3, 3, 3, PAD]]), 0, np.array([0]), np.array([0]), facts)
    np.testing.assert_allclose(found["weights"], [[1, 1, 0.01**0.75, 0]], rtol=1e-6)  # float32
    np.testing.assert_allclose(found["log_counts"], [[np.log(100), np.log(400), 0, 0]], rtol=1e-6)
    assert found["attention_mask"].tolist() == [[True, True, True, False]]
    assert found["weights"].dtype == found["log_counts"].dtype == np.float32
    with pytest.raises(ValueError, match="Cooccurrence.prepare"):
        draw(made, np.array([[3, 4]]))  # type: ignore[arg-type]


def test_a_text_without_pairs_gives_no_rows() -> None:
    assert prepared([], 3, 4) == ({}, [])
    assert prepared([np.array([[5, EOS, 6, PAD]], dtype=np.uint16)], 3, 4) == ({}, [])
