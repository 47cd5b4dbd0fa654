"""What happens when a step goes wrong: a loss or gradient that is not finite, or one far above its usual size.

The guard looks at a step's global loss and gradient norm before the update. They are equal on all ranks, so all
decide alike. A step that is refused leaves weights and optimizer as they were. Then, by policy,

- `skip`: the batch is left out, and the same step is made with the next one;
- `rollback`: training goes back `back_steps` steps and leaves out all batches from there to `ahead_batches` after
  the incident. So did PaLM (Chowdhery et al. 2022, section 5.1: from about 100 steps before the spike, 200 to 500
  batches left out), whose authors saw that no batch is bad by itself, but with the weights it meets;
- `stop`: training ends with an error.

Where training goes back to does not depend on which checkpoints there are: an older one is taken and its steps are
made again. So an incident is a function of the configuration and the data, and a run that is killed later replays
it, from `incidents.jsonl` beside the checkpoints.

Without torch: planning reads the configuration.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from modeling.config import Config

INCIDENTS = "incidents.jsonl"
NORMAL = 1.4826
"""Median absolute deviation times this is the standard deviation of a normal distribution."""
LEAST_DEVIATION = 1e-3
"""… and never taken as less than this share of the median: on a plateau all steps look alike."""

Incident = dict[str, Any]


class GuardConfig(Config):
    """What to do about steps that go wrong. Part of what is computed, so it is in the key."""

    non_finite: Literal["stop", "skip", "rollback"] = Field(
        "rollback", description="loss or gradient norm is NaN or infinite"
    )
    spike: Literal["off", "stop", "skip", "rollback"] = Field(
        "off", description="loss or gradient norm is `deviations` above the median of the last `window_steps`"
    )
    deviations: float = Field(10.0, gt=0, description="robust standard deviations (1.4826 · median absolute deviation)")
    window_steps: int = Field(128, ge=8, description="steps that the median is taken of; none is judged before")
    back_steps: int = Field(100, ge=0, description="rollback: so many steps before the incident")
    ahead_batches: int = Field(100, ge=0, description="rollback: batches left out after that of the incident")
    most: int = Field(3, ge=0, description="incidents that are skipped or rolled back; the next one stops")


@dataclass(frozen=True)
class Trouble:
    """Why a step was refused."""

    kind: Literal["nan", "spike"]
    cause: str
    window: dict[str, float]
    """{median, deviation} of the figure that stood out; empty where it was not finite."""


class Guard:
    """Judges steps and says which batch each step has.

    Args:
        losses, norms: of the last accepted steps, oldest first; the guard keeps them up to date in place.
        incidents: all that happened to the run so far.
    """

    def __init__(
        self, config: GuardConfig, losses: list[float], norms: list[float], incidents: Sequence[Incident]
    ) -> None:
        self.config, self.losses, self.norms = config, losses, norms
        self.incidents = list(incidents)

    def judge(self, loss: float, grad_norm: float) -> Trouble | None:
        """What is wrong with a step; None where it may be made. Remembers nothing."""
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return Trouble("nan", f"{name} is {value}", {})
        if self.config.spike == "off" or len(self.losses) < self.config.window_steps:
            return None
        for name, value, window in (("loss", loss, self.losses), ("gradient norm", grad_norm, self.norms)):
            median = statistics.median(window)
            deviation = NORMAL * statistics.median(abs(x - median) for x in window)
            deviation = max(deviation, LEAST_DEVIATION * abs(median))
            if value > median + self.config.deviations * deviation:
                far = (value - median) / deviation if deviation else math.inf
                cause = f"{name} {value:.4g} is {far:.1f} deviations above {median:.4g}"
                return Trouble("spike", cause, {"median": median, "deviation": deviation})
        return None

    def accept(self, loss: float, grad_norm: float) -> None:
        """Take an update's figures into the window."""
        if self.config.spike != "off":
            for window, value in ((self.losses, loss), (self.norms, grad_norm)):
                window.append(value)
                del window[: -self.config.window_steps]

    def batch_of(self, step: int) -> int:
        """The number of the batch that step `step` (0-based) is made with: batches left out move all after them."""
        number = step
        for first, last in _joined(incident["skipped_batches"] for incident in self.incidents):
            if number >= first:
                number += last - first + 1
        return number

    def decide(self, step: int, trouble: Trouble, *, can_go_back: bool) -> Incident:
        """The decision about a refused step (0-based), and what follows from it.

        Returns:
            {decision, to_step, skipped_batches}: how many steps stand, and the batches [first, last] left out.
        """
        policy = self.config.non_finite if trouble.kind == "nan" else self.config.spike
        handled = sum(incident["decision"] != "stop" for incident in self.incidents)
        number = self.batch_of(step)
        if policy == "stop" or handled >= self.config.most or (policy == "rollback" and not can_go_back):
            return {"decision": "stop", "to_step": step, "skipped_batches": []}
        if policy == "skip":
            return {"decision": "skip", "to_step": step, "skipped_batches": [number, number]}
        to_step = max(0, step - self.config.back_steps)
        left_out = [self.batch_of(to_step), number + self.config.ahead_batches]
        return {"decision": "rollback", "to_step": to_step, "skipped_batches": left_out}


def _joined(ranges: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """Ranges [first, last] in order, with those that overlap made one; empty ones left out."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted((r[0], r[1]) for r in ranges if r):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def in_words(incident: Incident) -> str:
    """An incident's decision as a person reads it."""
    decision, left_out = incident["decision"], incident["skipped_batches"]
    if decision == "skip":
        return f"batch {left_out[0]} left out"
    if decision == "rollback":
        return f"rolled back to step {incident['to_step']}, batches {left_out[0]} to {left_out[1]} left out"
    return "stop"


def read_incidents(folder: Path) -> list[Incident]:
    """All incidents noted in a folder, in order; a last line that a crash cut off does not count."""
    path = folder / INCIDENTS
    if not path.is_file():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def write_incidents(folder: Path, incidents: Sequence[Incident]) -> None:
    """Write them whole or not at all, and on the disk when this returns."""
    partial = folder / f".{INCIDENTS}"
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(plain(incident), sort_keys=True) + "\n" for incident in incidents)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / INCIDENTS)


def plain(value: Any) -> Any:
    """`value` as JSON that every reader takes: numbers that are not finite become their names."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
