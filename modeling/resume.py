"""Training state on disk: whole or absent.

A checkpoint is a folder `step-00000123`: DeepSpeed's shards in `state/`, the metric history, and
`complete.json`, which is written last, inside a folder that gets its name only then. So a folder with
that name is whole; it is also looked at file by file before it is used, since a disk may lie.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

KEEP = 2
STATE = "state"


def save_checkpoint(engine: Any, folder: Path, step: int, progress: Mapping[str, Any], fits: Mapping[str, Any]) -> None:
    """Write the engine's state after `step` steps; every rank calls it.

    Args:
        progress: JSON values the loop needs to go on (history, counters).
        fits: JSON values that must be equal for the state to be loadable (world size, ZeRO stage, …).
    """
    partial, final = folder / f".partial-{step:08d}", folder / f"step-{step:08d}"
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(partial), tag=STATE, save_latest=False)
    if dist.get_rank() == 0:
        files = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
        note = {"step": step, "progress": progress, "fits": fits, "files": files}
        with (partial / "complete.json").open("w", encoding="utf-8") as file:
            json.dump(note, file, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in sorted(folder.glob("step-*"))[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
    dist.barrier()


def load_checkpoint(
    engine: Any, folder: Path, fits: Mapping[str, Any], log: Callable[[str], None]
) -> tuple[int, Mapping[str, Any]] | None:
    """Load the newest checkpoint that is whole and fits; (steps done, progress), or None where there is none.

    Checkpoints that cannot be used are named through `log`. Every rank calls it and sees the same files.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        note = _whole(path, log)
        if note is None:
            continue
        changed = [name for name, value in fits.items() if note["fits"].get(name) != value]
        if changed:
            differences = ", ".join(f"{name} {note['fits'].get(name)} → {fits[name]}" for name in changed)
            log(f"{path.name} was made with another placement ({differences}); its optimizer state is not used")
            continue
        loaded, _ = engine.load_checkpoint(str(path), tag=STATE)
        if loaded is None:
            log(f"{path.name}: DeepSpeed could not load it")
            continue
        return int(note["step"]), note["progress"]
    return None


def _whole(path: Path, log: Callable[[str], None]) -> dict[str, Any] | None:
    try:
        note = json.loads((path / "complete.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log(f"{path.name}: no readable complete.json ({error}); not used")
        return None
    for name, size in note["files"].items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            log(f"{path.name}: {name} has {found} bytes, expected {size}; not used")
            return None
    return note
