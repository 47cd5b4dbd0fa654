"""Optimizers: what a run can be told of each (`settings`), and what makes it, one file each.

A new one is a file with a function `(groups, settings, peak_lr) → torch.optim.Optimizer`, its settings in
`modeling/optimizers/settings.py`, and one line in each of the two registries here.
"""

from __future__ import annotations

from modeling.config import Registry

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adamw": "modeling.optimizers.adamw:adamw",
        "adafactor": "modeling.optimizers.adafactor:adafactor",
        "lamb": "modeling.optimizers.lamb:lamb",
        "lion": "modeling.optimizers.lion:lion",
        "muon": "modeling.optimizers.muon:muon",
    },
)
"""What makes the optimizer: torch."""

SETTINGS = Registry(
    "optimizer",
    {
        "adamw": "modeling.optimizers.settings:AdamW",
        "adafactor": "modeling.optimizers.settings:Adafactor",
        "lamb": "modeling.optimizers.settings:Lamb",
        "lion": "modeling.optimizers.settings:Lion",
        "muon": "modeling.optimizers.settings:Muon",
    },
)
"""What each can be told: plain data, read when a run is planned."""
