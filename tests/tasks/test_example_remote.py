"""Examples in an object store (moto's S3): shards come as they are read, into a cache that must evict; the stage's own
context and the reader, in several processes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tasks.example_reader
from cluster.errors import BadData
from cluster.store import Claim, Owner, Store
from pipelines import Pipeline, run
from tasks.example_reader import ExampleReader
from tasks.examples import MakeExamples
from tasks.ingest import Ingest
from tasks.ngram import NGramBaseline
from tasks.preview import preview
from tasks.tokenizer import TrainTokenizer
from tests.cluster.conftest import s3_server  # noqa: F401
from tests.tasks.test_example_shards import inputs, make, small  # noqa: F401

KEY = "0123456789abcdef" * 2


@pytest.fixture
def examples(
    s3_server: str,  # noqa: F811
    small: None,  # noqa: F811
    inputs: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, Path, Store, dict[str, Any]]:
    """The local folder, the folder that a stage on another machine sees, and the store with the manifest."""
    monkeypatch.setattr("cluster.store_base._temporary_base", lambda: tmp_path / "temporary")
    local = make(tmp_path / "local", inputs)
    store = Store(f"s3://triptych/examples-{tmp_path.name}")
    claim = store.claim(KEY, Owner.here("run", "session"))
    assert isinstance(claim, Claim)
    folder = store.attempt_folder(claim)
    for path in local.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = store.publish(claim, folder, {"later": list(MakeExamples.later)})
    folder = store.fetch(manifest, tmp_path / "cache", lazy=True)
    small_files = sum(path.stat().st_size for path in folder.iterdir())
    shard = (local / "train-00000.arrow").stat().st_size
    monkeypatch.setenv("TRIPTYCH_CACHE_GB", str((small_files + 6 * shard) / 1e9))
    return local, folder, store, manifest


def shards_in(cache: Path) -> set[str]:
    found: set[str] = set()
    for folder in os.listdir(cache):
        if len(folder) == 64:  # a copy; it may be evicted while this looks
            with contextlib.suppress(FileNotFoundError):
                found |= {name for name in os.listdir(cache / folder) if name.startswith("train-0")}
    return found


def test_the_same_samples_through_a_cache_that_evicts(examples: Any, tmp_path: Path) -> None:
    local, folder, _, _ = examples
    assert sorted(path.name for path in folder.iterdir()) == ["examples.json", "later.json", "vocabulary.arrow"]
    near, far = ExampleReader(local, "train", 3), ExampleReader(folder, "train", 3)
    assert near.file.index.shards >= 12 and far.order.windows > 3
    most = 0
    for first in range(0, 2 * len(near), 16):
        pairs = far.indices(first, 16)
        np.testing.assert_array_equal(pairs, near.indices(first, 16))
        found, expected = far.batch(pairs), near.batch(pairs)
        for column in expected:
            np.testing.assert_array_equal(found[column], expected[column])
        most = max(most, len(shards_in(tmp_path / "cache")))
    assert 3 <= most <= 8, "six that fit, and what comes while room is made"
    window = {far.file._name(n) for n in far.order.shards(far._near[-1][1], far._near[-1][0])}
    assert window <= far.file.files.held
    assert far.documents.of_row(7) == near.documents.of_row(7) != []
    validation = ExampleReader(folder, "validation", 0)
    rows = np.arange(len(validation))
    np.testing.assert_array_equal(
        validation.rows("tokens", rows), ExampleReader(local, "validation", 0).rows("tokens", rows)
    )


def test_reading_everything_in_order_holds_few_shards(examples: Any) -> None:
    local, folder, _, _ = examples
    far = ExampleReader(folder, "train", 3)
    rows = np.arange(len(far))
    found = np.concatenate([far.rows("tokens", rows[first : first + 7]) for first in range(0, len(rows), 7)])
    np.testing.assert_array_equal(found, ExampleReader(local, "train", 3).rows("tokens", rows))
    assert len(far.file.files.held) <= far.file.most_open


def _rank(folder: Path, rank: int, answers: Any) -> None:
    tasks.example_reader.WINDOW_SHARDS = 2  # a process of its own
    reader = ExampleReader(folder, "train", 3)
    tokens = [reader.rows("tokens", reader.indices(8 * step + 4 * rank, 4)[:, 1]) for step in range(len(reader) // 8)]
    answers.put((rank, np.concatenate(tokens).tobytes()))


def test_ranks_of_a_machine_share_the_cache(examples: Any) -> None:
    local, folder, _, _ = examples
    context = multiprocessing.get_context("spawn")
    answers: Any = context.SimpleQueue()
    children = [context.Process(target=_rank, args=(folder, rank, answers)) for rank in (0, 1)]
    for child in children:
        child.start()
    found = dict(answers.get() for _ in children)
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    near = ExampleReader(local, "train", 3)
    for rank in (0, 1):
        rows = [near.rows("tokens", near.indices(8 * s + 4 * rank, 4)[:, 1]) for s in range(len(near) // 8)]
        assert found[rank] == np.concatenate(rows).tobytes()


def test_a_damaged_shard_in_the_store(examples: Any) -> None:
    _, folder, store, manifest = examples
    name = "train-00002.arrow"
    data = store._files.read(f"{manifest['folder']}/{name}")
    store._files.write(f"{manifest['folder']}/{name}", data[:-1] + bytes([data[-1] ^ 1]))
    reader = ExampleReader(folder, "train", 3)
    with pytest.raises(BadData, match=f"damaged: {name}: checksum"):
        reader.rows("tokens", np.arange(len(reader)))


def test_a_look_inside_fetches_little(examples: Any, tmp_path: Path) -> None:
    _, folder, _, _ = examples
    assert any("MASK" in line for line in preview("examples", folder))
    assert len(shards_in(tmp_path / "cache")) <= 2


def test_stages_of_a_run_read_examples_from_the_store(
    s3_server: str,  # noqa: F811
    small: None,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through the engine: the same artifacts as on a local store."""
    monkeypatch.setattr("cluster.store_base._temporary_base", lambda: tmp_path / "temporary")
    texts = [f"The river {n} runs by the mountain of {n * 7} and the layer of the gradient." for n in range(300)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = Ingest(source=str(tmp_path / "text.jsonl"), validation_share=0.1)
    tokenizer = TrainTokenizer(corpus=corpus, vocab_size=200)
    made = MakeExamples(corpus=corpus, tokenizer=tokenizer, length_tokens=32)
    settings = {"tracking": "off", "address": "inline"}
    results = []
    for store in (str(tmp_path / "store"), f"s3://triptych/run-{tmp_path.name}"):
        monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
        result = run(Pipeline(NGramBaseline(examples=made)), store=store, **settings)
        assert result.state == "done", result.record.status
        results.append({name: manifest["content"] for name, manifest in result.artifacts.items()})
        assert result.artifacts["examples"]["later"] == list(MakeExamples.later)
    assert results[0] == results[1]
    assert list((tmp_path / "cache" / "artifacts").glob("*/later.json")), "the baseline's stage read shard by shard"
