"""10,000 damaged files of every format and compression: each ends in documents or in one clear error, in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks.damaged import read_damaged


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_damaged_files(tmp_path: Path, seed: int) -> None:
    found = read_damaged(tmp_path, 1000, seed=1000 + seed)
    for key in sorted(found):
        print(f"{key}: {found[key]}")
    assert sum(found.values()) == 1000
