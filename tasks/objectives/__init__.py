"""Pretraining objectives: how a packed sequence becomes inputs and labels, one file each.

A new objective is one file with a subclass of `tasks.objectives.base.Objective`, and one line here.
"""

from __future__ import annotations

from modeling.config import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "mlm": "tasks.objectives.mlm:MaskedLanguageModel",
    },
)
