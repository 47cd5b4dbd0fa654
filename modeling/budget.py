"""A budget in minutes becomes a number of steps: by a trial of some steps, once.

The trial trains a copy that is thrown away, so the run itself begins as any other. Its outcome is written beside the
checkpoints and stands in each of them: a run that goes on keeps its schedule, however fast the machine is by then.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from modeling.engine import start_engine
from modeling.schedule import LoopConfig, batch_size_at, batch_warmup_steps, with_rows
from modeling.step import Batch, Stepper

TRIAL_STEPS = 8
NOT_COUNTED = 3
"""The first steps of a trial: memory is taken then, kernels are chosen."""


def within_minutes(
    model: nn.Module,
    loop: LoopConfig,
    next_batch: Callable[[int], Batch],
    engine_config: Mapping[str, Any],
    device: torch.device,
    folder: Path | None,
    note: Callable[[str], None],
) -> LoopConfig:
    """`loop` with steps for its budget in minutes; itself where it has another one. Every rank calls it.

    The minutes are of training steps; the trial, validation and checkpoints come on top.
    """
    if not loop.wall_minutes:
        return loop
    file = folder / "budget.json" if folder is not None else None
    if file is not None and file.is_file():
        return with_rows(loop, json.loads(file.read_text(encoding="utf-8"))["rows"])
    rows_per_second = _mean_over_ranks(_rate(model, loop, next_batch, engine_config, device), device)
    rows = rows_per_second * 60 * loop.wall_minutes
    planned = with_rows(loop, rows)
    if file is not None and dist.get_rank() == 0:
        partial = file.with_suffix(".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"rows": rows, "steps": planned.steps}), encoding="utf-8")
        partial.replace(file)
    note(f"{loop.wall_minutes:g} minutes at {rows_per_second:.1f} sequences/s: {planned.steps} steps")
    return planned


def _rate(
    model: nn.Module,
    loop: LoopConfig,
    next_batch: Callable[[int], Batch],
    engine_config: Mapping[str, Any],
    device: torch.device,
) -> float:
    """Sequences a second of the whole group, with batches of full size."""
    trial = copy.deepcopy(model)
    engine = start_engine(trial, loop, engine_config, device)
    try:
        stepper = Stepper(engine, trial, loop, engine_config, dist.get_rank(), dist.get_world_size(), device)
        first, rows, began = batch_warmup_steps(loop), 0, 0.0
        for number in range(TRIAL_STEPS):
            if number == NOT_COUNTED:
                began = time.monotonic()
            stepper.step(first + number, first + number, next_batch(first + number), 0.0, [], lambda loss, norm: True)
            rows += batch_size_at(loop, first + number) if number >= NOT_COUNTED else 0
        return rows / (time.monotonic() - began)  # a step ends with a figure from the device
    finally:
        engine.destroy()


def _mean_over_ranks(value: float, device: torch.device) -> float:
    total = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()
