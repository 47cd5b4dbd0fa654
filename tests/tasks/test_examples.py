"""Examples of every objective: no token lost, the same files on any number of workers, static equals dynamic."""

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
from pydantic import ValidationError
from tokenizers import Tokenizer

from cluster.errors import BadConfig, BadData
from tasks.corpus_reader import read_texts
from tasks.example_reader import ExampleReader
from tasks.examples import MakeExamples, unigram_entropy
from tasks.ingest import Ingest
from tasks.objectives.convert import convert
from tasks.objectives.settings import Masked
from tasks.slices import slices
from tasks.tokenizer import TrainTokenizer
from tests.tasks.stage import digests, run_stage

CORPUS = Ingest(source="corpus.jsonl")
TOKENIZER = TrainTokenizer(corpus=CORPUS)
WORDS = "model token layer weight gradient language document sentence river mountain of the and unbelievable"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    rng = random.Random(0)
    texts = [". ".join(_sentence(rng) for _ in range(rng.randint(1, 12))) + "." for _ in range(200)]
    texts += ["the [MASK] and the [PAD] of [SEP] [CLS]"]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    corpus = run_stage(Ingest(source=str(folder / "corpus.jsonl"), validation_share=0.1), folder / "corpus").out
    tokenizer = run_stage(TrainTokenizer(corpus=CORPUS, vocab_size=200), folder / "tokenizer", corpus=corpus).out
    return {"corpus": corpus, "tokenizer": tokenizer}


def _sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS.split(), k=rng.randint(2, 15))).capitalize() + rng.choice(
        ["", " in 1999", " of Rome"]
    )


@pytest.fixture(scope="module")
def tokenizers(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by kind; 300 tokens each."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        kind: run_stage(
            TrainTokenizer(corpus=CORPUS, kind=kind, vocab_size=300, sentinels=20),
            folder / kind,
            corpus=inputs["corpus"],
        ).out
        for kind in ("bpe", "gpt2", "unigram")
    }


def make(out: Path, inputs: dict[str, Path], **fields: Any) -> Path:
    kind = json.loads((inputs["tokenizer"] / "tokenizer-info.json").read_text())["kind"]
    tokenizer = TrainTokenizer(corpus=CORPUS, kind=kind)
    task = MakeExamples(corpus=CORPUS, tokenizer=tokenizer, **({"length_tokens": 32} | fields))
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


def test_static_masks_are_the_dynamic_ones_written_down(inputs: dict[str, Path], tmp_path: Path) -> None:
    dynamic = ExampleReader(make(tmp_path / "d", inputs, objective={"kind": "mlm", "mask_rate": 0.3}), "train", seed=11)
    static = make(
        tmp_path / "s", inputs, objective={"kind": "mlm", "mask_rate": 0.3}, masking="static", duplication=3, seed=11
    )
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


OBJECTIVE_CASES: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
    *[
        ({"kind": "mlm", "unit": unit}, kind, ("encoder",))
        for unit, kind in (("token", "wordpiece"), ("word", "bpe"), ("ngram", "wordpiece"), ("salient", "bpe"))
    ],
    ({"kind": "mlm", "unit": "span", "span_boundary": True}, "wordpiece", ("encoder",)),
    ({"kind": "mlm", "documents_apart": True, "random_token": "any", "random_share": 0.2}, "bpe", ("encoder",)),
    ({"kind": "mlm", "pairs": "nsp"}, "wordpiece", ("encoder",)),
    ({"kind": "mlm", "pairs": "sop"}, "wordpiece", ("encoder",)),
    ({"kind": "rtd", "documents_apart": True}, "wordpiece", ("encoder",)),
    ({"kind": "permutation"}, "wordpiece", ("encoder",)),
    ({"kind": "causal"}, "gpt2", ("decoder",)),
    ({"kind": "causal", "documents_apart": False}, "bpe", ("decoder",)),
    ({"kind": "prefix"}, "unigram", ("prefix-lm", "encoder-decoder")),
    ({"kind": "prefix", "documents_apart": True}, "gpt2", ("prefix-lm",)),
    ({"kind": "span-corruption"}, "unigram", ("encoder-decoder", "prefix-lm", "decoder")),
    ({"kind": "span-corruption", "documents_apart": True}, "unigram", ("encoder-decoder", "prefix-lm")),
    ({"kind": "iid-denoising", "style": "replace-spans"}, "unigram", ("encoder-decoder", "decoder")),
    ({"kind": "infilling"}, "bpe", ("encoder-decoder",)),
    ({"kind": "mass"}, "bpe", ("encoder-decoder",)),
    ({"kind": "salient-spans"}, "unigram", ("encoder-decoder",)),
]


