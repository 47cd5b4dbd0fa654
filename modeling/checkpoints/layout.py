"""The folder of a checkpoint, and how it is checked.

    step-00000123/
        complete.json   step, the loop's progress, what made it, and size and CRC-32 of every other file; written last
        model/          weights in safetensors and what else makes them a usable model (config, tokenizer)
        state/          DeepSpeed's shards of the rest, one or two per rank

It is written as `.partial-00000123` and gets its name by a rename once all ranks' files and `complete.json` are
on the disk. So a folder with that name is whole; it is looked at byte by byte all the same before it is used,
since disks and networks lie. CRC-32 finds every burst of errors up to 32 bits and misses one in 2³² of others; zlib
computes it at memory speed, several times as fast as any of hashlib's digests, which need guard against nobody here.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

NOTE, MODEL, STATE = "complete.json", "model", "state"
_CHUNK = 8 << 20
_NAME = re.compile(r"^step-(\d{8,})$")


def final(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def partial(folder: Path, step: int) -> Path:
    return folder / f".partial-{step:08d}"


def part_of_rank(folder: Path, rank: int) -> Path:
    """Where a rank lists its files, inside a partial checkpoint."""
    return folder / f"rank-{rank:05d}.json"


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in the folder, ascending."""
    found = [_NAME.match(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in found if match)


def clear_partial(folder: Path, but: Path | None = None) -> None:
    """Remove what crashes and full disks left half written."""
    for path in folder.glob(".partial-*"):
        if path != but:
            shutil.rmtree(path, ignore_errors=True)


def read_note(path: Path) -> dict[str, Any]:
    """A checkpoint's `complete.json`. Raises OSError or ValueError where it cannot be read."""
    note = json.loads((path / NOTE).read_text(encoding="utf-8"))
    if not isinstance(note, dict) or not {"step", "progress", "fits", "files"} <= note.keys():
        raise ValueError("it is not a checkpoint's note")
    return note


def describe(path: Path) -> dict[str, int]:
    """{size, crc32} of a file's bytes."""
    size = crc = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return {"size": size, "crc32": crc}


def damage(path: Path, name: str, expected: dict[str, int]) -> str | None:
    """What is wrong with a file of the checkpoint `path`, in words; None where it is as it was written."""
    file = path / name
    try:
        size = file.stat().st_size
        if size != expected["size"]:
            return f"{name} has {size} bytes, expected {expected['size']}"
        if describe(file) != expected:
            return f"{name} has other bytes than were written (CRC-32 differs)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"
    return None
