"""Reads sources as Ingest does, without writing a corpus: what tests of the readers share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from cluster.files import File, listing
from tasks.ingest import _Counts
from tasks.sources import SOURCES, base, columnar, lines, text
from tasks.sources.base import ReadOptions
from tasks.sources.batches import read_part

WORDS = ["the", "of", "and", "corpus", "model", "token", "layer", "weight", "gradient", "river", "mountain"]


def texts(count: int, seed: int = 0, longest: int = 60) -> list[str]:
    """Texts of 5 to `longest` words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, longest))) for _ in range(count)]


def read_files(kind: str, files: list[File], **options: Any) -> tuple[list[dict[str, Any]], _Counts]:
    """(documents, counts) of files in format `kind`; raises BadData as Ingest does."""
    given = ReadOptions(**options)
    counts = _Counts(given.max_bad_records)
    found: list[dict[str, Any]] = []
    for part in SOURCES.load(kind)().parts(files, given):
        for batch in read_part(kind, given, 0.1, part):
            found += counts.add(part, batch).select(["id", "text", "source", "meta"]).to_pylist()
    return found, counts


def read(kind: str, source: Path | str, **options: Any) -> tuple[list[dict[str, Any]], _Counts]:
    """As `read_files`, of a source as a user names it."""
    return read_files(kind, listing(str(source)), **options)


def small_parts(monkeypatch: pytest.MonkeyPatch, part_bytes: int, block_bytes: int = 0) -> None:
    """Cut files into parts of `part_bytes`, and read them in blocks of `block_bytes`, so that small files show it."""
    for module in (base, text, columnar):
        monkeypatch.setattr(module, "PART_BYTES", part_bytes)
    if block_bytes:
        monkeypatch.setattr(lines, "_BLOCK", block_bytes)