@pytest.mark.parametrize(("objective", "kind", "architectures"), OBJECTIVE_CASES)
def test_static_is_dynamic_written_down(
    inputs: dict[str, Path],
    tokenizers: dict[str, Path],
    tmp_path: Path,
    objective: dict[str, Any],
    kind: str,
    architectures: tuple[str, ...],
) -> None:
    """Every objective that masks: what is read from either file is the same, for every architecture."""
    chosen = {"corpus": inputs["corpus"], "tokenizer": tokenizers.get(kind, inputs["tokenizer"])}
    folders = {m: make(tmp_path / m, chosen, objective=objective, masking=m, seed=11) for m in ("dynamic", "static")}
    info = json.loads((folders["dynamic"] / "examples.json").read_text())
    assert info["objective"]["kind"] == objective["kind"] and len(info["lengths"]) == 2
    for architecture in architectures:
        dynamic, static = (ExampleReader(folders[m], "train", 11, architecture) for m in ("dynamic", "static"))
        assert len(dynamic) == len(static) == info["sequences"]["train"] > 100
        # the first and the last, which may be padded
        pairs = np.array([[0, i] for i in (*range(20), *range(len(dynamic) - 20, len(dynamic)))])
        expected, found = dynamic.batch(pairs), static.batch(pairs)
        assert found.keys() == expected.keys()
        for column in expected:
            np.testing.assert_array_equal(found[column], expected[column], err_msg=column)
            assert found[column].dtype == expected[column].dtype, column
        assert (expected["labels"] != -100).any()
        inputs_longest, targets_longest = info["lengths"]
        widest = {"encoder-decoder": inputs_longest, "encoder": inputs_longest}.get(
            architecture, inputs_longest + targets_longest
        )
        assert expected["input_ids"].shape[1] <= widest


