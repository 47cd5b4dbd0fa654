"""Sentence pairs: where B comes from, what truncation takes, and that nothing depends on anything else."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.objectives import nsp, sop
from tasks.objectives.pairs import Choices
from tests.tasks.objective_rows import CLS, GOLDEN, PAD, SEP

SPECIAL = {"pad": PAD, "cls": CLS, "sep": SEP}
Sentences = list[list[np.ndarray]]
BUILDERS = pytest.mark.parametrize("pair_rows", [nsp.pair_rows, sop.pair_rows], ids=["nsp", "sop"])


def make(pair_rows: Any, documents: Sentences, length: int = 32, **other: Any) -> tuple[np.ndarray, ...]:
    arguments = {"seed": 3, "copy": 0, "first_document": 0, "short_share": 0.0, "dtype": np.uint32} | other
    return pair_rows(documents, length, SPECIAL, **arguments)


def corpus(seed: int, count: int, sentences: int = 12, longest: int = 14) -> Sentences:
    """Documents in which no token occurs twice, counting up from 10: a token tells its document and place."""
    rng = np.random.default_rng(seed)
    made, first = [], 10
    for _ in range(count):
        sizes = rng.integers(1, longest + 1, rng.integers(1, sentences + 1))
        ends = first + np.cumsum(sizes)
        made.append([np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)])
        first = int(ends[-1])
    return made


def segments(tokens: np.ndarray, boundary: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """A and B of each row, after checking the row's form."""
    found = []
    for row, edge in zip(tokens.tolist(), boundary.tolist(), strict=True):
        end = len(row) - row[::-1].index(SEP)
        assert row[0] == CLS and row[edge - 1] == SEP and row[end - 1] == SEP and set(row[end:]) <= {PAD}
        a, b = row[1 : edge - 1], row[edge : end - 1]
        assert a and b and min(a + b) >= 10
        found.append((a, b))
    return found


@pytest.mark.parametrize("name", ["nsp", "sop"])
def test_worked_examples(name: str) -> None:
    module = importlib.import_module(f"tasks.objectives.{name}")
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    expected = [golden.pop(key) for key in ("tokens", "boundary", "pair_label")]
    golden["documents"] = [[np.array(sentence) for sentence in document] for document in golden["documents"]]
    found = module.pair_rows(**golden, dtype=np.uint16)
    assert [array.tolist() for array in found] == expected
    assert [array.dtype for array in found] == [np.uint16, np.int32, np.int8]
    shown = [" ".join(line.split()) for line in (module.__doc__ or "").splitlines()]
    assert f"seed {golden['seed']}, copy 0" in " ".join(shown)
    for row, edge, label in zip(*expected, strict=True):
        assert f"{' '.join(map(str, row))} boundary {edge} label {label}" in shown


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    count=st.integers(1, 8),
    length=st.integers(5, 60),
    short_share=st.sampled_from([0.0, 0.1, 1.0]),
    longest=st.sampled_from([1, 14, 100]),
    order=st.booleans(),
)
def test_rows_and_segments(seed: int, count: int, length: int, short_share: float, longest: int, order: bool) -> None:
    documents = corpus(seed % 997, count, longest=longest)
    of_token = {int(t): d for d, document in enumerate(documents) for s in document for t in s}
    builder = sop.pair_rows if order else nsp.pair_rows
    tokens, boundary, labels = make(builder, documents, length, seed=seed, short_share=short_share)
    assert tokens.shape[1] == length and set(labels.tolist()) <= {0, 1}
    for (a, b), label in zip(segments(tokens, boundary), labels.tolist(), strict=True):
        for segment in (a, b):  # a stretch of one document
            assert segment == list(range(segment[0], segment[-1] + 1))
            assert of_token[segment[0]] == of_token[segment[-1]]
        first, second = (b, a) if order and label else (a, b)
        full = len(a) + len(b) == length - 3  # perhaps truncated, and then not next to each other
        if order or not label:
            assert of_token[a[0]] == of_token[b[0]] and first[-1] < second[0]
            assert full or first[-1] + 1 == second[0]
    usable = documents if not order else [d for d in documents if len(d) > 1 or len(d[0]) > 1]
    assert len(tokens) >= len(usable)


def test_random_segments_and_what_goes_back() -> None:
    """Sentences of one token fill a row exactly, so that nothing is truncated and every token can be followed."""
    documents = corpus(1, 300, sentences=60, longest=1)
    of_token = {int(t): d for d, document in enumerate(documents) for s in document for t in s}
    tokens, boundary, labels = make(nsp.pair_rows, documents, 23)
    pairs = segments(tokens, boundary)
    random = [of_token[a[0]] != of_token[b[0]] for a, b in pairs]
    np.testing.assert_array_equal(random, labels == 1)
    # Half of the pairs, and all of one sentence: here the last of about half of the documents.
    assert 0.5 < labels.mean() < 0.75
    following = 10
    for (a, b), is_random in zip(pairs, random, strict=True):
        assert a[0] == following, "a sentence was lost or used again"
        following = (a if is_random else b)[-1] + 1
        if is_random:  # sentences until the length is reached, or to the document's end
            assert len(a) + len(b) == 20 or b[-1] == int(documents[of_token[b[0]]][-1][-1])
    assert following == 10 + len(of_token)
    # Any other document, and any sentence of it.
    places = np.array([b[0] for (_, b), is_random in zip(pairs, random, strict=True) if is_random])
    quarters = np.histogram(places, 4, (10, following))[0]
    assert abs(quarters - quarters.mean()).max() < 5 * quarters.mean() ** 0.5
    # The number of sentences that are A's: uniform in 1 … 19 where twenty were gathered.
    sizes = np.bincount([len(a) for a, b in pairs if len(a) + len(b) == 20], minlength=20)
    assert sizes[1:20].min() > 0 and not sizes[0]


