"""What is tried again after a failure, and how: by the class of the error, never by a count alone.

A lost worker gets a new one, memory gets a smaller micro-batch, an unreachable store gets patience, a loss that is
not finite gets one more try from the last checkpoint (a fault of the machine does not come twice at one step). Bad
config, bad data, a full disk, a cluster without room and plain bugs stop at once. A stage that gets further between
its failures goes on through any number of them: `max_retries` counts those in a row that brought nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.base import Runtime

RULES = {
    "worker": "a lost worker: again on a new one",
    "memory": "out of memory",
    "nan": "not finite: again from the last checkpoint, once",
    "unreachable": "the store did not answer: again after a pause",
    "lease": "another driver took the stage over: its result is used",
}
SMALLER = (
    "use placement.zero_stage=1 to 3, placement.offload_optimizer=cpu, placement.activation_checkpointing=true, more "
    "placement.workers, shorter examples.length_tokens or a smaller model"
)


@dataclass
class Failures:
    """What a stage has been through in this driver."""

    in_a_row: int = 0
    """Since the stage last got further."""
    furthest: float = -1.0
    """Its progress at most, at an earlier failure."""
    gained: bool = False
    """A checkpoint was saved since the last failure."""
    at_work: dict[str, Any] = field(default_factory=dict)
    """Of the attempt at work: micro_batch, accumulation, workers, batch_size; ranks."""
    not_finite: bool = False

    def failed_at(self, done: float) -> None:
        """A failure at so much progress: one further on, with a checkpoint in between, is the first of a new row."""
        if self.gained and done > self.furthest:
            self.in_a_row = 0
        self.gained, self.furthest = False, max(self.furthest, done)


@dataclass(frozen=True)
class Decision:
    """What follows from a failure.

    Attributes:
        again: try again; otherwise the stage has failed.
        words: what was decided, for the record; empty where there was nothing to decide.
        runtime: the placement of the next attempt.
        pause_seconds: wait so long before it.
        remedy: what the user can do, where the error does not say it.
    """

    again: bool
    words: str
    runtime: Runtime
    pause_seconds: float = 0.0
    remedy: str = ""


def decide(error: Mapping[str, Any], runtime: Runtime, failures: Failures) -> Decision:
    """The decision after `error` (`pipelines.worker.describe`); keeps `failures` up to date."""
    kind = error["class"]
    if kind == "lease":
        return Decision(True, RULES[kind], runtime)
    if kind not in RULES:
        return Decision(False, "", runtime)
    if kind == "nan":
        # Whatever the loop's own policy could do, it has done: only a fault of the machine is left.
        if failures.not_finite or error.get("handled"):
            return Decision(False, "stop: it is not finite again", runtime)
        failures.not_finite = True
        return Decision(True, RULES[kind], runtime)
    if kind == "memory" and "micro_batch" in failures.at_work:
        return _smaller(runtime, failures.at_work)
    if failures.in_a_row >= runtime.max_retries:
        words = f"stop: {RULES[kind].partition(':')[0]}, {failures.in_a_row + 1} times without getting further"
        return Decision(False, words, runtime)
    failures.in_a_row += 1
    if kind == "memory":
        return Decision(True, f"{RULES[kind]}: again as it was, others may have used it", runtime, pause_seconds=2.0)
    pause = min(30.0, 2.0 ** (failures.in_a_row - 1)) if kind == "unreachable" else 0.0
    return Decision(True, RULES[kind], runtime, pause)


def _smaller(runtime: Runtime, at_work: Mapping[str, Any]) -> Decision:
    """Half the micro-batch, twice the accumulation: the same global batch, the same mathematics."""
    micro, accumulation = at_work["micro_batch"], at_work["accumulation"]
    if micro <= 1:
        return Decision(False, "stop: out of memory with a micro-batch of 1", runtime, remedy=SMALLER)
    half = micro // 2
    rows = -(-at_work["batch_size"] // at_work["workers"])
    words = (
        f"{RULES['memory']}: micro-batch {micro} → {half}, accumulation {accumulation} → {-(-rows // half)}, "
        f"batch size {at_work['batch_size']} as before"
    )
    return Decision(True, words, runtime.model_copy(update={"micro_batch": half}))
