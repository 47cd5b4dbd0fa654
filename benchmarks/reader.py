"""Samples by their place: how long a reader takes for the i-th sample of an epoch, and for a batch of 64.

    python -m benchmarks.reader

Rows of 128 random tokens of a vocabulary of 32,000, written in a temporary folder by the project's own writer: 2 shards
(one window, permuted as a whole) and 64 shards (4 windows). Places are spread over the epoch; the files are in the page
cache. Medians over the calls. `sequence`: place to row to tokens. `batch`: with BERT's masks drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tasks.example_files
from benchmarks.measuring import circumstances, record, versions
from tasks.example_files import ExampleWriter
from tasks.example_reader import ExampleReader
from tasks.objectives.base import Vocabulary
from tasks.objectives.settings import Masked
from tasks.vocabulary import FILE, write_vocabulary

VOCABULARY, LENGTH, BLOCK = 32_000, 128, 8192
PLACES = 7919  # prime: calls are that far apart


def write(folder: Path, rows: int, shards: int) -> ExampleReader:
    """Examples of `rows` rows in so many shards, opened."""
    special = np.zeros(VOCABULARY, dtype=bool)
    special[:5] = True
    roles = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": 2, "eos": 3}
    tokens = tuple(map(str, range(VOCABULARY)))
    write_vocabulary(folder / FILE, Vocabulary(VOCABULARY, roles, special, special, tokens))
    tasks.example_files.SHARD_BYTES = rows // shards * LENGTH * 2
    writer = ExampleWriter(folder, "train", BLOCK, VOCABULARY, np.uint16)
    rng = np.random.default_rng(0)
    for _ in range(rows // BLOCK):
        writer.add({"tokens": rng.integers(5, VOCABULARY, (BLOCK, LENGTH), dtype=np.uint16)})
    info = {
        "objective": Masked(kind="mlm").model_dump(mode="json"),
        "masking": "dynamic",
        "length_tokens": LENGTH,
        "special_tokens": roles,
        "seed": 0,
        "copies": {"train": 1},
        "shards": {"train": writer.close()._asdict()},
    }
    (folder / "examples.json").write_text(json.dumps(info))
    return ExampleReader(folder, "train", 7)


def microseconds(work: Callable[[int], object], calls: int) -> float:
    """Median of so many calls, each with another place; a tenth of them before, to warm up."""
    times = []
    for number in range(-(calls // 10), calls):
        began = time.perf_counter()
        work(abs(number) * PLACES)
        if number >= 0:
            times.append(time.perf_counter() - began)
    return round(statistics.median(times) * 1e6, 1)


def measure(rows: int, shards: int, calls: int) -> dict[str, Any]:
    """Figures of a split, in microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        reader = write(Path(folder), rows, shards)
        near = len(reader) - 64
        return {
            "rows": len(reader),
            "shards": reader.file.index.shards,
            "windows": reader.order.windows,
            "sequence": microseconds(lambda p: reader.rows("tokens", np.array([reader.row(3, p % near)])), calls),
            "batch of 1": microseconds(lambda p: reader.batch(reader.indices(p % near, 1)), calls // 4),
            "sequences of 64": microseconds(lambda p: reader.rows("tokens", reader.indices(p % near, 64)[:, 1]), calls),
            "batch of 64": microseconds(lambda p: reader.batch(reader.indices(p % near, 64)), calls // 4),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1 << 21, help="rows of 128 tokens: 256 bytes each")
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    call = parser.parse_args()
    values: dict[str, Any] = {**circumstances(), "versions": versions("numpy", "pyarrow", "triptych")}
    for shards in (2, 64):
        values[f"{shards} shards"] = measure(call.rows, shards, call.calls)
        print(f"{shards} shards: {values[f'{shards} shards']}")
    if not call.dry:
        record("cpu", values, "reader.json")


if __name__ == "__main__":
    main()
