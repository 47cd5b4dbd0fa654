"""The reader: a stateless permutation, the same samples whoever asks, zero-copy views."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from tasks.example_files import ExampleFile, ExampleWriter
from tasks.example_reader import ExampleReader, permuted
from tasks.objectives.base import Vocabulary
from tasks.objectives.settings import Masked
from tasks.vocabulary import read_vocabulary, vocabulary_of, write_vocabulary
from tests.tasks.objective_rows import vocabulary

ROWS, LENGTH, PER_BATCH = 107, 16, 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of several record batches, written by hand after its description."""
    out = tmp_path_factory.mktemp("examples")
    words = vocabulary()
    table = pa.table(
        {
            "token": [str(i) for i in range(100)],
            "special": words.special,
            "starts_word": words.starts_word,
            "count": pa.array([None] * 100, pa.int64()),
        }
    )
    with pa.ipc.new_file(str(out / "vocabulary.arrow"), table.schema) as file:
        file.write_table(table)
    tokens = np.random.default_rng(0).integers(5, 100, (ROWS, LENGTH)).astype(np.uint16)
    tokens[:, 0], tokens[:, -1] = 2, 3
    tokens[:, 1] = np.arange(ROWS) % 95 + 5
    schema = pa.schema([("tokens", pa.list_(pa.uint16(), LENGTH))])
    for split, rows in (("train", tokens), ("validation", tokens[:10])):
        facts = {"origin": "by hand", "split": split, "shard": "0"}
        with pa.ipc.new_file(str(out / f"{split}-00000.arrow"), schema.with_metadata(facts)) as file:
            for first in range(0, len(rows), PER_BATCH):
                flat = pa.array(rows[first : first + PER_BATCH].ravel())
                column = pa.FixedSizeListArray.from_arrays(flat, type=schema[0].type)
                file.write_batch(pa.record_batch([column], schema=schema))
    facts = {
        "objective": Masked(kind="mlm").model_dump(mode="json"),
        "masking": "dynamic",
        "length_tokens": LENGTH,
        "special_tokens": dict(words.special_tokens),
        "seed": 0,
        "shards": {
            split: {"rows": rows, "rows_per_shard": ROWS, "origin": "by hand"}
            for split, rows in (("train", ROWS), ("validation", 10))
        },
    }
    (out / "examples.json").write_text(json.dumps(facts))
    np.save(out / "tokens.npy", tokens)
    return out


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000))
def test_permutation_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    found = permuted(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(found), np.arange(size))


