"""What training tells of itself: a record per log interval, the result, and the counters a checkpoint carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling.guard import Incident
from modeling.precision import LossScale

if TYPE_CHECKING:
    from torch import nn


NOT_IN_ROWS = ("tokens_per_second", "mfu", "parts", "step_seconds", "validation", "loss_scale", "planned_steps")


@dataclass(frozen=True)
class LogRecord:
    """Figures after `step` steps. `row()` is what goes into metrics.jsonl: no timings."""

    step: int
    loss: float
    """Mean over the labels of the steps since the last record, nats; of several losses the weighted sum."""
    learning_rate: float
    grad_norm: float | None
    """Global gradient norm before clipping, at this step; None: it overflowed fp16, and the step was skipped."""
    tokens: int
    """Tokens seen since step 0, padding excluded."""
    tokens_per_second: float = 0.0
    mfu: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    """{name: mean} of a model's losses where it has several."""
    loss_scale: LossScale | None = None
    """fp16's, for the next step, and how many steps overflowed so far."""
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    """Median over the steps since the last record, by part (`modeling.step_clock`); on a GPU of this step alone."""

    validation: Mapping[str, float] = field(default_factory=dict)
    """What `modeling.validation.validate` gave, where this step was validated."""
    planned_steps: int = 0
    """Steps of the whole run."""

    def row(self) -> dict[str, Any]:
        kept = asdict(self)
        for name in NOT_IN_ROWS:
            del kept[name]
        if self.loss_scale is not None:
            kept |= {"loss_scale": self.loss_scale.scale, "skipped_steps": self.loss_scale.skipped_steps}
        return {**kept, **{f"loss_{name}": value for name, value in self.parts.items()}, **self.validation}


@dataclass(frozen=True)
class Hooks:
    """What the loop calls while it trains, on rank 0 only."""

    on_log: Callable[[LogRecord], None] = lambda record: None
    should_stop: Callable[[], bool] = lambda: False
    on_resume: Callable[[Sequence[Mapping[str, Any]]], None] = lambda history: None
    """Training goes on from a checkpoint: the rows logged until then, some of which may never have arrived."""
    on_checkpoint: Callable[[int], None] = lambda step: None
    """A checkpoint of so many steps is complete on disk."""
    note: Callable[[str], None] = lambda message: None
    """A line for the stage's log."""
    on_updates: Callable[[int, Mapping[str, Sequence[float]]], None] = lambda step, layers: None
    """`modeling.layer_updates.Layers` of the update that ended so many steps."""
    on_memory: Callable[[Sequence[Mapping[str, int]]], None] = lambda ranks: None
    """`modeling.memory_use` of every rank, once, after the first update."""
    on_samples: Callable[[int, Any], None] = lambda step, samples: None
    """What `Watch.sample` gave after so many steps."""
    on_trace: Callable[[Path], None] = lambda path: None
    """The profiler's trace has been written."""
    on_decision: Callable[[str, str, str], None] = lambda error, message, decision: None
    """Training met a condition and goes on: its class (as the executor's), what happened, what was decided."""
    on_incident: Callable[[Incident], None] = lambda incident: None
    """A step went wrong; see `modeling.guard`."""


@dataclass(frozen=True)
class Watch:
    """What is looked at beside the loss. Nothing here changes what is computed; times are of the whole run."""

    layer_updates: int = 0
    """How often updates of each layer are measured."""
    samples: int = 0
    """How often `sample` is asked."""
    sample: Callable[[nn.Module], Any] = lambda model: None
    """Rank 0: JSON values from the model as it is, in evaluation mode. It draws no random numbers."""
    profile: range = range(0)
    """Steps (1-based) that torch's profiler looks at, on rank 0."""
    trace: Path | None = None
    """Where its trace goes; the name ends in `.json.gz`."""


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
    """Median time of a step's parts, on this rank (`modeling.step_clock`)."""
    peak_rss_bytes: int
    resumed_from: int
    """Steps already done in an earlier attempt."""
    precision: str
    """Of matrix products: fp32, bf16 or fp16."""
    checkpoints: int = 0
    checkpoint_seconds: float = 0.0
    """How long training stood still for them."""
    checkpoint_write_seconds: float = 0.0
    """How long rank 0 wrote them, beside it."""
    memory: Sequence[Mapping[str, int]] = ()
    """`modeling.memory_use` of every rank, and each one's peaks; on rank 0."""
    updates: Sequence[Mapping[str, Any]] = ()
    """{step, layers} of every measured step, also of those before a resume."""
    samples: Sequence[Mapping[str, Any]] = ()
    """{step, samples} likewise."""
    validation: dict[str, float] = field(default_factory=dict)
    """Validation figures of the weights that `fit` leaves in the model; empty where nothing was held out."""
    validation_seconds: float = 0.0
    best_step: int = 0
    """Steps after which the validation loss was lowest; 0: never validated."""
    stopped_early: bool = False
    planned_steps: int = 0
    """Steps that the budget is; more than `step` only where it stopped early."""
    incidents: list[Incident] = field(default_factory=list)
    """Steps that went wrong, in order (`modeling.guard`), also those of earlier attempts."""


@dataclass
class Progress:
    """What a checkpoint needs beside the engine's state; equal on all ranks, JSON values only."""

    tokens: int = 0
    labels: int = 0
    interval_losses: list[float] = field(default_factory=list)
    interval_labels: list[int] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    updates: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    """On rank 0 only."""
    best_loss: float | None = None
    """The lowest validation loss so far."""
    best_step: int = 0
    """Steps done when it was measured."""
    loss_to_beat: float | None = None
    """The validation loss that a later one must be lower than, by `min_delta`, for patience to begin anew."""
    waited: int = 0
    """Validations since it was measured."""
    planned_steps: int = 0
    """Of the run: a budget in minutes is measured once."""
    losses: list[float] = field(default_factory=list)
    """Of the last steps, for the guard; so the norms."""
    grad_norms: list[float] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    loss_scale: LossScale | None = None

    def __post_init__(self) -> None:
        if isinstance(self.loss_scale, dict):  # as a checkpoint has it
            self.loss_scale = LossScale(**self.loss_scale)

    def clear_interval(self, parts: int) -> None:
        """Begin a log interval, for so many losses."""
        self.interval_losses = [0.0] * parts
        self.interval_labels = [0] * parts

    def add(self, sums: list[float], counts: list[float], tokens: float) -> None:
        """Take the global sums of a step."""
        self.tokens += int(tokens)
        self.labels += int(counts[0])
        self.interval_losses = [a + b for a, b in zip(self.interval_losses, sums, strict=True)]
        self.interval_labels = [a + int(b) for a, b in zip(self.interval_labels, counts, strict=True)]
