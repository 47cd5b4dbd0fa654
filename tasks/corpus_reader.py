"""Reading a corpus artifact: its shards in order, a few MB of text at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def corpus_facts(folder: Path) -> dict[str, Any]:
    """`corpus.json` of a corpus folder."""
    facts: dict[str, Any] = json.loads((folder / "corpus.json").read_text())
    return facts


def split_bytes(folder: Path, split: str) -> int:
    """Bytes of UTF-8 text in a split."""
    return int(corpus_facts(folder)["splits"][split]["bytes"])


def read_batches(folder: Path, split: str, columns: Sequence[str] = ("text",), rows: int = 2048) -> Iterator[Any]:
    """Arrow record batches of at most `rows` documents, in the order of the corpus."""
    import pyarrow.parquet as pq

    for shard in sorted(folder.glob(f"{split}-*.parquet")):
        with pq.ParquetFile(shard, pre_buffer=False) as file:
            yield from file.iter_batches(rows, columns=list(columns))


def read_texts(folder: Path, split: str, rows: int = 2048) -> Iterator[list[str]]:
    """Texts of a split, in order, as lists of at most `rows`."""
    for batch in read_batches(folder, split, rows=rows):
        yield batch.column(0).to_pylist()
