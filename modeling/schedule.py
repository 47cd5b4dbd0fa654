"""How long and how fast to train: `LoopConfig` and the learning rate as a pure function of the step.

Apart from `modeling.loop`, so that planning a run does not import torch.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from modeling.config import Config
from modeling.errors import ConfigError


class LoopConfig(Config):
    """The mathematics of a training run; where it runs is not here (see `Runtime`)."""

    steps: int = Field(1000, ge=1, description="optimizer steps")
    batch_size: int = Field(32, ge=1, description="sequences per optimizer step, over all workers")
    peak_lr: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(0, ge=0, description="linear warm-up from 0 to peak_lr")
    warmup_share: float = Field(0.0, ge=0, le=1, description="the same as a share of steps; not both")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    final_lr_fraction: float = Field(0.0, ge=0, le=1, description="learning rate at the end / peak_lr")
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.01, ge=0, description="decoupled; not on norms, biases and other vectors")
    clip_norm: float = Field(1.0, ge=0, description="largest global gradient norm; 0: no clipping")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of matrix products; master weights are fp32"
    )
    log_every_steps: int = Field(10, ge=1)
    validate_every_steps: int = Field(0, ge=0, description="validation loss on the way; 0: only at the end")
    patience: int = Field(0, ge=0, description="stop early after so many validations that are no better; 0: never")
    min_delta: float = Field(0.0, ge=0, description="what a validation loss must be lower by to be better, nats")
    keep: Literal["last", "best"] = Field("last", description="weights to keep: after the last step, or the best ones")
    seed: int = Field(0, ge=0, description="of the weights' initialisation and of dropout")

    @model_validator(mode="after")
    def _possible(self) -> LoopConfig:
        if self.warmup_steps > self.steps:
            raise ConfigError(
                f"warmup_steps {self.warmup_steps} is more than steps {self.steps}",
                "the learning rate would never reach its peak: lower warmup_steps",
            )
        if self.warmup_steps and self.warmup_share:
            raise ConfigError("warmup_steps and warmup_share are both given", "give one of them; set the other to 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas {self.betas}: expected two numbers from 0 to below 1")
        if not self.validate_every_steps and (self.patience or self.keep == "best"):
            name = f"patience {self.patience}" if self.patience else "keep=best"
            raise ConfigError(f"{name} needs validation on the way", "set validate_every_steps")
        return self


def warmup(loop: LoopConfig) -> int:
    """Steps of linear warm-up."""
    return loop.warmup_steps or round(loop.warmup_share * loop.steps)


def learning_rate(loop: LoopConfig, step: int) -> float:
    """Learning rate of optimizer step `step` (0-based).

    Warm-up over w steps reaches the peak at step w − 1; decay ends just above the final value at the
    last step, so no step is spent on a learning rate of zero.
    """
    warm = warmup(loop)
    if step < warm:
        return loop.peak_lr * (step + 1) / warm
    if loop.schedule == "constant":
        return loop.peak_lr
    done = (step - warm) / max(1, loop.steps - warm)
    left = 1 - done if loop.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return loop.peak_lr * (loop.final_lr_fraction + (1 - loop.final_lr_fraction) * left)
