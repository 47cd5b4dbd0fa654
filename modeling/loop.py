"""The training loop, for pretraining and fine-tuning, on DeepSpeed at any world size.

Exactness: what a step computes does not depend on its split among ranks and micro-batches (`modeling.step`).
Batches, learning rate and dropout are functions of the step alone, so a run that continues from a checkpoint ends
with the same bytes as one that was never interrupted.

Ranks agree on stopping and on checkpoints because the flags travel with the loss, in one all-reduce.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from modeling.best import Best
from modeling.budget import within_minutes
from modeling.checkpoints.checkpointer import Checkpointer
from modeling.checkpoints.policy import CheckpointPolicy
from modeling.engine import device_of_rank, full_weights, process_group, start_engine
from modeling.errors import ConfigError, LossSpike, NonFiniteLoss, RolledBack, TrainingStopped
from modeling.guard import Guard, Incident, Trouble, in_words, plain, read_incidents, write_incidents
from modeling.kernels import keep_freed_memory
from modeling.precision import chosen, multiplies_bf16
from modeling.recompute import recomputing
from modeling.records import FitResult, Hooks, LogRecord, Progress, Watch
from modeling.schedule import LoopConfig, decay_start, learning_rate
from modeling.step import SAMPLE_IDS, Batch, Stepped, Stepper
from modeling.validation import HeldOut, validate
from modeling.watching import Watching

Trained = TypeVar("Trained")


def fit(
    model: nn.Module,
    loop: LoopConfig,
    next_batch: Callable[[int], Batch],
    *,
    engine_config: Mapping[str, Any],
    runtime: Any,
    activation_checkpointing: bool = False,
    checkpoint_dir: Path | None = None,
    hooks: Hooks | None = None,
    flops_per_token: float | None = None,
    watch: Watch | None = None,
    held_out: HeldOut | None = None,
    model_files: Mapping[str, bytes] | None = None,
    stable_dir: Path | None = None,
) -> FitResult:
    """Train `model` in place, as long as `loop` says; every rank of the process group calls it.

    Args:
        loop: resolved (`modeling.schedule.resolved`); a budget in minutes becomes steps here.
        model: a Trainable (`modeling.heads`), built from the same seed on every rank.
        next_batch: batch number → this rank's rows (`modeling.step.rank_rows`) of that global batch. The number is
            the step's, until the guard leaves batches out. Keys as the model's forward wants them, and optionally
            `sample_ids`.
        engine_config: DeepSpeed's configuration, from `cluster.deepspeed.engine_config`; it decides
            ZeRO stage and the split into micro-batches.
        runtime: `cpus` (threads) and the fields of CheckpointPolicy are read.
        activation_checkpointing: compute the blocks' inner values again in the backward pass (`modeling.recompute`).
        checkpoint_dir: continue from its newest checkpoint, and write there; None: neither.
        hooks: called on rank 0 only.
        flops_per_token: forward and backward, for MFU; None: no MFU.
        watch: what to look at beside the loss; None: nothing.
        held_out: examples for the validation loss, after every `loop.validate_every_steps` steps and the last one.
            It changes nothing about training, but that `loop.patience` may end it early, and that with
            `loop.keep=best` the model on rank 0 ends with the weights of the lowest validation loss.
        model_files: {name: bytes}, what makes a usable model of a checkpoint's weights (config.json, tokenizer).
        stable_dir: with schedule=wsd, put a checkpoint there at the end of the stable phase, before the learning rate
            falls: a longer run may begin with it; None: do not.

    Raises:
        NonFiniteLoss, LossSpike: a step went wrong, and `loop.guard` says to stop; no checkpoint holds it.
        RolledBack: a step went wrong, and training goes back; call `fit` again, with the model as it was at first.
        TrainingStopped: should_stop said so, after a checkpoint was written.
        ConfigError: the batch cannot be divided among the ranks, or the settings cannot work together.
    """
    with _torch_settings(runtime), process_group() as (rank, world_size):
        smallest = loop.batch_warmup_from or loop.batch_size
        if smallest < world_size:
            name = "batch_warmup_from" if loop.batch_warmup_from else "batch_size"
            raise ConfigError(f"loop.{name} {smallest} is less than the {world_size} workers", "use fewer workers")
        trained = model
        if int(engine_config["zero_optimization"]["stage"]) == 3:
            import copy

            trained = copy.deepcopy(model)  # stage 3 takes the module apart; the caller's stays whole
        if held_out is None and loop.validate_every_steps:
            raise ConfigError(
                f"validate_every_steps is {loop.validate_every_steps}, but there are no validation examples",
                "hold some out (validation_share), or set it to 0",
            )
        device = device_of_rank()
        hooks = hooks if hooks and rank == 0 else Hooks()
        loop = _with_precision(loop, device, hooks.note)
        timed = loop.wall_minutes > 0
        loop = within_minutes(model, loop, next_batch, engine_config, device, checkpoint_dir, hooks.note)
        engine = start_engine(trained, loop, engine_config, device)
        try:
            stepper = Stepper(engine, trained, loop, engine_config, rank, world_size, device)
            watching = Watching(stepper, model, watch or Watch(), hooks)
            policy = CheckpointPolicy(**{name: getattr(runtime, name) for name in CheckpointPolicy.model_fields})
            checkpoints = Checkpointer(stepper, checkpoint_dir, policy, model_files or {}, hooks)
            run = _Run(stepper, checkpoints, hooks, flops_per_token, watching, held_out, stable_dir, timed)
            with watching, checkpoints, recomputing(trained, activation_checkpointing):
                result = run.train(next_batch)
            weights = full_weights(engine, trained) | run.best.weights(run.progress)
        finally:
            engine.destroy()
    _restore(model, weights)
    return result


def _with_precision(loop: LoopConfig, device: torch.device, note: Callable[[str], None]) -> LoopConfig:
    """`loop` with `auto` decided; a word where that is fp32, or where bf16 was asked for and is slow."""
    precision = chosen(loop.precision, device)
    if loop.precision == "auto" and precision == "fp32":
        note("precision auto: fp32, since not every device here has instructions for bf16")
    elif precision == "bf16" and not multiplies_bf16(device):
        note("precision bf16: the device has no instructions for it, a product takes many times as long as in fp32")
    return loop.model_copy(update={"precision": precision})


def through_rollbacks(train: Callable[[], Trained]) -> Trained:
    """What `train` returns, which builds a model and calls `fit`: called again after each rollback."""
    while True:
        try:
            return train()
        except RolledBack:
            continue  # the next attempt reads the incident, and goes on from an older checkpoint


def _restore(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give the model parameters of its own again: after training they are views of DeepSpeed's buffers."""
    for name, parameter in model.named_parameters():
        parameter.data = weights[name].to(parameter.device)
        parameter.grad = None
    for name, buffer in model.named_buffers():
        if name in weights:
            buffer.copy_(weights[name])