def test_single_sentences_are_random_and_a_lone_document_is_paired_with_itself() -> None:
    single = [[np.arange(10 * d, 10 * d + 5)] for d in range(1, 30)]
    _, _, labels = make(nsp.pair_rows, single)
    assert len(labels) == 29 and labels.all()
    tokens, boundary, labels = make(nsp.pair_rows, single[:1])
    assert segments(tokens, boundary) == [(list(range(10, 15)),) * 2] and labels.tolist() == [1]


def test_sop_cuts_a_lone_sentence_and_swaps_half() -> None:
    documents: Sentences = [[np.arange(10, 16)] for _ in range(2000)]
    tokens, boundary, labels = make(sop.pair_rows, documents)
    cuts = Counter()
    for (a, b), label in zip(segments(tokens, boundary), labels, strict=True):
        first, second = (b, a) if label else (a, b)
        assert first + second == list(range(10, 16))
        cuts[len(first)] += 1
    # 2,000 draws: a standard deviation of 0.011 for the share, 18 for the count of each of five cuts.
    assert abs(labels.mean() - 0.5) < 0.045
    assert set(cuts) == {1, 2, 3, 4, 5} and all(abs(n - 400) < 5 * 18 for n in cuts.values())
    assert not len(make(sop.pair_rows, [[np.array([10])]])[0])


@BUILDERS
def test_short_rows(pair_rows: Any) -> None:
    """Sentences of one token, so that a row has exactly its target length: uniform in [2, max − 3]."""
    documents = [[np.array([t]) for t in range(10, 4010)] for _ in range(2)]
    tokens, _, labels = make(pair_rows, documents, 23, short_share=1.0)
    sizes = Counter(((tokens != PAD).sum(1) - 3).tolist())
    assert set(sizes) == set(range(2, 21))
    expected = len(tokens) / 19  # the last row of each document is cut short by its end
    assert all(abs(n - expected) < 5 * expected**0.5 + 2 for n in sizes.values())
    full, _, _ = make(pair_rows, documents, 23)
    assert ((full != PAD).sum(1) == 23).mean() > 0.95
    some, _, _ = make(pair_rows, documents, 23, short_share=0.1)
    short = ((some != PAD).sum(1) < 23).mean()
    # 0.1 · 18/19 of some 700 rows: a standard deviation of 0.011.
    assert abs(short - 0.095) < 0.05


@settings(max_examples=100, deadline=None)
@given(len_a=st.integers(1, 200), len_b=st.integers(1, 200), most=st.integers(2, 150))
def test_truncation_takes_from_the_longer_side(len_a: int, len_b: int, most: int) -> None:
    choices = Choices(0, 0, 0, [])
    choices._words = [0x55555555] * 64  # every other flip is heads
    a, b = choices.truncated((1000, 1000 + len_a), (5000, 5000 + len_b), most)
    x, y = len_a, len_b
    while x + y > most:  # as the authors' code has it
        if x > y:
            x -= 1
        else:
            y -= 1
    assert (a[1] - a[0], b[1] - b[0]) == (x, y)
    assert a[0] >= 1000 and a[1] <= 1000 + len_a and b[0] >= 5000 and b[1] <= 5000 + len_b


def test_truncation_takes_from_both_ends() -> None:
    documents = [[np.arange(10, 30), np.arange(30, 110)] for _ in range(400)]
    tokens, boundary, labels = make(sop.pair_rows, documents, 64)
    front = [min(a if label else b) - 30 for (a, b), label in zip(segments(tokens, boundary), labels, strict=True)]
    lost = 80 + 20 - 61
    # A fair coin for each of 39 tokens: a mean of 19.5, a standard deviation of 3.1, of 400 means 0.16.
    assert abs(np.mean(front) - lost / 2) < 0.65 and 2.6 < np.std(front) < 3.6


def test_coin_flips() -> None:
    choices = Choices(5, 0, 7, [])
    choices._words = np.random.default_rng(0).integers(0, 1 << 32, 64).tolist()
    found = [choices.heads(flips) for flips in [1] * 2000 + [33] * 2000]
    assert set(found[:2000]) == {0, 1} and abs(np.mean(found[:2000]) - 0.5) < 0.05
    # 33 coins: a mean of 16.5 with a deviation of 2.9, of 2,000 means 0.064.
    assert abs(np.mean(found[2000:]) - 16.5) < 0.3 and choices.heads(0) == 0


@BUILDERS
def test_choices_are_functions_of_the_sample(pair_rows: Any) -> None:
    documents = corpus(4, 40)
    first = make(pair_rows, documents)
    for again in (make(pair_rows, documents), make(pair_rows, [[s.astype(np.uint16) for s in d] for d in documents])):
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)
    for other in ({"seed": 4}, {"copy": 1}, {"first_document": 1}):
        assert not np.array_equal(first[0][:20], make(pair_rows, documents, **other)[0][:20])
    # Empty sentences and documents say nothing; a document keeps its number.
    empty = np.empty(0, dtype=np.int64)
    padded: Sentences = [[empty], *([empty, *document, empty] for document in documents), []]
    for one, other in zip(first, make(pair_rows, padded, first_document=-1), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [array.shape for array in make(pair_rows, [[], [empty]])] == [(0, 32), (0,), (0,)]


def test_sop_is_the_same_in_any_slice() -> None:
    documents = corpus(4, 40)
    whole = make(sop.pair_rows, documents, short_share=0.3)
    parts = [make(sop.pair_rows, documents[i : i + 7], first_document=i, short_share=0.3) for i in range(0, 40, 7)]
    for column, expected in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[column] for part in parts]), expected)
