"""Examples in many shards: the order in windows, rows by number, documents of rows, and files that are not as they
should be."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from cluster.errors import BadData
from tasks.corpus_reader import read_batches
from tasks.example_documents import Documents
from tasks.example_files import ShardIndex
from tasks.example_order import Order, permuted
from tasks.example_reader import ExampleReader
from tasks.example_slices import SliceWork, read
from tasks.examples import MakeExamples
from tasks.ingest import Ingest
from tasks.objectives.settings import Layout
from tasks.slices import Slice, Tokenise
from tasks.tokenizer import TrainTokenizer
from tests.tasks.stage import digests, run_stage

CORPUS = Ingest(source="corpus.jsonl")
TOKENIZERS = {kind: TrainTokenizer(corpus=CORPUS, kind=kind, vocab_size=300) for kind in ("wordpiece", "gpt2", "bpe")}
WORDS = ["river", "mountain", "token", "layer", "of", "the", "and", "gradient", "unbelievable", "sentence"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 90))).capitalize() + "." for _ in range(150)]
    texts[27:27] = ["\u200b", "\u200b\u200b"]  # documents of which a tokenizer that cleans text leaves nothing
    corpus = write_corpus(folder / "corpus", {"train": texts[20:], "validation": texts[:20]})
    made = {kind: run_stage(task, folder / kind, corpus=corpus).out for kind, task in TOKENIZERS.items()}
    return {"corpus": corpus, **made}


def write_corpus(folder: Path, splits: dict[str, list[str]]) -> Path:
    """A corpus artifact of these texts."""
    folder.mkdir()
    for split, texts in splits.items():
        ids = [f"{split}-{i}" for i in range(len(texts))]
        columns = {"id": ids, "text": texts, "source": ["a"] * len(texts)}
        pq.write_table(pa.table(columns), folder / f"{split}-00000.parquet", row_group_size=9)
    sizes = {split: {"documents": len(t), "bytes": len("".join(t).encode())} for split, t in splits.items()}
    (folder / "corpus.json").write_text(json.dumps({"splits": sizes}))
    return folder


def make(out: Path, inputs: dict[str, Path], kind: str = "wordpiece", **fields: Any) -> Path:
    task = MakeExamples(corpus=CORPUS, tokenizer=TOKENIZERS[kind], **({"length_tokens": 32} | fields))
    return run_stage(task, out, corpus=inputs["corpus"], tokenizer=inputs[kind]).out


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 20 rows of 32 two-byte tokens, slices of 4 kB, windows of two shards."""
    monkeypatch.setattr("tasks.example_files.SHARD_BYTES", 20 * 64)
    monkeypatch.setattr("tasks.slices.SLICE_BYTES", 4_000)
    monkeypatch.setattr("tasks.example_reader.WINDOW_SHARDS", 2)


