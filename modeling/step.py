"""One optimizer step on a DeepSpeed engine: the exact loss of a global batch, whatever its split.

The loss of a step is Σ losses / Σ labels over all ranks and all micro-batches, for each of a model's losses by
itself (`parts`: they have counts and weights of their own). DeepSpeed averages gradients over ranks and divides by
the accumulation steps, so each micro-batch passes `weight · local sum · world · accumulation / global count`; the
counts are all-reduced before the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from modeling.heads.base import parts_of
from modeling.padding import MASKS, trimmed
from modeling.precision import LossScale
from modeling.schedule import LoopConfig, batch_size_at, first_sample
from modeling.step_clock import StepClock

Batch = dict[str, np.ndarray]
SAMPLE_IDS = "sample_ids"
"""Optional key of a batch, int64 [B]: names its rows in incidents; the model never sees it."""

Admit = Callable[[float, float], bool]
"""(loss, gradient norm) of a step → whether its update may be made; pure, so that all ranks say the same."""


@dataclass(frozen=True)
class Stepped:
    """A step's global figures, equal on all ranks."""

    sums: list[float]
    """Σ loss of each part, nats."""
    counts: list[float]
    """Labels of each part."""
    tokens: float
    loss: float
    """Weighted mean over the labels, nats."""
    grad_norm: float
    """Global, before clipping."""
    applied: bool
    """Whether the update was made; weights and optimizer are as before where it was not."""
    skipped: bool
    """It was not, since the gradients overflowed fp16 at the present loss scale."""
    own_sums: list[float]
    """Σ loss of each part on this rank."""
    flags: list[float]
    """How many ranks raised each of the flags they came with."""


