"""Settings of the cleaning steps: plain data, since planning imports no numpy.

Each class has `kind` (its name in `tasks.cleaning.STEPS`) and its thresholds, with the published value as the default
and its source in the description.
"""

from __future__ import annotations

from typing import ClassVar

from modeling.config import Config


class StepSettings(Config):
    """Base of the steps' settings."""

    needs_evaluation: ClassVar[bool] = False
    """Whether the step must see the downstream tasks' rows."""
    compares: ClassVar[bool] = False
    """Whether it is a `CorpusStep`."""
