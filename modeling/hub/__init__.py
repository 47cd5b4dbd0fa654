"""Models of the Hugging Face Hub: import from and export to its layout, one file per family.

A family says as data how its config and its tensors are ours (`modeling.hub.family`); `mapping` applies that in
both directions. This module itself loads nothing heavy: plans read `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling.config import Registry

if TYPE_CHECKING:
    from modeling.hub.family import Family
    from modeling.hub.importing import Imported

FAMILIES = Registry(
    "family of the Hub",
    {
        "albert": "modeling.hub.albert:Albert",
        "bert": "modeling.hub.bert:Bert",
        "roberta": "modeling.hub.roberta:Roberta",
        "electra": "modeling.hub.electra:Electra",
        "gpt2": "modeling.hub.gpt2:Gpt2",
        "openai-gpt": "modeling.hub.gpt2:OpenAIGpt",
        "qwen3": "modeling.hub.qwen3:Qwen3",
        "t5": "modeling.hub.t5:T5",
        "bart": "modeling.hub.bart:Bart",
        "xlnet": "modeling.hub.xlnet:XLNet",
    },
)
"""By `model_type` of their config.json. The first that can express a model takes it: ALBERT before BERT, which
would write shared layers out."""


def family_of(config: Any, head: Mapping[str, Any], roles: Mapping[str, int] | None = None) -> Family:
    """See `modeling.hub.family.family_of`."""
    from modeling.hub import family

    return family.family_of(config, head, roles)


def export_model(folder: Path, to: Path) -> dict[str, Any]:
    """See `modeling.hub.exporting.export_model`."""
    from modeling.hub import exporting

    return exporting.export_model(folder, to)


def import_model(folder: Path) -> Imported:
    """See `modeling.hub.importing.import_model`."""
    from modeling.hub import importing

    return importing.import_model(folder)


def import_into(folder: Path, out: Path) -> dict[str, Any]:
    """See `modeling.hub.importing.import_into`."""
    from modeling.hub import importing

    return importing.import_into(folder, out)
