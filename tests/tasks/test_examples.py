"""Examples: packing loses no token, files are the same on any number of workers, static equals dynamic."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cluster.errors import BadConfig, BadData
from tasks.corpus_reader import read_texts
from tasks.example_reader import ExampleReader
from tasks.examples import MakeExamples, Packer, unigram_entropy
from tasks.ingest import Ingest
from tasks.objectives.base import Vocabulary
from tasks.tokenizer import TrainTokenizer
from tests.tasks.stage import digests, run_stage

CORPUS = Ingest(source="corpus.jsonl")
TOKENIZER = TrainTokenizer(corpus=CORPUS)
WORDS = [
    "model",
    "token",
    "layer",
    "weight",
    "gradient",
    "language",
    "document",
    "sentence",
    "river",
    "mountain",
    "of",
    "the",
    "and",
    "unbelievable",
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 200))) + "." for _ in range(600)]
    texts += ["the [MASK] and the [PAD] of [SEP] [CLS]"]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    corpus = run_stage(Ingest(source=str(folder / "corpus.jsonl"), validation_share=0.1), folder / "corpus").out
    tokenizer = run_stage(TrainTokenizer(corpus=CORPUS, vocab_size=200), folder / "tokenizer", corpus=corpus).out
    return {"corpus": corpus, "tokenizer": tokenizer}


def make(out: Path, inputs: dict[str, Path], **fields: Any) -> Path:
    task = MakeExamples(corpus=CORPUS, tokenizer=TOKENIZER, **({"length_tokens": 32} | fields))
    return run_stage(task, out, **inputs).out


def stored_tokens(folder: Path, split: str) -> np.ndarray:
    reader = ExampleReader(folder, split, seed=0)
    return reader.rows("tokens", np.arange(len(reader)))


def expected_stream(inputs: dict[str, Path], split: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(inputs["tokenizer"] / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return [
        i
        for texts in read_texts(inputs["corpus"], split)
        for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)
        for i in (*encoding.ids, 3)
    ]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_sequences_hold_the_corpus_token_for_token(inputs: dict[str, Path], tmp_path: Path, split: str) -> None:
    tokens = stored_tokens(make(tmp_path / "e", inputs), split)
    assert tokens.dtype == np.uint16
    assert (tokens[:, 0] == 2).all() and (tokens[:-1, -1] == 3).all() and not (tokens[:-1] == 0).any()
    last = tokens[-1][tokens[-1] != 0]
    assert last[-1] == 3
    body = [*tokens[:-1, 1:-1].ravel(), *last[1:-1]]
    assert [int(i) for i in body] == expected_stream(inputs, split)[: len(body)]
    assert len(expected_stream(inputs, split)) - len(body) in (0, 1)  # the very last separator may be the [SEP]


def test_facts(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = make(tmp_path / "e", inputs)
    info = json.loads((out / "examples.json").read_text())
    stream = [i for i in expected_stream(inputs, "train") if i >= 5]
    assert info["tokens"]["train"] == len(stream)
    assert info["sequences"] == {s: len(stored_tokens(out, s)) for s in ("train", "validation")}
    counts = Counter(stream)
    entropy = -sum(n / len(stream) * np.log(n / len(stream)) for n in counts.values())
    assert info["unigram_entropy_nats"] == pytest.approx(entropy, abs=1e-6)  # rounded to six places
    words = Tokenizer.from_file(str(inputs["tokenizer"] / "tokenizer.json")).get_vocab_size()
    assert info["vocab_size"] == words and info["special_tokens"]["mask"] == 4
    assert unigram_entropy(np.array([1, 1, 0])) == pytest.approx(np.log(2))


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.lists(st.integers(5, 99), max_size=70), max_size=12),
    length=st.integers(4, 40),
)
def test_packing_loses_no_token(pieces: list[list[int]], length: int) -> None:
    roles = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    packer = Packer(length, Vocabulary(100, roles, np.zeros(100, bool), np.ones(100, bool)), np.uint16)
    rows = [packer.add(np.array(p, dtype=np.uint16)) for p in pieces] + [packer.end()]
    tokens = np.concatenate(rows)
    flat = [t for p in pieces for t in p]
    assert [int(t) for t in tokens.ravel() if t >= 5] == flat
    assert len(tokens) == -(-len(flat) // (length - 2))
    assert packer.end().shape == (0, length)


def test_static_masks_are_the_dynamic_ones_written_down(inputs: dict[str, Path], tmp_path: Path) -> None:
    dynamic = ExampleReader(make(tmp_path / "d", inputs, mask_rate=0.3), "train", seed=11)
    static = make(tmp_path / "s", inputs, mask_rate=0.3, masking="static", duplication=3, seed=11)
    written = ExampleReader(static, "train", seed=5)
    assert len(written) == 3 * len(dynamic)
    found = written.batch(np.array([[0, i] for i in range(30)]))
    expected = dynamic.batch(np.array([[i % 3, i // 3] for i in range(30)]))
    for column in ("input_ids", "labels", "attention_mask"):
        np.testing.assert_array_equal(found[column], expected[column])
        assert found[column].dtype == expected[column].dtype


def test_running_again_gives_the_same_bytes(inputs: dict[str, Path], tmp_path: Path) -> None:
    for masking in ("dynamic", "static"):
        assert digests(make(tmp_path / f"{masking}1", inputs, masking=masking)) == digests(
            make(tmp_path / f"{masking}2", inputs, masking=masking)
        )


def test_the_seed_of_dynamic_masks_moves_no_token(inputs: dict[str, Path], tmp_path: Path) -> None:
    first, second = (make(tmp_path / str(seed), inputs, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(stored_tokens(first, "train"), stored_tokens(second, "train"))


def test_impossible_settings(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="masking=dynamic"):
        MakeExamples(corpus=CORPUS, tokenizer=TOKENIZER, duplication=2)
    (tmp_path / "few.jsonl").write_text('{"text": "  "}\n{"text": "."}\n')
    task = Ingest(source=str(tmp_path / "few.jsonl"), validation_share=0.0)
    few = run_stage(task, tmp_path / "few").out
    assert ExampleReader(make(tmp_path / "one", {**inputs, "corpus": few}), "train", 0).length == 32
    with pytest.raises(BadData, match="validation split of the examples is empty"):
        ExampleReader(tmp_path / "one", "validation", 0)


def test_a_tokenizer_without_the_special_tokens(inputs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    for file in inputs["tokenizer"].iterdir():
        (tmp_path / "t" / file.name).write_bytes(file.read_bytes())
    info = json.loads((tmp_path / "t" / "tokenizer-info.json").read_text())
    del info["special_tokens"]["mask"]
    (tmp_path / "t" / "tokenizer-info.json").write_text(json.dumps(info))
    with pytest.raises(BadConfig, match="needs a mask token"):
        make(tmp_path / "e", {**inputs, "tokenizer": tmp_path / "t"})


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def test_one_and_two_workers_write_what_no_worker_writes(
    inputs: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Corpus and examples, in process and over Ray: byte for byte."""
    monkeypatch.setattr("tasks.examples._SLICE_BYTES", 20_000)
    source = inputs["corpus"].parent / "corpus.jsonl"
    for i in range(4):
        (tmp_path / f"part-{i}.jsonl").write_text("\n".join(source.read_text().split("\n")[i::4]))

    def both(name: str, **placement: Any) -> list[dict[str, str]]:
        task = Ingest(source=str(tmp_path / "part-*.jsonl"), validation_share=0.1, **placement)
        corpus = run_stage(task, tmp_path / f"{name}-corpus").out
        examples = make(tmp_path / f"{name}-examples", {**inputs, "corpus": corpus}, **placement)
        return [digests(corpus), digests(examples)]

    alone = both("alone")
    request.getfixturevalue("cluster")
    assert both("one", runtime={"workers": 1}) == both("two", runtime={"workers": 2}) == alone