@pytest.mark.parametrize("kind", ["skip-gram", "cbow", "glove", "bidirectional"])
def test_objectives_of_the_earlier_systems(inputs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = make(tmp_path / "e", inputs, objective=kind)
    reader = ExampleReader(folder, "train", 3)
    assert reader.vocabulary.counts is not None and reader.vocabulary.counts.sum() > 5_000
    batch = reader.batch(reader.indices(5, 8))
    assert batch["input_ids"].shape == (8, 32) and batch["input_ids"].dtype == np.int64
    again = reader.batch(reader.indices(7, 2))
    for column in batch:
        np.testing.assert_array_equal(again[column], batch[column][2:4])
    with pytest.raises(BadConfig, match=f"masking=static with objective '{kind}'"):
        MakeExamples(corpus=CORPUS, tokenizer=TOKENIZER, objective=kind, masking="static")


def test_counts_are_those_of_the_training_split(inputs: dict[str, Path], tmp_path: Path) -> None:
    expected = np.bincount(expected_stream(inputs, "train"))
    for fields in ({}, {"packing": "doc-sentences"}, {"objective": {"kind": "mlm", "pairs": "sop"}}):
        reader = ExampleReader(make(tmp_path / str(len(fields) * 7 + len(str(fields))), inputs, **fields), "train", 0)
        found = reader.vocabulary.counts
        ordinary = reader.vocabulary.ordinary
        np.testing.assert_array_equal(found[ordinary], expected[ordinary])
        assert reader.info["tokens"]["train"] == expected[ordinary].sum()


@pytest.mark.parametrize("packing", ["full-sentences", "doc-sentences"])
def test_rows_hold_whole_sentences(
    inputs: dict[str, Path], tokenizers: dict[str, Path], tmp_path: Path, packing: str
) -> None:
    """Without special tokens the rows are the corpus, and they end where sentences do."""
    rows = stored_tokens(
        make(tmp_path / "e", {**inputs, "tokenizer": tokenizers["bpe"]}, packing=packing, length_tokens=64), "train"
    )
    tokenizer = Tokenizer.from_file(str(tokenizers["bpe"] / "tokenizer.json"))
    texts = [text for each in read_texts(inputs["corpus"], "train") for text in each]
    assert tokenizer.decode([int(t) for t in rows.ravel() if t >= 5]) == "".join(texts)
    assert (rows[:, 0] == 0).all()
    separators = (rows == 2).sum(1)
    assert separators.min() == 1 and (separators.max() == 1) == (packing == "doc-sentences")
    # a sentence of 16 words may be longer than a row, and is cut then
    last = [int(row[row >= 5][-1]) for row in rows]
    assert np.mean([t == tokenizer.token_to_id(".") for t in last]) > 0.8


def test_copies_of_pairs_are_other_pairs(inputs: dict[str, Path], tmp_path: Path) -> None:
    objective = {"kind": "mlm", "pairs": "nsp"}
    reader = ExampleReader(make(tmp_path / "e", inputs, objective=objective, duplication=2), "train", 0)
    everything = np.arange(len(reader))
    copy, tokens = reader.rows("copy", everything), reader.rows("tokens", everything)
    first, second = ({row.tobytes() for row in tokens[copy == number]} for number in (0, 1))
    assert len(first & second) < 0.2 * len(first)
    labels = reader.rows("pair_label", everything)
    assert 0.45 < labels.mean() < 0.75 and reader.rows("boundary", everything).min() >= 3
    batch = reader.batch(reader.indices(0, 50))
    assert set(np.unique(batch["token_type_ids"])) == {0, 1}
    np.testing.assert_array_equal(batch["pair_labels"], labels[reader.indices(0, 50)[:, 1]])
    # the validation split is never copied
    validation = ExampleReader(make(tmp_path / "s", inputs, objective=objective, masking="static"), "validation", 0)
    assert not validation.rows("copy", np.arange(len(validation))).any()


def test_slices_hold_the_split_in_order(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At least so many bytes each, the rest with the last one; numbered by document."""
    texts = [text for each in read_texts(inputs["corpus"], "train") for text in each]
    size = sum(map(len, texts))
    for least in (1, 5_000, size // 2, 10 * size):
        monkeypatch.setattr("tasks.slices.SLICE_BYTES", least)
        found = list(slices(inputs["corpus"], "train"))
        assert [text for piece in found for text in piece.texts.to_pylist()] == texts
        assert [piece.first_document for piece in found] == list(
            np.cumsum([0, *(len(piece.texts) for piece in found[:-1])])
        )
        sizes = [sum(map(len, piece.texts.to_pylist())) for piece in found]
        assert len(found) == 1 or min(sizes) >= least
    assert list(slices(tmp_path, "train")) == []


def test_a_pair_of_stacks_takes_what_one_stack_takes(
    inputs: dict[str, Path], tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    """The reader's batch is `convert` of what is drawn."""
    folder = make(tmp_path / "e", {**inputs, "tokenizer": tokenizers["unigram"]}, objective="span-corruption")
    two, one = (ExampleReader(folder, "validation", 0, a) for a in ("encoder-decoder", "decoder"))
    pairs = two.indices(0, 4)
    batch = two.batch(pairs)
    labels = np.where(batch["labels"] < 0, 0, batch["labels"])
    expected = convert({"inputs": batch["input_ids"], "targets": labels}, "decoder", two.vocabulary)
    for column, found in one.batch(pairs).items():
        np.testing.assert_array_equal(found, expected[column])
    assert two.info["lengths"] == [32, two.batch(pairs)["labels"].shape[1]]
    with pytest.raises(BadConfig, match="'encoder' takes no inputs and targets"):
        ExampleReader(folder, "train", 0).batch(pairs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"duplication": 2}, "masking=dynamic"),
        ({"objective": {"kind": "mlm", "pairs": "nsp"}, "packing": "doc-sentences"}, "made of sentences already"),
        ({"objective": "causal", "packing": "full-sentences"}, "share a token with the one before"),
        (
            {"objective": "skip-gram", "packing": "full-sentences"},
            "packing=full-sentences .*'skip-gram': it reads running",
        ),
        ({"objective": "glove", "packing": "doc-sentences"}, "packing=doc-sentences with objective 'glove': it reads"),
        ({"objective": "bidirectional", "packing": "full-sentences"}, "with objective 'bidirectional': it reads"),
        ({"objective": "span-corruption"}, "'span-corruption' needs sentinels, a tokenizer of kind 'wordpiece' has"),
        ({"tokenizer": TrainTokenizer(corpus=CORPUS, kind="gpt2")}, "'mlm' needs cls, sep and mask, .* kind 'gpt2'"),
        (
            {"objective": "span-corruption", "tokenizer": TrainTokenizer(corpus=CORPUS, kind="unigram", sentinels=0)},
            "set tokenizer.kind to unigram.* with tokenizer.sentinels above 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        MakeExamples(**({"corpus": CORPUS, "tokenizer": TOKENIZER} | fields))


def test_an_objective_by_name_or_settings() -> None:
    """A bare name, a mapping and settings are one stage; unknown names and keys are named."""
    made = [
        MakeExamples(corpus=CORPUS, tokenizer=TOKENIZER, **fields)
        for fields in ({}, {"objective": "mlm"}, {"objective": {"kind": "mlm"}}, {"objective": Masked()})
    ]
    assert all(each == made[0] for each in made)
    with pytest.raises(ValidationError, match="did you mean 'causal'"):
        MakeExamples(corpus=CORPUS, tokenizer=TOKENIZER, objective="casual")
    with pytest.raises(ValidationError, match="must see each other"):
        MakeExamples(
            corpus=CORPUS, tokenizer=TOKENIZER, objective={"kind": "mlm", "pairs": "sop", "documents_apart": True}
        )
    with pytest.raises(ValidationError, match="mask_rat"):
        MakeExamples(corpus=CORPUS, tokenizer=TOKENIZER, objective={"kind": "mlm", "mask_rat": 0.2})


def test_too_little_text(inputs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text('{"text": "  "}\n{"text": "."}\n')
    task = Ingest(source=str(tmp_path / "few.jsonl"), validation_share=0.0)
    few = run_stage(task, tmp_path / "few").out
    assert ExampleReader(make(tmp_path / "one", {**inputs, "corpus": few}), "train", 0).length == 32
    with pytest.raises(BadData, match="validation split of the examples is empty"):
        ExampleReader(tmp_path / "one", "validation", 0)
    with pytest.raises(BadData, match="too few for one row of 32"):
        make(tmp_path / "pairs", {**inputs, "corpus": few}, objective={"kind": "mlm", "pairs": "sop"})


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
    monkeypatch.setattr("tasks.slices.SLICE_BYTES", 15_000)
    source = inputs["corpus"].parent / "corpus.jsonl"
    for i in range(4):
        (tmp_path / f"part-{i}.jsonl").write_text("\n".join(source.read_text().split("\n")[i::4]))

    def both(name: str, **placement: Any) -> list[dict[str, str]]:
        task = Ingest(source=str(tmp_path / "part-*.jsonl"), validation_share=0.1, **placement)
        corpus = run_stage(task, tmp_path / f"{name}-corpus").out
        made = [
            make(tmp_path / f"{name}-{number}", {**inputs, "corpus": corpus}, **fields, **placement)
            for number, fields in enumerate(
                (
                    {},
                    {"packing": "full-sentences", "masking": "static", "duplication": 2},
                    {"objective": {"kind": "mlm", "pairs": "nsp"}, "duplication": 2},
                )
            )
        ]
        return [digests(folder) for folder in (corpus, *made)]

    alone = both("alone")
    request.getfixturevalue("cluster")
    assert both("one", runtime={"workers": 1}) == both("two", runtime={"workers": 2}) == alone
