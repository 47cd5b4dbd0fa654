"""The reader: a stateless permutation, the same samples whoever asks, zero-copy views."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.example_reader import ExampleReader, permuted
from tasks.examples import write_vocabulary
from tasks.objectives.base import Vocabulary
from tests.tasks.test_objectives import vocabulary

ROWS, LENGTH, PER_BATCH = 107, 16, 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of several record batches, written by hand after its description."""
    out = tmp_path_factory.mktemp("examples")
    words = vocabulary()
    table = pa.table(
        {"token": [str(i) for i in range(100)], "special": words.special, "starts_word": words.starts_word}
    )
    with pa.ipc.new_file(str(out / "vocabulary.arrow"), table.schema) as file:
        file.write_table(table)
    tokens = np.random.default_rng(0).integers(5, 100, (ROWS, LENGTH)).astype(np.uint16)
    tokens[:, 0], tokens[:, -1] = 2, 3
    tokens[:, 1] = np.arange(ROWS) % 95 + 5
    schema = pa.schema([("tokens", pa.list_(pa.uint16(), LENGTH))])
    for split, rows in (("train", tokens), ("validation", tokens[:10])):
        with pa.ipc.new_file(str(out / f"{split}.arrow"), schema) as file:
            for first in range(0, len(rows), PER_BATCH):
                flat = pa.array(rows[first : first + PER_BATCH].ravel())
                column = pa.FixedSizeListArray.from_arrays(flat, type=schema[0].type)
                file.write_batch(pa.record_batch([column], schema=schema))
    facts = {
        "objective": "mlm",
        "settings": {"mask_rate": 0.15, "max_predictions": 0, "whole_word": False, "random_token": "ordinary"},
        "masking": "dynamic",
        "length_tokens": LENGTH,
        "special_tokens": dict(words.special_tokens),
        "seed": 0,
        "rows_per_batch": PER_BATCH,
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
    reader = ExampleReader(folder, "train", seed=1)
    assert all(not view["tokens"].flags.owndata and not view["tokens"].flags.writeable for view in reader._views)


def test_the_vocabulary_goes_there_and_back(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    from tasks.example_reader import read_vocabulary

    tokenizer = Tokenizer(models.WordPiece({"[PAD]": 0, "a": 1, "##b": 2}, unk_token="[PAD]"))
    special, starts = np.array([True, False, False]), np.array([True, True, False])
    write_vocabulary(tmp_path / "vocabulary.arrow", Vocabulary(3, {"pad": 0}, special, starts), tokenizer.to_str())
    found = read_vocabulary(tmp_path, {"pad": 0})
    assert found.size == 3 and found.ordinary.tolist() == [1, 2] and found.pad == 0
    np.testing.assert_array_equal(found.starts_word, starts)