# ---------------------------------------------------------------- the order


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 400),
    per_shard=st.integers(1, 40),
    window=st.integers(1, 6),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 50),
)
def test_an_order_in_windows_is_a_permutation(rows: int, per_shard: int, window: int, seed: int, epoch: int) -> None:
    index = ShardIndex(rows, per_shard, "")
    order, positions = Order(index, seed, window), np.arange(rows)
    found = order.rows(positions, epoch)
    assert np.array_equal(np.sort(found), positions)
    if index.shards <= window:
        np.testing.assert_array_equal(found, permuted(positions, rows, seed, epoch))
    at = [order.window(position, epoch) for position in range(rows)]
    assert at == sorted(at) and at[-1] == order.windows - 1
    for number in range(order.windows):
        shards = order.shards(number, epoch)
        assert {int(row) // per_shard for row, w in zip(found, at, strict=True) if w == number} == set(shards)
        assert len(shards) <= window
    some = np.random.default_rng(seed % 1000).integers(0, rows, 9)
    np.testing.assert_array_equal(order.rows(some, epoch), found[some])
    assert all(order.rows(np.array([p]), epoch)[0] == found[p] for p in some)


def test_windows_differ_from_epoch_to_epoch() -> None:
    order = Order(ShardIndex(1000, 10, ""), 3, 8)
    first, second = (tuple(map(tuple, (order.shards(w, epoch) for w in range(order.windows)))) for epoch in (0, 1))
    assert first != second and sorted(sum(first, ())) == list(range(100)) == sorted(sum(second, ()))
    rows = order.rows(np.arange(80), 0)  # the first window: its rows are mixed over its shards
    assert len(set((rows[:10] // 10).tolist())) > 3


@given(st.integers(1, 1 << 40), st.integers(0, 99), st.lists(st.integers(0, 1 << 40), min_size=7, max_size=20))
def test_few_positions_and_many_are_permuted_alike(size: int, seed: int, positions: list[int]) -> None:
    places = np.array(positions) % size
    whole = permuted(places, size, seed, 1)
    assert [int(permuted(places[i : i + 1], size, seed, 1)[0]) for i in range(len(places))] == whole.tolist()


def test_orders_stay_what_they_are() -> None:
    """Golden: a change here would change the samples of every run that goes on."""
    assert permuted(np.arange(20), 20, 1, 0).tolist() == [
        11,
        0,
        5,
        19,
        16,
        17,
        14,
        3,
        10,
        12,
        13,
        1,
        2,
        7,
        4,
        8,
        18,
        9,
        6,
        15,
    ]
    assert Order(ShardIndex(23, 4, ""), 5, 2).rows(np.arange(23), 2).tolist() == [
        18,
        13,
        17,
        15,
        14,
        12,
        19,
        16,
        8,
        9,
        10,
        11,
        2,
        0,
        3,
        1,
        6,
        7,
        22,
        21,
        5,
        20,
        4,
    ]


# ---------------------------------------------------------------- rows


def test_many_shards_are_the_rows_of_one(
    inputs: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    one = ExampleReader(make(tmp_path / "one", inputs), "train", 5)
    request.getfixturevalue("small")
    folder = make(tmp_path / "many", inputs)
    many = ExampleReader(folder, "train", 5)
    names = sorted(path.name for path in folder.glob("train-0*.arrow"))
    assert names == [f"train-{i:05d}.arrow" for i in range(many.file.index.shards)] and len(names) > 5
    assert all((folder / name).stat().st_size < 20 * 64 + 1200 for name in names)
    everything = np.arange(len(one))
    np.testing.assert_array_equal(one.rows("tokens", everything), many.rows("tokens", everything))
    order = np.random.default_rng(0).permutation(len(one))
    np.testing.assert_array_equal(one.rows("tokens", order), many.rows("tokens", order))
    pairs = many.indices(0, len(many))
    assert sorted(pairs[:, 1]) == everything.tolist()
    assert [many.row(0, p) for p in range(len(many))] == pairs[:, 1].tolist()
    np.testing.assert_array_equal(many.batch(pairs)["labels"], ExampleReader(folder, "train", 5).batch(pairs)["labels"])
    for bad in (-1, len(one)):
        with pytest.raises(IndexError):
            many.rows("tokens", np.array([0, bad]))
        with pytest.raises(IndexError):
            many.row(0, bad)


# ---------------------------------------------------------------- documents


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("wordpiece", {}),
        ("gpt2", {"objective": "causal"}),
        ("wordpiece", {"packing": "full-sentences"}),
        ("wordpiece", {"packing": "doc-sentences", "length_tokens": 16}),
        ("bpe", {"packing": "doc-sentences"}),
        ("wordpiece", {"masking": "static", "duplication": 3}),
        ("wordpiece", {"objective": "permutation"}),
    ],
)
def test_documents_of_rows_and_rows_of_documents(
    small: None, inputs: dict[str, Path], tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    """Each document's tokens are found, in order, in the rows that it is said to lie in, and nowhere else."""
    reader = ExampleReader(make(tmp_path / "e", inputs, kind, **fields), "train", 0)
    documents, layout = reader.documents, reader.settings.layout(reader.length)
    tokenizer = Tokenizer.from_file(str(inputs[kind] / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    rows = [batch.to_pylist() for batch in read_batches(inputs["corpus"], "train", ("id", "text"))]
    corpus = [row for each in rows for row in each]
    assert [documents[i].id for i in range(len(documents))] == [row["id"] for row in corpus]
    copies = reader.info["copies"]["train"]
    assert copies == fields.get("duplication", 1)
    stored = reader.rows("tokens" if not reader.static else "input_ids", np.arange(len(reader)))
    if reader.static:
        labels = reader.rows("labels", np.arange(len(reader)))
        stored = np.where(labels >= 0, labels, stored)
    frame = {reader.vocabulary.special_tokens[r] for r in ("pad", layout.separator, *layout.begin, *layout.end)}
    held: dict[int, list[int]] = {number: [] for number in range(len(stored) // copies)}
    for number in held:
        row = [int(t) for t in stored[number * copies]]
        held[number] = [t for t in row[layout.overlap if number else 0 :] if t not in frame]
    done = 0
    taken = dict.fromkeys(held, 0)
    for number, row in enumerate(corpus):
        own, document = tokenizer.encode(row["text"], add_special_tokens=False).ids, documents[number]
        assert document.tokens == len(own) and document.first_token == done
        done += len(own)
        if not own:
            continue
        assert document.first_row is not None and document.last_row is not None
        assert document.first_row % copies == 0 and document.last_row % copies == copies - 1
        found: list[int] = []
        for raw in range(document.first_row // copies, document.last_row // copies + 1):
            part = held[raw][taken[raw] : taken[raw] + len(own) - len(found)]
            assert part, "a row that it does not lie in"
            found += part
            taken[raw] += len(part)
        assert found == own
        for place in range(document.first_row, document.last_row + 1):
            assert document in documents.of_row(place)
    assert taken == {number: len(tokens) for number, tokens in held.items()}, "tokens of no document"
    parts = [documents[i] for i in range(len(corpus)) if documents[i].tokens]
    rows_of = sum(part.last_row // copies - part.first_row // copies + 1 for part in parts)
    assert sum(len(documents.of_row(i)) for i in range(0, len(reader), copies)) == rows_of


@pytest.mark.parametrize("objective", ["glove", {"kind": "mlm", "pairs": "nsp"}])
def test_rows_of_no_certain_document(inputs: dict[str, Path], tmp_path: Path, objective: Any) -> None:
    reader = ExampleReader(make(tmp_path / "e", inputs, objective=objective), "train", 0)
    assert reader.documents.of_row(0) == [] and reader.documents[3].first_row is None and reader.documents[3].id


def test_documents_in_any_pieces_make_one_file(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of the documents' file do not depend on slices."""
    monkeypatch.setattr("tasks.example_documents._ROWS_PER_BATCH", 10)
    files = []
    for size in (1, 3_000, 1 << 20):
        monkeypatch.setattr("tasks.slices.SLICE_BYTES", size)
        files.append(digests(make(tmp_path / str(size), inputs)))
    assert files[0] == files[1] == files[2]


# ---------------------------------------------------------------- bad input


def test_bad_shards_are_named(small: None, inputs: dict[str, Path], tmp_path: Path) -> None:
    good = make(tmp_path / "good", inputs)
    foreign = make(tmp_path / "foreign", inputs, seed=1)

    def broken(name: str) -> Path:
        shutil.copytree(good, tmp_path / name)
        return tmp_path / name

    def read(folder: Path) -> None:
        reader = ExampleReader(folder, "train", 0)
        reader.rows("tokens", np.arange(len(reader)))

    read(broken("copy"))
    (broken("missing") / "train-00002.arrow").unlink()
    with pytest.raises(BadData, match="train-00002.arrow: missing") as caught:
        read(tmp_path / "missing")
    assert "make" in caught.value.remedy
    for name, cut in (("short", 700), ("tail", -3), ("empty", 0)):
        path = broken(name) / "train-00002.arrow"
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(BadData, match="train-00002.arrow: not readable"):
            read(tmp_path / name)
    shutil.copy(foreign / "train-00002.arrow", broken("other") / "train-00002.arrow")
    with pytest.raises(BadData, match="train-00002.arrow: is shard 2 of train of another artifact"):
        read(tmp_path / "other")
    shutil.copy(good / "train-00001.arrow", broken("swapped") / "train-00002.arrow")
    with pytest.raises(BadData, match="train-00002.arrow: is shard 1 of train, expected shard 2"):
        read(tmp_path / "swapped")
    info = json.loads((good / "examples.json").read_text())
    for name, change, message in (
        ("rows", {"rows": info["shards"]["train"]["rows"] - 1}, "train-000.*examples.json"),
        ("index", {"shards": 3}, "examples.json: not readable, or without the index"),
    ):
        index = info["shards"]["train"] | change
        text = json.dumps(info | {"shards": info["shards"] | {"train": index}})
        (broken(name) / "examples.json").write_text(text)
        with pytest.raises(BadData, match=message):
            read(tmp_path / name)
    (broken("none") / "examples.json").unlink()
    with pytest.raises(BadData, match="examples.json"):
        read(tmp_path / "none")
    path = broken("documents") / "train-documents.arrow"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadData, match="train-documents.arrow: not readable"):
        assert ExampleReader(tmp_path / "documents", "train", 0).documents
    assert Documents(good / "train-documents.arrow").located


def test_tokens_that_look_like_separators_are_no_text() -> None:
    """A tokenizer whose unknown token is its end of text: documents and rows still count alike."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2, "b": 3}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "<eos>"])
    special = {"pad": 0, "eos": 1, "bos": 1}
    for sentences in (False, True):
        work = SliceWork(Tokenise(tokenizer.to_str(), 4, special, Layout(8), sentences=sentences))
        piece = read(work.shard(Slice(pa.array(["a b zzz a", "b", "", "zzz", "a zzz zzz"]), 0)))
        assert piece.stream is not None and piece.stream.ids.tolist().count(1) >= 4
        assert piece.document_tokens.tolist() == [3, 1, 0, 0, 1]
        assert piece.size == 22 and dict(zip(piece.tokens.tolist(), piece.counts.tolist(), strict=True))[2] == 3