class _torch_settings:
    """Threads as placed, deterministic kernels; put back on leaving, for whatever this process does next."""

    def __init__(self, runtime: Any) -> None:
        self.threads = max(1, int(runtime.cpus))

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        if torch.cuda.is_available():  # CPU kernels are deterministic, and the switch imports torch's compiler
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            self.kernels = torch.get_deterministic_debug_mode()
            # Not with warnings only: attention then takes backward kernels that add up in no fixed order.
            torch.use_deterministic_algorithms(True)
            # Filling fresh memory with NaN is for debugging; it costs bandwidth.
            torch.utils.deterministic.fill_uninitialized_memory = False

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)
        if torch.cuda.is_available():
            torch.set_deterministic_debug_mode(self.kernels)


class _Run:
    """One call of `fit`, after the engine has started."""

    def __init__(
        self,
        stepper: Stepper,
        checkpoints: Checkpointer,
        hooks: Hooks,
        flops_per_token: float | None,
        watching: Watching,
        held_out: HeldOut | None,
        stable_dir: Path | None,
        timed: bool,
    ) -> None:
        from modeling.flops import peak_flops

        self.stepper, self.loop, self.hooks = stepper, stepper.loop, hooks
        self.checkpoints, self.watching = checkpoints, watching
        self.stable_dir, self.timed = stable_dir, timed
        self.held_out, self.best = held_out, Best(stepper.loop, checkpoints.folder, stepper.rank)
        peak = peak_flops(stepper.device, self.loop.precision) if flops_per_token else None
        self.mfu_per_token = flops_per_token / (peak * stepper.world_size) if flops_per_token and peak else None
        self.progress = Progress(loss_scale=stepper.loss_scale)
        self.progress.clear_interval(len(stepper.parts))
        self.rates: list[float] = []
        self.validation_seconds = 0.0
        self.validation: dict[str, float] = {}

    def train(self, next_batch: Callable[[int], Batch]) -> FitResult:
        first = self._resume()
        self.progress.planned_steps = self.loop.steps
        self.last_log = time.monotonic()
        self.logged_tokens = self.progress.tokens
        for step in range(first, self.loop.steps):
            last = step + 1 == self.loop.steps
            every = self.loop.validate_every_steps
            validates = self.held_out is not None and (last or (every > 0 and (step + 1) % every == 0))
            logs = (step + 1) % self.loop.log_every_steps == 0 or last or validates
            done = self._step(step, next_batch, logs)
            self.last_log += self.watching.end(step, self.progress)  # tokens/s is of training
            self.progress.add(done.sums, done.counts, done.tokens)
            if done.applied:
                self.guard.accept(done.loss, done.grad_norm)
            stop, *raised = done.flags
            due = self.checkpoints.heard(raised)
            figures = self._validate(step + 1) if validates else {}
            early = self.best.stops(self.progress) and not last
            if logs:
                self._record(step, done, figures)
            if early:
                self.hooks.note(f"stopped early after step {step + 1}: {self.best.why(self.progress)}")
                self.checkpoints.finish()
                return self._result(first, step + 1, early=True)
            if self.stable_dir is not None and step + 1 == decay_start(self.loop):
                self._checkpoint(step + 1, self.stable_dir)
            if (due or stop or self.checkpoints.due_at(step + 1, self.progress)) and not last:
                self._checkpoint(step + 1)
            if stop:
                self.checkpoints.finish()
                raise TrainingStopped(step + 1)
        self.checkpoints.finish()
        return self._result(first, self.loop.steps)

    def _step(self, step: int, next_batch: Callable[[int], Batch], logs: bool) -> Stepped:
        """Make a step, with the first batch that the guard lets pass."""
        while True:
            around_update = self.watching.begin(step, logs)
            number = self.guard.batch_of(step)
            rows = next_batch(number)
            self.stepper.clock.mark("other")
            flags = [self.hooks.should_stop(), *self.checkpoints.flags()]
            rate = learning_rate(self.loop, step)
            done = self.stepper.step(step, number, rows, rate, flags, self._admits, around_update)
            trouble = None if done.skipped else self.guard.judge(done.loss, done.grad_norm)
            if trouble is None:
                return done
            self._incident(step, number, rows, done, trouble)

    def _admits(self, loss: float, grad_norm: float) -> bool:
        return self.guard.judge(loss, grad_norm) is None

    def _incident(self, step: int, number: int, rows: Batch, done: Stepped, trouble: Trouble) -> None:
        """Note what went wrong and decide; returns where the batch is to be left out and the step made again.

        The note is on disk before anything follows from it, so that a later attempt decides the same.
        """
        outcome = self.guard.decide(step, trouble, can_go_back=self.checkpoints.folder is not None)
        samples = rows[SAMPLE_IDS].tolist() if SAMPLE_IDS in rows else self.stepper.positions(number)
        by_rank = self.stepper.of_all_ranks((samples, done.own_sums))
        names = [name for name, _ in self.stepper.parts]
        pairs = zip(names, done.sums, done.counts, strict=True)
        incident: Incident = plain(
            {
                "step": step + 1,
                "batch": number,
                "kind": trouble.kind,
                "cause": trouble.cause,
                "window": trouble.window,
                **outcome,
                "loss": done.loss,
                "grad_norm": done.grad_norm,
                "learning_rate": learning_rate(self.loop, step),
                "tokens": done.tokens,
                "parts": {name: {"loss_sum": total, "labels": count} for name, total, count in pairs},
                "ranks": [{"loss_sums": dict(zip(names, own, strict=True)), "samples": ids} for ids, own in by_rank],
            }
        )
        handled = sum(earlier["decision"] != "stop" for earlier in self.guard.incidents)
        self.guard.incidents.append(incident)
        self.progress.incidents = self.guard.incidents
        folder = self.checkpoints.folder
        if folder is not None and self.stepper.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_incidents(folder, self.guard.incidents)
        self.stepper.of_all_ranks(None)  # nobody goes on before it is written
        self.hooks.note(f"step {step + 1}, batch {number}: {trouble.cause}: {in_words(incident)}")
        self.hooks.on_incident(incident)
        if incident["decision"] == "rollback":
            self.best.take_back(incident["to_step"])
            raise RolledBack(step, incident["to_step"])
        if incident["decision"] == "stop":
            kind = NonFiniteLoss if trouble.kind == "nan" else LossSpike
            raise kind(step, trouble.cause, [sample for ids, _ in by_rank for sample in ids], handled)

    def _resume(self) -> int:
        folder = self.checkpoints.folder
        incidents = read_incidents(folder) if folder is not None else []
        step = self._load(incidents)
        self.progress.incidents = max(incidents, self.progress.incidents, key=len)
        self.guard = Guard(self.loop.guard, self.progress.losses, self.progress.grad_norms, self.progress.incidents)
        return step

    def _load(self, incidents: list[Incident]) -> int:
        found = self.checkpoints.resume(incidents)
        if found is None:
            return 0
        step, self.progress = found
        self.stepper.loss_scale = self.progress.loss_scale
        self.best.resume(self.progress, self.hooks.note)
        if self.timed and self.progress.planned_steps and self.progress.planned_steps != self.loop.steps:
            # a budget in minutes, of which nothing but the checkpoint is left
            self.loop = self.stepper.loop = self.loop.model_copy(update={"steps": self.progress.planned_steps})
        self.hooks.note(f"continuing after step {step}")
        self.hooks.on_resume(self.progress.history)
        for row in self.progress.updates:
            self.hooks.on_updates(row["step"], row["layers"])
        return step

    def _validate(self, steps_done: int) -> dict[str, float]:
        assert self.held_out is not None
        began, stepper = time.monotonic(), self.stepper
        figures = validate(stepper.engine, stepper.model, self.held_out, stepper.device, self.loop.seed)
        better = self.best.improved(self.progress, steps_done, figures["validation_loss"])
        if better and self.loop.keep == "best":
            self.best.keep(steps_done, full_weights(stepper.engine, stepper.model))
        self.validation = figures
        stall = time.monotonic() - began
        self.validation_seconds += stall
        self.last_log += stall  # tokens/s is of training; stalls are reported apart
        return figures

    def _record(self, step: int, done: Stepped, validation: dict[str, float]) -> None:
        now, progress, parts = time.monotonic(), self.progress, self.stepper.parts
        rate = (progress.tokens - self.logged_tokens) / max(now - self.last_log, 1e-9)
        self.rates.append(rate)
        self.last_log, self.logged_tokens = now, progress.tokens
        sums = zip(parts, progress.interval_losses, progress.interval_labels, strict=True)
        means = {name: loss / max(labels, 1) for (name, _), loss, labels in sums}
        record = LogRecord(
            step=step + 1,
            loss=sum(weight * means[name] for name, weight in parts),
            learning_rate=learning_rate(self.loop, step),
            grad_norm=None if done.skipped else done.grad_norm,
            tokens=progress.tokens,
            tokens_per_second=rate,
            mfu=self.mfu_per_token * rate if self.mfu_per_token else None,
            parts=means if len(means) > 1 else {},
            loss_scale=progress.loss_scale,
            step_seconds=self.watching.recent(),
            validation=validation,
            planned_steps=self.loop.steps,
        )
        progress.clear_interval(len(parts))
        progress.history.append(record.row())
        self.hooks.on_log(record)

    def _checkpoint(self, steps_done: int, into: Path | None = None) -> None:
        before = self.checkpoints.stall_seconds
        self.checkpoints.take(steps_done, self.progress, into)
        self.last_log += self.checkpoints.stall_seconds - before  # tokens/s is of training; stalls are reported apart

    def _result(self, first: int, steps: int, early: bool = False) -> FitResult:
        rate = statistics.median(self.rates) if self.rates else 0.0
        validation = self.validation
        if self.loop.keep == "best":
            rows = [row for row in self.progress.history if row["step"] == self.progress.best_step]
            validation = {name: value for row in rows for name, value in row.items() if name.startswith("validation_")}
        return FitResult(
            step=steps,
            history=self.progress.history,
            tokens=self.progress.tokens,
            labels=self.progress.labels,
            tokens_per_second=rate,
            mfu=self.mfu_per_token * rate if self.mfu_per_token else None,
            step_seconds=self.watching.step_seconds(),
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            resumed_from=first,
            precision=self.loop.precision,
            checkpoints=self.checkpoints.count,
            checkpoint_seconds=self.checkpoints.stall_seconds,
            checkpoint_write_seconds=self.checkpoints.write_seconds,
            memory=self.watching.memory(),
            updates=self.progress.updates,
            samples=self.progress.samples,
            validation=validation,
            validation_seconds=self.validation_seconds,
            best_step=self.progress.best_step,
            stopped_early=early,
            planned_steps=self.loop.steps,
            incidents=self.guard.incidents,
        )