def count_tokens(batch: Mapping[str, Tensor]) -> int:
    """Tokens that a batch lets a model see, padding excluded; of both sides where there are two."""
    count = 0
    for side in ("", "decoder_", "turned_"):
        ids, mask = f"{side}input_ids", f"{side}attention_mask"
        if mask in batch:
            count += int(batch[mask].sum())
        elif ids in batch:
            count += batch[ids].numel()
    return count


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`; on a GPU it is on its way when this returns, by way of memory that the bus reads."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


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
        self._gate = _Gate(engine)
        self._weights = [p for p in model.parameters() if p.requires_grad] if self.zero_stage == 0 else []
        self._alone = world_size == 1 and self.zero_stage == 0
        if self._alone:  # DeepSpeed would copy all gradients together, reduce them over itself, and copy them back
            engine.enable_backward_allreduce = False

    def step(
        self,
        step: int,
        number: int,
        rows: Batch,
        learning_rate: float,
        flags: list[bool],
        admit: Admit,
        around_update: AbstractContextManager[None] | None = None,
    ) -> Stepped:
        """Forward, backward and update of `step` (0-based) on a global batch.

        Args:
            number: of the batch: the step's, until the guard leaves some out.
            rows: this rank's rows of it.
            flags: what this rank wants all to know; they travel with the loss, in one all-reduce.
            admit: asked before the update; without its consent there is none.
            around_update: entered when gradients are whole, left when the weights are new.
        """
        self.clock.mark("other")
        on_host = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in rows.items() if name != SAMPLE_IDS}
        batch = {name: to_device(value, self.device) for name, value in on_host.items()}
        # On the host: asking a GPU would wait for it.
        counts = self.model.count(on_host).double().reshape(-1).tolist()
        *counts, tokens = self._sum_over_ranks(*counts, float(count_tokens(on_host)))
        own_sums = self._backward(step, number, batch, rows, counts)
        found = self._sum_over_ranks(*own_sums, *map(float, flags))
        sums, raised = list(found[: len(own_sums)]), list(found[len(own_sums) :])
        weighted = zip(self.parts, sums, counts, strict=True)
        loss = sum(weight * total / max(count, 1) for (_, weight), total, count in weighted)
        with around_update or nullcontext():
            self.clock.mark("optimizer")
            grad_norm, applied = self._update(learning_rate, lambda norm: admit(loss, norm))
            self.clock.mark("other")
        overflow = not math.isfinite(grad_norm)
        skipped = overflow and self.loss_scale is not None and self.loss_scale.scale > 1
        if self.loss_scale is not None and skipped == overflow:
            self.loss_scale.update(skipped)
        return Stepped(sums, counts, tokens, loss, grad_norm, applied, skipped, own_sums, raised)

    def _backward(
        self, step: int, number: int, batch: dict[str, Tensor], on_host: Batch, counts: list[float]
    ) -> list[float]:
        """Forward and backward of all micro-batches, each without its common padding; this rank's sums of losses."""
        rows = next(iter(batch.values())).shape[0]
        micros = self._micro_batches(number)
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
            own = slice(low, max(high, low + 1))
            masks = {name: on_host[name][own] for name in MASKS if name in on_host}
            part = trimmed({name: value[own] for name, value in batch.items()}, masks)
            # Dropout's masks: a function of seed, step, rank and micro-batch, nothing that went before.
            _seed(_mix(self.loop.seed, step, self.rank, micro), self.device)
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
        if self._alone:
            for weight in self._weights:
                if weight.grad is None:  # as DeepSpeed does where it reduces: what no loss reaches still decays
                    weight.grad = torch.zeros_like(weight)
        return [float(value) for value in total.tolist()]

    def _begin_scaling(self) -> float:
        """What this step's loss is multiplied by here; ZeRO's optimizers do it themselves, and divide again."""
        if self.loss_scale is None:
            return 1.0
        if self.zero_stage == 0:
            return self.loss_scale.scale
        self.engine.optimizer.loss_scale = self.loss_scale.scale
        return 1.0

    def _micro_batches(self, number: int) -> int:
        """Micro-batches of a batch, of the configured size at most; fewer while the batch warms up."""
        rows = -(-batch_size_at(self.loop, number) // self.world_size)
        return min(self.accumulation, -(-rows // self.micro_batch))

    def _update(self, learning_rate: float, admit: Callable[[float], bool]) -> tuple[float, bool]:
        """The optimizer's step; the global gradient norm before clipping, not finite where gradients are not, and
        whether the update was made."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        norm: float | None = None
        if self.zero_stage == 0:
            if self.loss_scale is not None:
                for parameter in self._weights:
                    if parameter.grad is not None:
                        parameter.grad.div_(self.loss_scale.scale)
            limit = self.loop.clip_norm or math.inf
            norm = float(nn.utils.clip_grad_norm_(self._weights, limit))
        applied = self._gate.step(lambda: admit(self._engine_norm() if norm is None else norm))
        return self._engine_norm() if norm is None else norm, applied

    def _engine_norm(self) -> float:
        return math.inf if self.engine.optimizer.overflow else float(self.engine.optimizer._global_grad_norm)

    def _sum_over_ranks(self, *values: float) -> tuple[float, ...]:
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        self.clock.in_collective(lambda: dist.all_reduce(total))
        return tuple(total.tolist())

    def positions(self, number: int) -> list[int]:
        """Places of this rank's rows of a batch in the stream of samples, where these have no names."""
        rows = rank_rows(batch_size_at(self.loop, number), self.rank, self.world_size)
        return [first_sample(self.loop, number) + row for row in rows]

    def of_all_ranks(self, own: Any) -> list[Any]:
        """What every rank gave, by rank; all call it."""
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, own)
        return everyone


class _Gate:
    """Stands before the optimizer under DeepSpeed's: a step that is refused does all but the update.

    DeepSpeed knows the norm only inside its own step, and only that step lets go of the gradients.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._admit: Callable[[], bool] = lambda: True
        self._said: bool | None = None
        optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
        self._update = optimizer.step
        optimizer.step = self._through

    def step(self, admit: Callable[[], bool]) -> bool:
        """The engine's step; whether the update was made. `admit` is asked when the norm is known."""
        self._admit, self._said = admit, None
        self._engine.step()
        return bool(self._said)  # never asked where DeepSpeed found the gradients not finite and refused by itself

    def _through(self, *args: Any, **kwargs: Any) -> Any:
        if self._said is None:  # once a step, however many groups of weights there are
            self._said = self._admit()
        return self._update(*args, **kwargs) if self._said else None


def _seed(seed: int, device: torch.device) -> None:
    """Seed what dropout draws from. `torch.manual_seed` does the same for every kind of device there might be, at the
    price of three stack traces: a twentieth of a very small model's step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers (splitmix64 over them)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
