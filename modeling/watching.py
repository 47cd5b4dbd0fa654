"""What the loop looks at beside the loss: a step's time by part, memory, updates of each layer, samples, a profile.

None of it changes what is computed: weights and metrics are the same bytes whatever is watched (a test holds that).
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from modeling.engine import full_weights
from modeling.layer_updates import LayerUpdates
from modeling.memory_use import largest, memory_use, peaks
from modeling.precision import autocast
from modeling.records import Hooks, Progress, Watch
from modeling.step import Stepper
from modeling.step_clock import PARTS

MOST_TIMES = 10_000
"""Steps whose times are kept: the median of a long run is that of its last ones."""


class Watching:
    """The watching of one call of `fit`, on every rank; a context that stops what it started."""

    def __init__(self, stepper: Stepper, model: nn.Module, watch: Watch, hooks: Hooks) -> None:
        self.stepper, self.model, self.watch, self.hooks = stepper, model, watch, hooks
        swapped = getattr(stepper.engine.optimizer, "swap_optimizer", False)  # the weights are on a disk
        self._updates = LayerUpdates(stepper.engine, stepper.model) if watch.layer_updates and not swapped else None
        self._times: deque[dict[str, float]] = deque(maxlen=MOST_TIMES)
        self._since_record = 0
        self._memory: dict[str, int] = {}
        self._ranks: list[dict[str, int]] = []
        self._profiler: Any = None
        self._open = ExitStack()

    def __enter__(self) -> Watching:
        self._open.enter_context(self.stepper.clock.timing_deepspeed())
        return self

    def __exit__(self, *_: object) -> None:
        if self._profiler is not None:
            self._stop_profile()
        self._open.close()

    def begin(self, step: int, logs: bool) -> AbstractContextManager[None] | None:
        """Before the data of a step (0-based); what to put around its update.

        Args:
            logs: a record follows the step: on a GPU only such steps are timed.
        """
        if step + 1 in self.watch.profile and self._profiler is None and self.stepper.rank == 0:
            self._start_profile()
        self.stepper.clock.begin(logs or self.stepper.device.type != "cuda")
        measures = self._updates is not None and self._due(step, self.watch.layer_updates)
        return self._around_update(measures) if measures or not self._memory else None

    def end(self, step: int, progress: Progress) -> float:
        """After a step; what was measured goes into `progress` and to the hooks. Seconds that were not training."""
        if seconds := self.stepper.clock.seconds():
            self._times.append(seconds)
            self._since_record += 1
        if self._profiler is not None and step + 2 not in self.watch.profile:
            self._stop_profile()
        if self._memory and not self._ranks:
            self._ranks = self._everyone(self._memory)
            self.hooks.on_memory(self._ranks)
        if self._updates is not None and self._updates.last:
            layers = {layer: [float(f"{x:.5g}") for x in figures] for layer, figures in self._updates.last.items()}
            self._updates.last = {}
            progress.updates.append({"step": step + 1, "layers": layers})
            self.hooks.on_updates(step + 1, layers)
        began = time.monotonic()
        if self.watch.samples and self._due(step, self.watch.samples, self.stepper.loop.validate_every_steps or 1):
            found = self._sample()
            if self.stepper.rank == 0:
                progress.samples.append({"step": step + 1, "samples": found})
                self.hooks.on_samples(step + 1, found)
        return time.monotonic() - began

    def recent(self) -> dict[str, float]:
        """Medians of the parts over the steps since it was last asked."""
        times = list(self._times)[-self._since_record :] if self._since_record else []
        self._since_record = 0
        return _medians(times)

    def step_seconds(self) -> dict[str, float]:
        """Medians of the parts over all steps of this call."""
        return _medians(list(self._times))

    def memory(self) -> list[dict[str, int]]:
        """Of every rank what its engine held, and its peaks until now."""
        return (
            [
                {**held, **peak}
                for held, peak in zip(self._ranks, self._everyone(peaks(self.stepper.device)), strict=True)
            ]
            if self._ranks
            else []
        )

    def _due(self, step: int, times: int, every: int = 1) -> bool:
        """Whether a step is one of so many, evenly over the run and at multiples of `every`; the last one is."""
        steps, done = self.stepper.loop.steps, step + 1
        if done == steps or done % every:
            return done == steps
        return done * times // steps > (done - every) * times // steps

    @contextmanager
    def _around_update(self, measures: bool) -> Iterator[None]:
        engine, model = self.stepper.engine, self.stepper.model
        before = {} if self._memory else memory_use(engine, model)
        scale = self.stepper.loss_scale.scale if self.stepper.loss_scale is not None else 1.0
        with self._updates.around_update(scale) if measures and self._updates else ExitStack():
            yield
        if before:
            self._memory = largest(before, memory_use(engine, model))

    def _everyone(self, own: dict[str, int]) -> list[dict[str, int]]:
        found: list[Any] = [own] * self.stepper.world_size
        if self.stepper.world_size > 1:
            dist.all_gather_object(found, own)
        return found

    def _sample(self) -> Any:
        """What `watch.sample` says of the model as it is; at stage 3, where it lies in parts, of the caller's copy."""
        model = self.stepper.model
        if self.stepper.zero_stage == 3:
            weights, model = full_weights(self.stepper.engine, model), self.model
            model.load_state_dict(weights)
        if self.stepper.rank:
            return None
        training = model.training
        model.eval()
        try:
            with (
                torch.inference_mode(),
                autocast(self.stepper.device.type, self.stepper.loop.precision),
            ):
                return self.watch.sample(model)
        finally:
            model.train(training)

    def _start_profile(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        cuda = [ProfilerActivity.CUDA] if self.stepper.device.type == "cuda" else []
        self._profiler = profile(activities=[ProfilerActivity.CPU, *cuda], record_shapes=True)
        self._profiler.start()

    def _stop_profile(self) -> None:
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        if self.watch.trace is not None:
            self.watch.trace.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self.watch.trace))
            self.hooks.on_trace(self.watch.trace)


def _medians(times: list[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.median(each[part] for each in times) for part in PARTS} if times else {}
