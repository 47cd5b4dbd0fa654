"""When training state is written, and which of it is kept.

Apart from the rest, so that planning a run does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from modeling.config import Config


class CheckpointPolicy(Config):
    """Placement, never part of a key: no checkpoint changes what is computed."""

    checkpoint_every_seconds: float = Field(60, gt=0, description="wall time between training checkpoints")
    checkpoint_keep_last: int = Field(2, ge=1, description="newest checkpoints kept")
    checkpoint_keep_every_steps: int = Field(
        0, ge=0, description="also write one at every multiple of so many steps, and keep all of those; 0: none"
    )
    checkpoint_keep_best: bool = Field(
        False, description="also write one where the validation loss is the lowest so far, and keep the best"
    )
    checkpoint_background: bool = Field(True, description="write while training goes on; otherwise training waits")


def kept(policy: CheckpointPolicy, losses: Mapping[int, float | None]) -> set[int]:
    """Which checkpoints stay.

    Args:
        losses: {step: its validation loss, None where there was none} of all whole checkpoints.
    """
    steps = sorted(losses)
    stay = set(steps[-policy.checkpoint_keep_last :])
    if every := policy.checkpoint_keep_every_steps:
        stay.update(step for step in steps if step % every == 0)
    known = {step: loss for step, loss in losses.items() if loss is not None}
    if policy.checkpoint_keep_best and known:
        stay.add(min(known, key=lambda step: (known[step], step)))
    return stay
