"""Errors of the model code that a user can put right: an impossible configuration, a wrong shape."""

from __future__ import annotations


class ConfigError(ValueError):
    """A model or objective configuration that cannot work.

    Args:
        message: the field, what was found and what was expected.
        remedy: what to do next; empty when the message already says it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class BadStep(ArithmeticError):
    """A step went wrong (`modeling.guard`), and the policy or its limit says to stop.

    Attributes:
        step: 0-based. cause: in words. samples: sample numbers of its batch, of all ranks.
        handled: how many incidents had been skipped or rolled back before.
    """

    def __init__(self, step: int, cause: str, samples: list[int], handled: int) -> None:
        super().__init__(step, cause, samples, handled)
        self.step, self.cause, self.samples, self.handled = step, cause, samples, handled

    @property
    def message(self) -> str:
        before = f", after {self.handled} incidents that were skipped or rolled back" if self.handled else ""
        return f"{self.cause} at step {self.step + 1} (samples {str(self.samples[:4])[1:-1]}, …){before}"

    remedy = "lower the learning rate, or look at the samples: incidents.jsonl has them; guard.* sets the policy"

    def __str__(self) -> str:
        return self.message


class NonFiniteLoss(BadStep):
    """The loss or the gradient norm became NaN or infinite."""


class LossSpike(BadStep):
    """The loss or the gradient norm was far above what it had been."""


class RolledBack(Exception):
    """Training goes back to an earlier step: whoever built the model builds it again and calls `fit` again."""

    def __init__(self, step: int, to_step: int) -> None:
        super().__init__(step, to_step)
        self.step, self.to_step = step, to_step

    def __str__(self) -> str:
        return f"rolled back from step {self.step + 1} to {self.to_step}"


class TrainingStopped(Exception):
    """`should_stop` said so; a checkpoint of `step` steps was written, and `fit` continues from it."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step

    def __str__(self) -> str:
        return f"training stopped after step {self.step}"
