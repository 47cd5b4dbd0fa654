"""Back from a checkpoint: the newest that is whole, undamaged and of this model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from modeling.checkpoints import layout
from modeling.checkpoints.capture import restore
from modeling.checkpoints.universal import resume_elsewhere
from modeling.errors import ConfigError
from modeling.step import Stepper


def resume(
    stepper: Stepper, folder: Path, fits: Mapping[str, Any], note: Callable[[str], None]
) -> tuple[int, Mapping[str, Any]] | None:
    """Load the newest checkpoint that can be used; (steps done, progress), or None where there is none.

    Every rank calls it, and all come to the same end. What cannot be used is named through `note` (of rank 0), and
    removed once an earlier one is in use, so that it counts for nothing when the policy looks at what is kept.

    Raises:
        ConfigError: the ranks do not share the folder, or the state cannot be divided as the placement asks.
    """
    first = stepper.rank == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        layout.clear_partial(folder)
    found = _from_first(stepper, layout.steps(folder) if first else None)
    _shared(stepper, folder)
    for step in reversed(found):
        path = layout.final(folder, step)
        record, problem = _from_first(stepper, _record(path) if first else None)
        problem = problem or _damage(stepper, path, record["files"])
        if problem is None and record["fits"].get("parameters") != fits["parameters"]:
            problem = f"it is of a model of {record['fits'].get('parameters')} parameters, not {fits['parameters']}"
        if problem is not None:
            note(f"{path.name}: {problem}; not used")
            continue
        changed = [name for name, value in fits.items() if record["fits"].get(name) != value]
        differences = ", ".join(f"{name} {record['fits'].get(name)} → {fits[name]}" for name in changed)
        if not changed or (changed == ["world_size"] and fits["zero_stage"] == 0):
            if changed:
                note(f"{path.name} was made with another placement ({differences}); every worker has all of its state")
            if not restore(stepper.engine, path):
                note(f"{path.name}: DeepSpeed could not load it; not used")
                continue
        else:
            note(f"{path.name} was made with another placement ({differences}); its state is divided anew")
            resume_elsewhere(stepper, path, record["fits"])
        if first:
            for later in found[found.index(step) + 1 :]:
                shutil.rmtree(layout.final(folder, later), ignore_errors=True)
        return step, record["progress"]
    return None


def take_back(folder: Path, incidents: Sequence[Mapping[str, Any]], note: Callable[[str], None]) -> None:
    """Remove the checkpoints of steps that a rollback took back (`modeling.guard`); on rank 0.

    A checkpoint carries the incidents up to it: one that lacks an incident which went back to before it
    holds steps that are to be made anew.
    """
    for step in layout.steps(folder) if incidents else []:
        path = layout.final(folder, step)
        record, _ = _record(path)
        known = len(record["progress"]["incidents"]) if record is not None else 0
        if record is not None and any(step > incident["to_step"] for incident in incidents[known:]):
            note(f"{path.name}: its last steps were rolled back; removed")
            shutil.rmtree(path, ignore_errors=True)


def _record(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    try:
        return layout.read_note(path), None
    except (OSError, ValueError) as error:
        return None, f"no readable {layout.NOTE} ({error})"


def _damage(stepper: Stepper, path: Path, files: Mapping[str, dict[str, int]]) -> str | None:
    """What is wrong with the files; each rank reads a share of them."""
    own = [name for number, name in enumerate(sorted(files)) if number % stepper.world_size == stepper.rank]
    found = next(filter(None, (layout.damage(path, name, files[name]) for name in own)), None)
    if stepper.world_size > 1:
        everyone: list[str | None] = [None] * stepper.world_size
        dist.all_gather_object(everyone, found)
        found = next(filter(None, everyone), None)
    return found


def _shared(stepper: Stepper, folder: Path) -> None:
    """Raise ConfigError where a rank does not see the folder that rank 0 has made."""
    everyone: list[bool] = [folder.is_dir()] * stepper.world_size
    if stepper.world_size > 1:
        dist.all_gather_object(everyone, everyone[0])
    if not all(everyone):
        raise ConfigError(
            f"the workers do not share the checkpoints' folder {folder} (rank {everyone.index(False)} does not see it)",
            "put the store on a file system that all nodes mount, or keep the workers of a stage on one node",
        )


def _from_first(stepper: Stepper, value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if stepper.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=stepper.device)
    return box[0]
