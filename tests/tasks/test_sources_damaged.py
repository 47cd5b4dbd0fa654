"""Damaged files of every format and compression end in documents or in one clear error. More: tests/soak."""

from __future__ import annotations

from pathlib import Path

from tests.tasks.damaged import PACKED, read_damaged, sound
from tests.tasks.reading import read


def test_the_undamaged_files_are_read(tmp_path: Path) -> None:
    for kind, data in sound().items():
        for pack, packed in PACKED.items():
            if kind == "parquet" and pack:
                continue
            (tmp_path / f"{kind}{pack}").write_bytes(packed(data))
            found, counts = read(kind.split("-")[0], tmp_path / f"{kind}{pack}")
            assert found and not counts.bad, kind


def test_200_damaged_files(tmp_path: Path) -> None:
    found = read_damaged(tmp_path, 200, seed=7)
    outcomes = {key.rsplit(" ", 1)[1] for key in found}
    assert sum(found.values()) == 200 and outcomes == {"read", "BadData"}