def test_permutations_look_random() -> None:
    size = 10_000
    first, second = permuted(np.arange(size), size, 1, 0), permuted(np.arange(size), size, 1, 1)
    # Correlation of n random ranks has standard deviation 1/sqrt(n) = 0.01.
    for a, b in ((first, np.arange(size)), (first, second), (first[:-1], first[1:])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    assert permuted(np.array([1 << 40]), 1 << 41, 3, 0).shape == (1,)


@settings(max_examples=60, deadline=None)
@given(first=st.integers(0, 500), count=st.integers(0, 300), cut=st.integers(0, 300))
def test_any_stretch_of_the_stream_is_the_same(folder: Path, first: int, count: int, cut: int) -> None:
    reader, cut = ExampleReader(folder, "train", seed=7), min(cut, count)
    whole = reader.indices(first, count)
    assert whole.shape == (count, 2) and whole.dtype == np.int64
    parts = [reader.indices(first, cut), reader.indices(first + cut, count - cut)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_an_epoch_is_every_sample_once(folder: Path) -> None:
    reader = ExampleReader(folder, "train", seed=7)
    assert len(reader) == ROWS
    for epoch in range(3):
        pairs = reader.indices(epoch * ROWS, ROWS)
        assert (pairs[:, 0] == epoch).all() and sorted(pairs[:, 1]) == list(range(ROWS))
    assert not np.array_equal(reader.indices(0, ROWS)[:, 1], reader.indices(ROWS, ROWS)[:, 1])
    assert not np.array_equal(reader.indices(0, ROWS), ExampleReader(folder, "train", seed=8).indices(0, ROWS))


def test_rows_across_record_batches(folder: Path) -> None:
    tokens = np.load(folder / "tokens.npy")
    order = np.random.default_rng(1).permutation(ROWS)
    np.testing.assert_array_equal(ExampleReader(folder, "train", 0).rows("tokens", order), tokens[order])


def test_batches(folder: Path) -> None:
    reader = ExampleReader(folder, "train", seed=7)
    pairs = reader.indices(100, 12)  # over the end of an epoch
    batch = reader.batch(pairs)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "input_ids": ((12, LENGTH), "int64"),
        "labels": ((12, LENGTH), "int64"),
        "attention_mask": ((12, LENGTH), "bool"),
    }
    for row, pair in enumerate(pairs):
        alone = reader.batch(pair)
        for column in batch:
            np.testing.assert_array_equal(alone[column][0], batch[column][row])


def test_validation_is_the_same_for_every_seed_and_epoch(folder: Path) -> None:
    one, two = ExampleReader(folder, "validation", seed=1), ExampleReader(folder, "validation", seed=2)
    pairs = one.indices(0, 10)
    assert pairs.tolist() == [[0, i] for i in range(10)]
    np.testing.assert_array_equal(one.indices(10, 10), pairs)
    np.testing.assert_array_equal(one.batch(pairs)["labels"], two.batch(pairs)["labels"])


def test_views_are_not_copies(folder: Path) -> None:
    file = ExampleFile(folder / "train-00000.arrow")
    view = file.views["tokens"]
    assert not view.flags.owndata and not view.flags.writeable
    assert view.shape == (ROWS // PER_BATCH, PER_BATCH, LENGTH) and len(file.tails["tokens"]) == ROWS % PER_BATCH


def test_the_vocabulary_goes_there_and_back(tmp_path: Path) -> None:
    special, starts = np.array([True, False, False, True, True]), np.array([True, True, False, False, False])
    tokens = ("[PAD]", "a", "##b", "<extra_id_1>", "<extra_id_0>")
    for counts in (None, np.array([0, 5, 2, 0, 0])):
        written = Vocabulary(5, {"pad": 0}, special, starts, tokens, (4, 3), counts)
        write_vocabulary(tmp_path / "vocabulary.arrow", written)
        found = read_vocabulary(tmp_path, {"pad": 0})
        assert found.size == 5 and found.ordinary.tolist() == [1, 2] and found.pad == 0
        assert found.tokens == tokens and found.sentinels == (4, 3)
        np.testing.assert_array_equal(found.starts_word, starts)
        assert found.counts is None if counts is None else found.counts.tolist() == counts.tolist()


@pytest.mark.parametrize(
    ("model", "spelled", "begins"),
    [
        (models.WordPiece({"[PAD]": 0, "a": 1, "##b": 2}, unk_token="[PAD]"), ["[PAD]", "a", "##b"], [1]),
        (models.BPE({"<pad>": 0, "Ġa": 1, "b": 2}, []), ["<pad>", "Ġa", "b"], [1]),
        (models.Unigram([("<pad>", -9.0), ("▁a", -1.0), ("b", -2.0)], 0), ["<pad>", "▁a", "b"], [1]),
        (models.BPE({"<pad>": 0, "a</w>": 1, "b": 2}, [], end_of_word_suffix="</w>"), ["<pad>", "a</w>", "b"], [1, 2]),
    ],
)
def test_where_words_begin(model: Any, spelled: list[str], begins: list[int]) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(spelled[:1])
    found = vocabulary_of(tokenizer.to_str(), {"pad": 0})
    assert found.tokens == tuple(spelled) and np.flatnonzero(found.special).tolist() == [0]
    assert [i for i in range(1, 3) if found.starts_word[i]] == begins


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    per_batch=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_columns_of_any_kind_come_back(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], per_batch: int, seed: int
) -> None:
    """Written in any pieces and any record batches: the same rows, by the smallest type that holds them."""
    rng, n = np.random.default_rng(seed), sum(sizes)
    whole = {
        "input_ids": rng.integers(0, 300, (n, 3)),
        "labels": rng.integers(-100, 300, (n, 4)),
        "ranks": np.full((n, 2), -1),
        "uniforms": rng.random((n, 3)).astype(np.float32),
        "window": rng.random((n, 3, 2)) < 0.5,
        "boundary": rng.integers(0, 9, n).astype(np.int32),
        "pair_labels": rng.integers(0, 2, n),
    }
    folder = tmp_path_factory.mktemp("file")
    writer = ExampleWriter(folder, "train", per_batch, 300, np.uint16)
    ends = np.cumsum(sizes)
    for end, size in zip(ends, sizes, strict=True):
        writer.add({name: column[end - size : end] for name, column in whole.items()})
    assert writer.close().rows == writer.rows == n
    assert len(list(folder.iterdir())) == (n > 0)
    if n:
        file = ExampleFile(folder / "train-00000.arrow")
        assert len(file) == n
        order = rng.permutation(n)
        for name, column in whole.items():
            rows = file.rows(name, order)
            np.testing.assert_array_equal(rows.astype(file.dtype(name)), column[order])
            assert file.dtype(name) == column.dtype
        stored = {name: file.rows(name, order).dtype.name for name in whole}
        assert stored == {
            "input_ids": "uint16",
            "labels": "int32",
            "ranks": "int32",
            "uniforms": "float32",
            "window": "uint8",
            "boundary": "int32",
            "pair_labels": "int32",
        }


def test_a_value_that_does_not_fit_is_no_silent_loss(tmp_path: Path) -> None:
    writer = ExampleWriter(tmp_path, "train", 8, 300, np.uint16)
    writer.add({"input_ids": np.zeros((2, 2), dtype=np.int64)})
    writer.add({"input_ids": np.full((2, 2), -1)})
    with pytest.raises(OverflowError, match="column input_ids has -1"):
        writer.close()
