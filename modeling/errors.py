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


class NonFiniteLoss(ArithmeticError):
    """The loss or a gradient became NaN or infinite; carries the step and the sample indices."""

    def __init__(self, step: int, samples: list[int]) -> None:
        super().__init__(step, samples)
        self.step = step
        self.samples = samples

    def __str__(self) -> str:
        return f"loss not finite at step {self.step} (samples {self.samples[:4]}…)"


class TrainingStopped(Exception):
    """`should_stop` said so; a checkpoint of `step` steps was written, and `fit` continues from it."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step

    def __str__(self) -> str:
        return f"training stopped after step {self.step}"
