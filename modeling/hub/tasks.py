"""Fine-tuned models in the Hub's layout: `…ForSequenceClassification` and `…ForQuestionAnswering`.

What a fine-tuned model's head is stands beside its weights, in `head.json`. A regression's scores were learnt with mean
0 and deviation 1; the exported layer gives them on the task's own scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from modeling.errors import ConfigError
from modeling.hub.mapping import Rule, layer

HEAD = "head.json"
CLASSIFIER, SPAN = "classifier", "span"
TASK_HEADS = frozenset({CLASSIFIER, SPAN})


def task_head(folder: Path) -> dict[str, Any] | None:
    """{name, settings} of a fine-tuned model's head; None where the folder holds none.

    Raises:
        ConfigError: `head.json` is not what `finetune` writes.
    """
    path = folder / HEAD
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings = {"pairs": "none", "kind": str(found["kind"]), "labels": [str(name) for name in found["labels"]]}
        settings |= {
            name: found[name] for name in ("pooling", "both_orders", "label_mean", "label_std") if name in found
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a task's head: {error!r}", "take the file that was written with the weights"
        ) from None
    return {"name": SPAN if settings["kind"] == "span" else CLASSIFIER, "settings": settings}


def task_limits(head: Mapping[str, Any]) -> Iterator[str]:
    """What theirs do not do: they read the first token's state, and a pair in one order."""
    if head["name"] != CLASSIFIER:
        return
    if head["settings"].get("pooling") != "cls":
        yield f"pooling is {head['settings'].get('pooling')}, expected cls"
    if head["settings"].get("both_orders"):
        yield "both_orders is true, expected false"


def task_rules(head: Mapping[str, Any], pooler: str, classifier: str) -> list[Rule]:
    """Tensors of a task's head, by their names of the pooler and of the last layer; none for other heads."""
    if head["name"] == CLASSIFIER:
        return layer("pooler", pooler) + layer("classifier", classifier)
    return layer("span", "qa_outputs") if head["name"] == SPAN else []


def task_fields(head: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of their config: the classes by name, or that there are none."""
    if head["name"] != CLASSIFIER:
        return {}
    settings = head["settings"]
    if settings["kind"] == "regression":
        return {"problem_type": "regression", "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return {
        "problem_type": "single_label_classification",
        "id2label": {str(place): name for place, name in enumerate(settings["labels"])},
        "label2id": {name: place for place, name in enumerate(settings["labels"])},
    }


def on_the_tasks_scale(state: dict[str, Tensor], head: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights, such that a regression gives the task's own scores: `classifier.weight` [1, D], `.bias` [1]."""
    settings = head["settings"]
    if head["name"] != CLASSIFIER or settings["kind"] != "regression" or "label_std" not in settings:
        return state
    std, mean = float(settings["label_std"]), float(settings["label_mean"])
    weight, bias = state["classifier.weight"], state["classifier.bias"]
    return {**state, "classifier.weight": weight * std, "classifier.bias": bias * std + mean}
