"""The n-gram baseline: Kneser-Ney by hand, against the plain definition, and on examples of several objectives."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import BadConfig
from tasks.example_reader import ExampleReader, spread
from tasks.examples import MakeExamples
from tasks.held_out import held_out
from tasks.ingest import Ingest
from tasks.kneser_ney import NGramModel
from tasks.ngram import NGramBaseline, first_rows
from tasks.tokenizer import TrainTokenizer
from tests.tasks.stage import run_stage

PAD, CLS, SEP = 0, 1, 2
V = 7
SPECIAL = np.arange(V) < 3
CORPUS = Ingest(source="corpus.jsonl")


def test_by_hand() -> None:
    """[CLS] a b a b [SEP], words a, b, c = 3, 4, 5 and order 2.

    Bigrams (| is the boundary): |a 1, ab 2, ba 1; D_2 = 2 / (2 + 2 · 1) = 1/2. Left contexts: a has 2, b has 1;
    D_1 = 1 / (1 + 2 · 1) = 1/3, so p(a) = 5/3 / 3 + 2/9 / 3 = 17/27, p(b) = 8/27, p(c) = 2/27.
    """
    model = NGramModel(np.array([[CLS, 3, 4, 3, 4, SEP]]), np.arange(6) < 3, 2)
    unigrams, bigrams = model.probabilities(np.array([[CLS, 3, 4, 3, 5, PAD]]))
    # 1e-12: a handful of float64 operations on numbers near 1
    np.testing.assert_allclose(unigrams, [17 / 27, 8 / 27, 17 / 27, 2 / 27], rtol=1e-12)
    after_boundary, after_b = 1 / 2 + 1 / 2 * 17 / 27, 1 / 2 + 1 / 2 * 17 / 27
    np.testing.assert_allclose(bigrams, [after_boundary, 3 / 4 + 1 / 4 * 8 / 27, after_b, 1 / 4 * 2 / 27], rtol=1e-12)
    occurrences = NGramModel(np.array([[CLS, 3, 4, 3, 4, SEP]]), np.arange(6) < 3, 1)
    # no word stands once: D = 1/2
    np.testing.assert_allclose(occurrences.next([]), [0, 0, 0, 1.5 / 4 + 1 / 12, 1.5 / 4 + 1 / 12, 1 / 12], rtol=1e-12)


def plain(rows: list[list[int]], order: int, context: tuple[int, ...], word: int) -> float:
    """Interpolated Kneser-Ney by its definition, with dictionaries; the boundary is -1."""
    grams: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
    for row in rows:
        for at, token in enumerate(row):
            if SPECIAL[token]:
                continue
            left: list[int] = []
            for place in range(at - 1, at - order, -1):
                ended = place < 0 or SPECIAL[row[place]] or (left and left[-1] == -1)
                left.append(-1 if ended else row[place])
            for k in range(1, order + 1):
                grams[k][(*reversed(left[: k - 1]), token)] += 1
    p = 1 / int((~SPECIAL).sum())
    for k in range(1, order + 1):
        counts: dict[tuple[int, ...], int] = dict(grams[k])
        if k < order:
            before = Counter(longer[1:] for longer in grams[k + 1])
            counts = {g: n if g[0] == -1 else before[g] for g, n in counts.items()}
        once, twice = (sum(n == wanted for n in counts.values()) for wanted in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.5
        after: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for gram, n in counts.items():
            after[gram[:-1]].append(n)
        h = context[len(context) - k + 1 :] if k > 1 else ()
        if h in after:
            mass = sum(after[h])
            p = max(counts.get((*h, word), 0) - discount, 0) / mass + discount * len(after[h]) / mass * p
    return p


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, V - 1), min_size=8, max_size=8), min_size=1, max_size=8),
    order=st.integers(1, 4),
    left=st.lists(st.integers(0, V - 1), max_size=4),
)
def test_against_the_definition_and_sums_to_one(rows: list[list[int]], order: int, left: list[int]) -> None:
    model = NGramModel(np.array(rows), SPECIAL, order)
    found = model.next(left)
    context = [-1] * order + left
    for place in range(len(context)):
        if context[place] >= 0 and SPECIAL[context[place]]:
            context[: place + 1] = [-1] * (place + 1)
    expected = [0 if SPECIAL[w] else plain(rows, order, tuple(context), w) for w in range(V)]
    # sums of a few float64 numbers near 1, in another order
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert found.sum() == pytest.approx(1, abs=1e-12)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Text in which the word before says much about the next one."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = random.Random(0)
    words = ["model", "token", "layer", "weight", "river", "mountain", "of", "the", "and", "language"]
    follow = {w: rng.sample(words, 3) for w in words}
    texts = []
    for _ in range(300):
        text = [rng.choice(words)]
        for _ in range(rng.randint(10, 80)):
            text.append(rng.choice(follow[text[-1]]))
        texts.append(" ".join(text) + ".")
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    made = {"corpus": run_stage(Ingest(source=str(folder / "corpus.jsonl"), validation_share=0.2), folder / "c").out}
    for kind in ("wordpiece", "gpt2", "unigram"):
        task = TrainTokenizer(corpus=CORPUS, kind=kind, vocab_size=300, sentinels=20)
        made[kind] = run_stage(task, folder / kind, corpus=made["corpus"]).out
    return made


def baseline(inputs: dict[str, Path], out: Path, kind: str = "wordpiece", **fields: Any) -> tuple[dict[str, Any], Path]:
    """(baseline.json, the examples' folder)"""
    own = {name: fields.pop(name) for name in ("order", "max_tokens", "validation_sequences") if name in fields}
    tokenizer = TrainTokenizer(corpus=CORPUS, kind=kind)
    task = MakeExamples(corpus=CORPUS, tokenizer=tokenizer, length_tokens=32, **fields)
    examples = run_stage(task, out / "examples", corpus=inputs["corpus"], tokenizer=inputs[kind]).out
    context = run_stage(NGramBaseline(examples=task, **own), out / "baseline", examples=examples)
    facts = json.loads((context.out / "baseline.json").read_text())
    assert context.metrics == {k: facts[k] for k in context.metrics}
    assert {"unigram_nats", "ngram_nats", "tokens", "positions"} - {*context.metrics} == {
        name for name in facts if facts[name] is None
    }
    return facts, examples


@pytest.mark.parametrize(
    ("objective", "kind", "measured_at"),
    [
        ("mlm", "wordpiece", "labels"),
        ({"kind": "mlm", "unit": "word"}, "wordpiece", "labels"),
        ({"kind": "mlm", "pairs": "sop"}, "wordpiece", "labels"),
        ("rtd", "wordpiece", "labels"),
        ("permutation", "wordpiece", "labels"),
        ("causal", "gpt2", "labels"),
        ({"kind": "causal", "documents_apart": False}, "gpt2", "labels"),
        ("bidirectional", "wordpiece", "labels"),
        ("span-corruption", "unigram", "all ordinary tokens"),
        ("prefix", "unigram", "all ordinary tokens"),
        ("skip-gram", "wordpiece", "all ordinary tokens"),
    ],
)
def test_on_the_positions_that_are_labelled(
    inputs: dict[str, Path], tmp_path: Path, objective: Any, kind: str, measured_at: str
) -> None:
    facts, examples = baseline(inputs, tmp_path, kind, objective=objective)
    assert facts["measured_at"] == measured_at and facts["order"] == 3
    # three words may follow a word: log 3 = 1.1 nats, and a word is most often one token
    assert facts["ngram_nats"] < 1.6 < 2 < facts["unigram_nats"] < 3
    reader = ExampleReader(examples, "validation", 5)
    special = reader.vocabulary.special
    everything = reader.indices(0, len(reader))
    if measured_at == "labels":
        batch = reader.batch(everything)
        labels = batch["labels"] if "labels" in batch else batch["labels_forward"]
        expected = np.count_nonzero((labels >= 0) & ~special[np.maximum(labels, 0)])
    else:
        expected = np.count_nonzero(~special[reader.rows("tokens", everything[:, 1])])
    assert facts["positions"] == expected


def test_static_masking_and_copies_change_nothing(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Counts are of one copy of the raw rows, whatever is written."""
    dynamic, _ = baseline(inputs, tmp_path / "d")
    assert baseline(inputs, tmp_path / "s", masking="static", duplication=3)[0] == dynamic
    causal, _ = baseline(inputs, tmp_path / "c", "gpt2", objective="causal")
    assert baseline(inputs, tmp_path / "cs", "gpt2", objective="causal", masking="static")[0] == causal
    pairs = {"kind": "mlm", "pairs": "sop"}
    once, _ = baseline(inputs, tmp_path / "p", objective=pairs)
    assert baseline(inputs, tmp_path / "pp", objective=pairs, duplication=3)[0] == once
    assert baseline(inputs, tmp_path / "ps", objective=pairs, duplication=3, masking="static")[0] == once


def test_limits(inputs: dict[str, Path], tmp_path: Path) -> None:
    facts, examples = baseline(inputs, tmp_path, max_tokens=2000, validation_sequences=7, order=2)
    assert 1900 < facts["tokens"] <= 2000 and facts["order"] == 2
    reader = ExampleReader(examples, "train", 0)
    assert len(first_rows(reader, 1)) == 1, "the first row is always there"
    assert len(first_rows(reader, 1 << 40)) == len(reader)
    validation = ExampleReader(examples, "validation", 0)
    index = spread(len(validation), 7)
    rows = validation.batch(np.stack([np.zeros_like(index), index], axis=1))
    assert facts["positions"] == np.count_nonzero(rows["labels"] >= 0)
    chunk = held_out(validation, 7, examples / "tokenizer.json").chunk(0)  # what training measures on
    assert (chunk["input_ids"] == rows["input_ids"]).all()


def test_rows_that_stand_for_a_split_are_evenly_over_it() -> None:
    """A corpus of several files has them one after another: the first rows are of the first file."""
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 5).tolist() == spread(3, 3).tolist() == [0, 1, 2] and spread(0, 5).tolist() == []


def test_what_has_no_rows_is_refused_or_not_measured(inputs: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = TrainTokenizer(corpus=CORPUS, kind="unigram")
    for fields, message in (
        ({"objective": "glove"}, "pairs of words"),
        ({"objective": "span-corruption", "masking": "static"}, "set masking=dynamic"),
    ):
        with pytest.raises(BadConfig, match=message):
            NGramBaseline(examples=MakeExamples(corpus=CORPUS, tokenizer=tokenizer, **fields))
    corpus = run_stage(Ingest(source=str(inputs["corpus"].parent / "corpus.jsonl"), validation_share=0), tmp_path / "c")
    facts, _ = baseline({**inputs, "corpus": corpus.out}, tmp_path)
    assert facts["tokens"] > 0 == facts["positions"] and facts["ngram_nats"] is facts["unigram_nats"] is None
