"""The training loop, for pretraining and fine-tuning, on DeepSpeed at any world size.

Exactness. The loss of a step is Σ losses / Σ labels over all ranks and all micro-batches, for each of a
model's losses by itself (`parts`: they have counts and weights of their own). DeepSpeed averages gradients over
ranks and divides by the accumulation steps, so each micro-batch passes `weight · local sum · world ·
accumulation / global count`; the counts are all-reduced before the backward pass.
Batches, learning rate and dropout are functions of the step alone, so a run that continues from a
checkpoint ends with the same bytes as one that was never interrupted.

Ranks agree on stopping and on checkpoints because the flags travel with the loss, in one all-reduce.
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from modeling.engine import device_of_rank, full_weights, process_group, start_engine
from modeling.errors import ConfigError, NonFiniteLoss, TrainingStopped
from modeling.heads.base import parts_of
from modeling.kernels import keep_freed_memory
from modeling.resume import load_checkpoint, save_checkpoint
from modeling.schedule import LoopConfig, learning_rate

__all__ = ["FitResult", "LogRecord", "LoopConfig", "fit", "learning_rate", "rank_rows"]

Batch = dict[str, np.ndarray]
SAMPLE_IDS = "sample_ids"
"""Optional key of a batch, int64 [B]: names its rows in NonFiniteLoss; the model never sees it."""


@dataclass(frozen=True)
class LogRecord:
    """Figures after `step` steps. `row()` is what goes into metrics.jsonl: no timings."""

    step: int
    loss: float
    """Mean over the labels of the steps since the last record, nats; of several losses the weighted sum."""
    learning_rate: float
    grad_norm: float
    """Global gradient norm before clipping, at this step."""
    tokens: int
    """Tokens seen since step 0, padding excluded."""
    tokens_per_second: float = 0.0
    mfu: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    """{name: mean} of a model's losses where it has several."""

    def row(self) -> dict[str, float]:
        kept = asdict(self)
        del kept["tokens_per_second"], kept["mfu"], kept["parts"]
        return {**kept, **{f"loss_{name}": value for name, value in self.parts.items()}}


@dataclass
class FitResult:
    """What `fit` returns, on every rank."""

    step: int
    history: list[dict[str, float]]
    """`LogRecord.row()` of every logged step, also of those before a resume."""
    tokens: int
    labels: int
    tokens_per_second: float
    """Median over the log intervals; 0 where there was none."""
    mfu: float | None
    step_seconds: dict[str, float]
    """Median wall time of a step's parts: data, forward_backward, optimizer."""
    peak_rss_bytes: int
    resumed_from: int
    """Steps already done in an earlier attempt."""
    checkpoints: int = 0
    checkpoint_seconds: float = 0.0


@dataclass
class _Progress:
    """What a checkpoint needs beside the engine's state; equal on all ranks, JSON values only."""

    tokens: int = 0
    labels: int = 0
    interval_losses: list[float] = field(default_factory=list)
    interval_labels: list[int] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


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


def fit(
    model: nn.Module,
    loop: LoopConfig,
    next_batch: Callable[[int], Batch],
    *,
    engine_config: Mapping[str, Any],
    runtime: Any,
    checkpoint_dir: Path | None = None,
    on_log: Callable[[LogRecord], None] = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_checkpoint: Callable[[int], None] = lambda step: None,
    log: Callable[[str], None] = lambda message: None,
    flops_per_token: float | None = None,
) -> FitResult:
    """Train `model` in place for `loop.steps` steps; every rank of the process group calls it.

    Args:
        model: a Trainable (`modeling.heads`), built from the same seed on every rank.
        next_batch: step → this rank's rows (`rank_rows`) of the global batch of that step. Keys as
            the model's forward wants them, and optionally `sample_ids`.
        engine_config: DeepSpeed's configuration, from `cluster.deepspeed.engine_config`; it decides
            ZeRO stage and the split into micro-batches.
        runtime: `cpus` (threads) and `checkpoint_every_seconds` are read.
        checkpoint_dir: continue from its newest checkpoint, and write there; None: neither.
        on_log, should_stop, on_checkpoint, log: called on rank 0 only.
        flops_per_token: forward and backward, for MFU; None: no MFU.

    Raises:
        NonFiniteLoss: the loss or the gradient norm is NaN or infinite; no checkpoint holds it.
        TrainingStopped: should_stop said so, after a checkpoint was written.
        ConfigError: the batch cannot be divided among the ranks, or the settings cannot work together.
    """
    with _torch_settings(runtime), process_group() as (rank, world_size):
        if loop.batch_size < world_size:
            raise ConfigError(
                f"loop.batch_size {loop.batch_size} is less than the {world_size} workers", "use fewer workers"
            )
        trained = model
        if int(engine_config["zero_optimization"]["stage"]) == 3:
            import copy

            trained = copy.deepcopy(model)  # stage 3 takes the module apart; the caller's stays whole
        device = device_of_rank()
        engine = start_engine(trained, loop, engine_config, device)
        try:
            run = _Run(engine, trained, loop, engine_config, rank, world_size, device, flops_per_token)
            if rank == 0:
                run.on_log, run.should_stop, run.on_checkpoint, run.log = on_log, should_stop, on_checkpoint, log
            result = run.train(next_batch, checkpoint_dir, float(runtime.checkpoint_every_seconds))
            weights = full_weights(engine, trained)
        finally:
            engine.destroy()
    _restore(model, weights)
    return result


