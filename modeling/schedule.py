"""How long and how fast to train: `LoopConfig`, and the learning rate and the batch as pure functions of the step.

Apart from `modeling.loop`, so that planning a run does not import torch.

A budget is in steps, tokens, FLOPs or minutes; a warm-up in steps, tokens or a share. `resolved` turns all of it into
steps and sequences, as soon as the length of a row is known; what is asked by step takes a loop that is resolved.
"""

from __future__ import annotations

import bisect
import math
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from modeling.config import Config, section
from modeling.errors import ConfigError
from modeling.guard import GuardConfig
from modeling.optimizers.settings import AdamW, AnyOptimizer

Schedule = Literal["linear", "cosine", "constant", "inverse-sqrt", "wsd"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Of matrix products; weights, gradients and the optimizer are fp32. `auto`: `modeling.precision.chosen`."""
BUDGETS = ("steps", "tokens", "flops", "wall_minutes")
WARMUPS = ("warmup_steps", "warmup_share", "warmup_tokens")
BATCH_WARMUPS = ("batch_warmup_sequences", "batch_warmup_tokens")


class LoopConfig(Config):
    """The mathematics of a training run; where it runs is not here (see `Runtime`)."""

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = (BUDGETS, WARMUPS, BATCH_WARMUPS)

    steps: int = Field(1000, ge=0, description="budget: optimizer steps; 0 where another budget is given")
    tokens: int = Field(0, ge=0, description="budget: places in the rows seen, padding included; 0: another")
    flops: float = Field(0, ge=0, description="budget: of forward and backward, as MFU counts them; 0: another")
    wall_minutes: float = Field(
        0, ge=0, description="budget: time; a trial of some steps fixes how many steps that is; 0: another"
    )
    batch_size: int = Field(32, ge=1, description="sequences per optimizer step, over all workers")
    batch_warmup_from: int = Field(0, ge=0, description="sequences of the first step; needs a batch warm-up")
    batch_warmup_sequences: int = Field(0, ge=0, description="sequences over which the batch grows to batch_size")
    batch_warmup_tokens: int = Field(0, ge=0, description="the same in tokens (GPT-3); not both")
    peak_lr: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(0, ge=0, description="warm-up of the learning rate to peak_lr")
    warmup_share: float = Field(0.0, ge=0, le=1, description="the same as a share of steps; one of the three")
    warmup_tokens: int = Field(0, ge=0, description="the same in tokens; one of the three")
    warmup_shape: Literal["linear", "constant"] = Field("linear", description="from 0, or at peak_lr already (T5)")
    schedule: Schedule = Field("linear", description="after warm-up; inverse-sqrt: peak_lr · √(warm-up / step)")
    decay_share: float = Field(0.1, gt=0, le=1, description="schedule=wsd: last steps, in which the rate falls")
    decay_shape: Literal["linear", "cosine", "sqrt"] = Field("linear", description="schedule=wsd: how; sqrt: 1 − √x")
    final_lr_fraction: float = Field(0.0, ge=0, le=1, description="learning rate at the end, or the least, / peak_lr")
    optimizer: AnyOptimizer = AdamW()
    clip_norm: float = Field(1.0, ge=0, description="largest global gradient norm; 0: no clipping")
    precision: Precision = Field(
        "fp32", description="of matrix products; auto: bf16 where the device multiplies it, else fp32"
    )
    log_every_steps: int = Field(10, ge=1)
    validate_every_steps: int = Field(0, ge=0, description="validation loss on the way; 0: only at the end")
    patience: int = Field(0, ge=0, description="stop early after so many validations that are no better; 0: never")
    min_delta: float = Field(0.0, ge=0, description="nats that a loss must be lower by for patience to begin anew")
    keep: Literal["last", "best"] = Field("last", description="weights to keep: after the last step, or the best ones")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of the weights' initialisation and of dropout")
    guard: GuardConfig = GuardConfig()

    @model_validator(mode="before")
    @classmethod
    def _another_budget(cls, values: Any) -> Any:
        """The default number of steps gives way to another budget."""
        if isinstance(values, dict) and "steps" not in values and any(values.get(name) for name in BUDGETS[1:]):
            return {**values, "steps": 0}
        return values

    @model_validator(mode="after")
    def _possible(self) -> LoopConfig:
        for names in self.one_of:
            given = [name for name in names if getattr(self, name)]
            if len(given) > 1:
                raise ConfigError(
                    f"{given[0]} and {given[1]} are both given", f"give one of {', '.join(names)}; set the other to 0"
                )
        if not any(getattr(self, name) for name in BUDGETS):
            raise ConfigError("no budget is given", f"give one of {', '.join(BUDGETS)}")
        if self.steps and self.warmup_steps > self.steps:
            raise ConfigError(
                f"warmup_steps {self.warmup_steps} is more than steps {self.steps}",
                "the learning rate would never reach its peak: lower warmup_steps",
            )
        if self.tokens and self.warmup_tokens > self.tokens:
            raise ConfigError(
                f"warmup_tokens {self.warmup_tokens} is more than tokens {self.tokens}",
                "the learning rate would never reach its peak: lower warmup_tokens",
            )
        ramp = any(getattr(self, name) for name in BATCH_WARMUPS)
        if ramp != bool(self.batch_warmup_from) or self.batch_warmup_from > self.batch_size:
            raise ConfigError(
                f"a batch warm-up has a first batch of at most batch_size {self.batch_size} and a length, "
                f"found batch_warmup_from {self.batch_warmup_from}",
                f"give batch_warmup_from and one of {', '.join(BATCH_WARMUPS)}, or none of them",
            )
        if not self.validate_every_steps and (self.patience or self.keep == "best"):
            name = f"patience {self.patience}" if self.patience else "keep=best"
            raise ConfigError(f"{name} needs validation on the way", "set validate_every_steps")
        return self


def resolved(loop: LoopConfig, *, row_tokens: int, flops_per_token: float | None = None) -> LoopConfig:
    """The same loop in steps and sequences; a budget in minutes stays (`with_rows` ends it).

    Args:
        row_tokens: places of a row, padding included; of both sides where there are two.
        flops_per_token: forward and backward, per place (padding costs nothing, so less where a row has some); None
            where the model has no formula.

    Raises:
        ConfigError: a budget in FLOPs without a formula; a warm-up that is longer than the budget.
    """
    if loop.batch_warmup_tokens:
        rows = math.ceil(loop.batch_warmup_tokens / row_tokens)
        loop = _changed(loop, batch_warmup_tokens=0, batch_warmup_sequences=rows)
    if loop.warmup_tokens:
        steps = steps_for(loop, loop.warmup_tokens / row_tokens)
        loop = _changed(loop, warmup_tokens=0, warmup_steps=steps)
    if loop.tokens:
        return with_rows(loop, loop.tokens / row_tokens)
    if loop.flops:
        if not flops_per_token:
            raise ConfigError("flops: there is no formula for this model", "give the budget in steps or tokens")
        return with_rows(loop, loop.flops / (flops_per_token * row_tokens))
    return loop


def with_rows(loop: LoopConfig, rows: float) -> LoopConfig:
    """The loop with a budget of so many sequences, as steps."""
    return _changed(loop, tokens=0, flops=0, wall_minutes=0, steps=max(1, steps_for(loop, rows)))


def _changed(loop: LoopConfig, **changes: Any) -> LoopConfig:
    found: LoopConfig = section(LoopConfig, {name: getattr(loop, name) for name in LoopConfig.model_fields} | changes)
    return found


# ---------------------------------------------------------------- batches


def batch_size_at(loop: LoopConfig, step: int) -> int:
    """Sequences of step `step` (0-based): batch_warmup_from, growing linearly with the sequences seen (GPT-3)."""
    return first_sample(loop, step + 1) - first_sample(loop, step)


def first_sample(loop: LoopConfig, step: int) -> int:
    """Sequences seen before step `step`: the number of its first one in the run's stream."""
    firsts = _ramp(loop.batch_warmup_from, loop.batch_size, loop.batch_warmup_sequences)
    if step < len(firsts):
        return firsts[step]
    return firsts[-1] + (step + 1 - len(firsts)) * loop.batch_size


def batch_warmup_steps(loop: LoopConfig) -> int:
    """Steps before the batch has its full size."""
    return len(_ramp(loop.batch_warmup_from, loop.batch_size, loop.batch_warmup_sequences)) - 1


def steps_for(loop: LoopConfig, rows: float) -> int:
    """The least number of steps that see so many sequences."""
    firsts = _ramp(loop.batch_warmup_from, loop.batch_size, loop.batch_warmup_sequences)
    if rows <= firsts[-1]:
        return bisect.bisect_left(firsts, rows)
    return len(firsts) - 1 + math.ceil((rows - firsts[-1]) / loop.batch_size)


@lru_cache(maxsize=8)
def _ramp(smallest: int, full: int, sequences: int) -> tuple[int, ...]:
    """First samples of the steps of a batch warm-up, and of the step after it."""
    firsts = [0]
    while firsts[-1] < sequences:
        firsts.append(firsts[-1] + smallest + (full - smallest) * firsts[-1] // sequences)
    return tuple(firsts)


# ---------------------------------------------------------------- learning rate


def warmup(loop: LoopConfig) -> int:
    """Steps of warm-up."""
    return loop.warmup_steps or round(loop.warmup_share * loop.steps)


def decay_start(loop: LoopConfig) -> int:
    """schedule=wsd: steps before the learning rate begins to fall. Up to there, a longer run does the same."""
    return max(warmup(loop), loop.steps - max(1, round(loop.decay_share * loop.steps)))


def learning_rate(loop: LoopConfig, step: int) -> float:
    """Learning rate of optimizer step `step` (0-based) of a resolved loop.

    Warm-up over w steps reaches the peak at step w − 1; decay ends just above the final value at the
    last step, so no step is spent on a learning rate of zero. inverse-sqrt is peak_lr · √(w / (step + 1)): with
    peak_lr 1/√w that is T5's 1/√max(step, w) (Raffel et al. 2020, section 3.1.2). wsd stays at the peak until the last
    `decay_share` of the steps (Hu et al. 2024).
    """
    warm = warmup(loop)
    if step < warm:
        return loop.peak_lr if loop.warmup_shape == "constant" else loop.peak_lr * (step + 1) / warm
    if loop.schedule == "inverse-sqrt":
        return loop.peak_lr * max(loop.final_lr_fraction, math.sqrt(max(1, warm) / (step + 1)))
    if loop.schedule == "constant":
        return loop.peak_lr
    shape: str = loop.schedule
    if loop.schedule == "wsd":
        warm, shape = decay_start(loop), loop.decay_shape
    done = max(0.0, (step - warm) / max(1, loop.steps - warm))
    left = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "sqrt": 1 - math.sqrt(done)}[shape]
    return loop.peak_lr * (loop.final_lr_fraction + (1 - loop.final_lr_fraction) * left)
