"""Errors that tell a user what is wrong and what to do; shown without a traceback.

`cluster` raises them for stores, trackers and Ray; `tasks` and `pipelines` raise them for
configs and data. `modeling` has its own (`modeling.errors.ConfigError`), since it imports
none of the other packages; both carry `message` and `remedy`.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake or an outside condition that the user can put right.

    Args:
        message: what was found, where (file, field or stage), and what was expected.
        remedy: what to do next, one sentence; empty when the message already says it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)  # both in args, so that it survives being sent between processes
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class BadConfig(UserError):
    """A config value that cannot work; found before anything runs (exit code 2)."""


class BadData(UserError):
    """Input data that cannot be used; never retried (a stage fails, exit code 1)."""


class Unreachable(UserError):
    """A store, tracking server or Ray cluster that does not answer."""


class NoRoom(UserError):
    """The Ray cluster has no room for a stage's workers, and waiting for a node brought none."""


class LeaseLost(UserError):
    """Another writer took the stage over; this one may not publish."""


class Cancelled(UserError):
    """The run was cancelled while the stage was at work."""