def _restore(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give the model parameters of its own again: after training they are views of DeepSpeed's buffers."""
    for name, parameter in model.named_parameters():
        parameter.data = weights[name].to(parameter.device)
        parameter.grad = None
    for name, buffer in model.named_buffers():
        if name in weights:
            buffer.copy_(weights[name])


class _torch_settings:
    """Threads as placed, deterministic kernels; put back on leaving, for the next stage in this process."""

    def __init__(self, runtime: Any) -> None:
        self.threads = max(1, int(runtime.cpus))

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        if torch.cuda.is_available():  # CPU kernels are deterministic, and the switch imports torch's compiler
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            # Filling fresh memory with NaN is for debugging; it costs bandwidth.
            torch.utils.deterministic.fill_uninitialized_memory = False

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


class _Run:
    """One call of `fit`, after the engine has started."""

    def __init__(
        self,
        engine: Any,
        model: nn.Module,
        loop: LoopConfig,
        engine_config: Mapping[str, Any],
        rank: int,
        world_size: int,
        device: torch.device,
        flops_per_token: float | None,
    ) -> None:
        from modeling.flops import peak_flops

        self.engine, self.model, self.loop, self.device = engine, model, loop, device
        self.rank, self.world_size = rank, world_size
        self.accumulation = int(engine_config["gradient_accumulation_steps"])
        peak = peak_flops(device, loop.precision) if flops_per_token else None
        self.mfu_per_token = flops_per_token / (peak * world_size) if flops_per_token and peak else None
        self.fits = {
            "world_size": world_size,
            "zero_stage": int(engine_config["zero_optimization"]["stage"]),
            "parameters": sum(math.prod(getattr(p, "ds_shape", p.shape)) for p in model.parameters()),
        }
        self.on_log: Callable[[LogRecord], None] = lambda record: None
        self.should_stop: Callable[[], bool] = lambda: False
        self.on_checkpoint: Callable[[int], None] = lambda step: None
        self.log: Callable[[str], None] = lambda message: None
        self.parts = parts_of(model)
        self.progress = _Progress()
        self._clear_interval()
        self.seconds: dict[str, list[float]] = {"data": [], "forward_backward": [], "optimizer": []}

    def train(self, next_batch: Callable[[int], Batch], folder: Path | None, every_seconds: float) -> FitResult:
        first = self._resume(folder)
        rates: list[float] = []
        checkpoints, checkpoint_seconds = 0, 0.0
        last_checkpoint = last_log = time.monotonic()
        logged_tokens = self.progress.tokens
        for step in range(first, self.loop.steps):
            due = folder is not None and time.monotonic() - last_checkpoint >= every_seconds
            stop, due = self._step(step, next_batch, self.should_stop(), due)
            if (step + 1) % self.loop.log_every_steps == 0 or step + 1 == self.loop.steps:
                now = time.monotonic()
                rate = (self.progress.tokens - logged_tokens) / max(now - last_log, 1e-9)
                rates.append(rate)
                last_log, logged_tokens = now, self.progress.tokens
                self._record(step, rate)
            if (due or stop) and folder is not None and step + 1 < self.loop.steps:
                began = time.monotonic()
                save_checkpoint(self.engine, folder, step + 1, asdict(self.progress), self.fits)
                self.on_checkpoint(step + 1)
                last_checkpoint = time.monotonic()
                checkpoints, checkpoint_seconds = checkpoints + 1, checkpoint_seconds + last_checkpoint - began
                last_log += last_checkpoint - began  # tokens/s is of training; stalls are reported apart
            if stop:
                raise TrainingStopped(step + 1)
        rate = statistics.median(rates) if rates else 0.0
        return FitResult(
            step=self.loop.steps,
            history=self.progress.history,
            tokens=self.progress.tokens,
            labels=self.progress.labels,
            tokens_per_second=rate,
            mfu=self.mfu_per_token * rate if self.mfu_per_token else None,
            step_seconds={part: statistics.median(times) if times else 0.0 for part, times in self.seconds.items()},
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            resumed_from=first,
            checkpoints=checkpoints,
            checkpoint_seconds=checkpoint_seconds,
        )

    def _resume(self, folder: Path | None) -> int:
        found = load_checkpoint(self.engine, folder, self.fits, self.log) if folder is not None else None
        if found is None:
            return 0
        step, progress = found
        self.progress = _Progress(**progress)
        self.log(f"continuing after step {step}")
        return step

    def _step(self, step: int, next_batch: Callable[[int], Batch], stop: bool, due: bool) -> tuple[bool, bool]:
        """One optimizer step; returns the flags all ranks agree on: stop, checkpoint due."""
        began = time.perf_counter()
        rows = next_batch(step)
        sample_ids = rows.get(SAMPLE_IDS)
        batch = {
            name: torch.from_numpy(np.ascontiguousarray(a)).to(self.device)
            for name, a in rows.items()
            if name != SAMPLE_IDS
        }
        got_data = time.perf_counter()
        counts = self.model.count(batch).double().reshape(-1).tolist()
        *counts, tokens = self._sum_over_ranks(*counts, float(count_tokens(batch)))
        sums = self._backward(step, batch, counts)
        *sums, stops, dues = self._sum_over_ranks(*sums, float(stop), float(due))
        if not all(map(math.isfinite, sums)):
            raise NonFiniteLoss(step, self._samples(step, sample_ids, batch))
        computed = time.perf_counter()
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.loop, step)
        if self.fits["zero_stage"] == 0:
            limit = self.loop.clip_norm or math.inf
            self.grad_norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
            self.engine.step()
        else:
            self.engine.step()
            self.grad_norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(self.grad_norm):
            raise NonFiniteLoss(step, self._samples(step, sample_ids, batch))
        done = time.perf_counter()
        for part, seconds in zip(self.seconds, (got_data - began, computed - got_data, done - computed), strict=True):
            self.seconds[part].append(seconds)
        progress = self.progress
        progress.tokens += int(tokens)
        progress.labels += int(counts[0])
        progress.interval_losses = [a + b for a, b in zip(progress.interval_losses, sums, strict=True)]
        progress.interval_labels = [a + int(b) for a, b in zip(progress.interval_labels, counts, strict=True)]
        return stops > 0, dues > 0

    def _backward(self, step: int, batch: dict[str, Tensor], counts: list[float]) -> list[float]:
        """Forward and backward of all micro-batches; this rank's sums of losses."""
        rows = next(iter(batch.values())).shape[0]
        factor = self.world_size * self.accumulation
        scale = torch.tensor(
            [weight * factor / max(count, 1) for (_, weight), count in zip(self.parts, counts, strict=True)],
            dtype=torch.float32,
            device=self.device,
        )
        total = torch.zeros(len(counts), dtype=torch.float64, device=self.device)
        for micro in range(self.accumulation):
            low, high = rows * micro // self.accumulation, rows * (micro + 1) // self.accumulation
            # A rank with fewer rows than micro-batches still takes part in every backward, with weight 0.
            part = {name: value[low : max(high, low + 1)] for name, value in batch.items()}
            # Dropout's masks: a function of seed, step, rank and micro-batch, nothing that went before.
            torch.manual_seed(_mix(self.loop.seed, step, self.rank, micro))
            loss, loss_sum = self.engine(part, scale if high > low else torch.zeros_like(scale))
            self.engine.backward(loss)
            if high > low:
                total += loss_sum.double()
            if micro + 1 < self.accumulation:
                self.engine.step()  # DeepSpeed's own counter: updates nothing before the last micro-batch
        return [float(value) for value in total.tolist()]

    def _clear_interval(self) -> None:
        self.progress.interval_losses = [0.0] * len(self.parts)
        self.progress.interval_labels = [0] * len(self.parts)

    def _record(self, step: int, rate: float) -> None:
        done = self.progress
        sums = zip(self.parts, done.interval_losses, done.interval_labels, strict=True)
        means = {name: loss / max(labels, 1) for (name, _), loss, labels in sums}
        record = LogRecord(
            step=step + 1,
            loss=sum(weight * means[name] for name, weight in self.parts),
            learning_rate=learning_rate(self.loop, step),
            grad_norm=self.grad_norm,
            tokens=done.tokens,
            tokens_per_second=rate,
            mfu=self.mfu_per_token * rate if self.mfu_per_token else None,
            parts=means if len(means) > 1 else {},
        )
        self._clear_interval()
        done.history.append(record.row())
        self.on_log(record)

    def _sum_over_ranks(self, *values: float) -> tuple[float, ...]:
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return tuple(total.tolist())

    def _samples(self, step: int, sample_ids: np.ndarray | None, batch: dict[str, Tensor]) -> list[int]:
        """Sample numbers of the step, of all ranks: which of them is at fault is for a closer look."""
        rows = rank_rows(self.loop.batch_size, self.rank, self.world_size)
        own = [step * self.loop.batch_size + row for row in rows] if sample_ids is None else sample_ids.tolist()
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
