"""One optimizer step on a DeepSpeed engine: the exact loss of a global batch, whatever its split.

The loss of a step is Σ losses / Σ labels over all ranks and all micro-batches, for each of a model's losses by
itself (`parts`: they have counts and weights of their own). DeepSpeed averages gradients over ranks and divides by
the accumulation steps, so each micro-batch passes `weight · local sum · world · accumulation / global count`; the
counts are all-reduced before the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from modeling.errors import NonFiniteLoss
from modeling.heads.base import parts_of
from modeling.precision import LossScale
from modeling.schedule import LoopConfig, batch_size_at, first_sample
from modeling.step_clock import StepClock

Batch = dict[str, np.ndarray]
SAMPLE_IDS = "sample_ids"
"""Optional key of a batch, int64 [B]: names its rows in NonFiniteLoss; the model never sees it."""


@dataclass(frozen=True)
class Stepped:
    """A step's global figures, equal on all ranks."""

    sums: list[float]
    """Σ loss of each part, nats."""
    counts: list[float]
    """Labels of each part."""
    tokens: float
    grad_norm: float
    skipped: bool
    """The gradients overflowed fp16: no weight has changed."""
    flags: list[float]
    """How many ranks raised each of the flags they came with."""


def count_tokens(batch: Mapping[str, Tensor]) -> int:
    """Tokens that a batch lets a model see, padding excluded; of both sides where there are two."""
    count = 0
    for ids, mask in (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask")):
        if mask in batch:
            count += int(batch[mask].sum())
        elif ids in batch:
            count += batch[ids].numel()
    return count


def rank_rows(batch_size: int, rank: int, world_size: int) -> range:
    """Rows of the global batch that `rank` works on: contiguous, sizes differing by one at most."""
    return range(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)


class Stepper:
    """Makes steps on an engine; every rank of the group calls it with its own rows."""

    def __init__(
        self,
        engine: Any,
        model: nn.Module,
        loop: LoopConfig,
        engine_config: Mapping[str, Any],
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self.engine, self.model, self.loop, self.device = engine, model, loop, device
        self.rank, self.world_size = rank, world_size
        self.accumulation = int(engine_config["gradient_accumulation_steps"])
        self.micro_batch = int(engine_config["train_micro_batch_size_per_gpu"])
        self.zero_stage = int(engine_config["zero_optimization"]["stage"])
        self.parts = parts_of(model)
        self.loss_scale = LossScale() if loop.precision == "fp16" else None
        self.clock = StepClock(device)

    def step(
        self,
        step: int,
        rows: Batch,
        learning_rate: float,
        flags: list[bool],
        around_update: AbstractContextManager[None] | None = None,
    ) -> Stepped:
        """Forward, backward and update on the global batch of `step` (0-based).

        Args:
            rows: this rank's rows of it.
            flags: what this rank wants all to know; they travel with the loss, in one all-reduce.
            around_update: entered when gradients are whole, left when the weights are new.

        Raises:
            NonFiniteLoss: the loss or the gradient norm is NaN or infinite, and no loss scale is at fault.
        """
        self.clock.mark("other")
        sample_ids = rows.get(SAMPLE_IDS)
        batch = {
            name: torch.from_numpy(np.ascontiguousarray(a)).to(self.device)
            for name, a in rows.items()
            if name != SAMPLE_IDS
        }
        counts = self.model.count(batch).double().reshape(-1).tolist()
        *counts, tokens = self._sum_over_ranks(*counts, float(count_tokens(batch)))
        sums = self._backward(step, batch, counts)
        found = self._sum_over_ranks(*sums, *map(float, flags))
        sums, raised = list(found[: len(sums)]), list(found[len(sums) :])
        if not all(map(math.isfinite, sums)):
            raise NonFiniteLoss(step, self._samples(step, sample_ids))
        with around_update or nullcontext():
            self.clock.mark("optimizer")
            grad_norm = self._update(learning_rate)
            self.clock.mark("other")
        skipped = not math.isfinite(grad_norm)
        if skipped and (self.loss_scale is None or self.loss_scale.scale <= 1):
            raise NonFiniteLoss(step, self._samples(step, sample_ids))
        if self.loss_scale is not None:
            self.loss_scale.update(skipped)
        return Stepped(sums, counts, tokens, grad_norm, skipped, raised)

    def _backward(self, step: int, batch: dict[str, Tensor], counts: list[float]) -> list[float]:
        """Forward and backward of all micro-batches; this rank's sums of losses."""
        rows = next(iter(batch.values())).shape[0]
        micros = self._micro_batches(step)
        # DeepSpeed divides by the accumulation of full batches, also where a step has fewer.
        factor = self.world_size * self.accumulation * self._begin_scaling()
        scale = torch.tensor(
            [weight * factor / max(count, 1) for (_, weight), count in zip(self.parts, counts, strict=True)],
            dtype=torch.float32,
            device=self.device,
        )
        total = torch.zeros(len(counts), dtype=torch.float64, device=self.device)
        for micro in range(micros):
            low, high = rows * micro // micros, rows * (micro + 1) // micros
            # A rank with fewer rows than micro-batches still takes part in every backward, with weight 0.
            part = {name: value[low : max(high, low + 1)] for name, value in batch.items()}
            # Dropout's masks: a function of seed, step, rank and micro-batch, nothing that went before.
            torch.manual_seed(_mix(self.loop.seed, step, self.rank, micro))
            self.engine.set_gradient_accumulation_boundary(micro + 1 == micros)
            self.clock.mark("forward")
            loss, loss_sum = self.engine(part, scale if high > low else torch.zeros_like(scale))
            self.clock.mark("backward")
            self.engine.backward(loss)
            self.clock.mark("other")
            if high > low:
                total += loss_sum.double()
            if micro + 1 < micros:
                self.engine.step()  # DeepSpeed's own counter: updates nothing before the last micro-batch
        return [float(value) for value in total.tolist()]

    def _begin_scaling(self) -> float:
        """What this step's loss is multiplied by here; ZeRO's optimizers do it themselves, and divide again."""
        if self.loss_scale is None:
            return 1.0
        if self.zero_stage == 0:
            return self.loss_scale.scale
        self.engine.optimizer.loss_scale = self.loss_scale.scale
        return 1.0

    def _micro_batches(self, step: int) -> int:
        """Micro-batches of a step, of the configured size at most; fewer while the batch warms up."""
        rows = -(-batch_size_at(self.loop, step) // self.world_size)
        return min(self.accumulation, -(-rows // self.micro_batch))

    def _update(self, learning_rate: float) -> float:
        """The optimizer's step; the global gradient norm before clipping, not finite where gradients are not."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        if self.zero_stage == 0:
            if self.loss_scale is not None:
                for parameter in self.model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.div_(self.loss_scale.scale)
            limit = self.loop.clip_norm or math.inf
            norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
            if not math.isfinite(norm):
                self.engine.optimizer.zero_grad(set_to_none=True)  # with no gradient the optimizer changes nothing
            self.engine.step()
            return norm
        self.engine.step()
        return math.inf if self.engine.optimizer.overflow else float(self.engine.get_global_grad_norm())

    def _sum_over_ranks(self, *values: float) -> tuple[float, ...]:
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        self.clock.in_collective(lambda: dist.all_reduce(total))
        return tuple(total.tolist())

    def _samples(self, step: int, sample_ids: np.ndarray | None) -> list[int]:
        """Sample numbers of the step, of all ranks: which of them is at fault is for a closer look."""
        rows = rank_rows(batch_size_at(self.loop, step), self.rank, self.world_size)
        own = [first_sample(self.loop, step) + row for row in rows] if sample_ids is None else sample_ids.tolist()
        everyone: list[list[int]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(everyone, own)
        return [sample for ids in everyone for sample in ids]


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers (splitmix64 over them)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
