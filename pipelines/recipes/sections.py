"""Config sections for recipes, taken from the tasks themselves, so that no default lives twice."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from pydantic import create_model

from modeling.config import Config, Registry
from tasks.base import Produces, Task


def settings_of(task: type[Task], *without: str, **changed: Any) -> type[Config]:
    """A section with a task's own settings: its fields but edges, name, runtime and those in `without`.

    Args:
        changed: other defaults for this recipe.
    """
    fields: dict[str, Any] = {}
    for name, field in task.model_fields.items():
        if name in ("name", "runtime", *without) or _is_edge(field.annotation, field.metadata):
            continue
        copied = copy.copy(field)
        if name in changed:
            copied.default = changed.pop(name)
        # a task may give a word of its own to a registry field (`auto`) and resolve it when it is made
        copied.metadata = [m for m in field.metadata if not isinstance(m, Registry) or copied.default in m]
        fields[name] = (field.annotation, copied)
    if changed:
        raise TypeError(f"{task.__name__} has no settings {', '.join(changed)}")
    return create_model(f"{task.__name__}Settings", __base__=Config, **fields)


def _is_edge(annotation: Any, metadata: Iterable[Any]) -> bool:
    if any(isinstance(item, Produces) for item in metadata):
        return True
    inner = getattr(annotation, "__args__", ())
    return any(_is_edge(item, getattr(item, "__metadata__", ())) for item in inner)


def given(section: Config) -> dict[str, Any]:
    """A section's values as arguments for the task."""
    return {name: getattr(section, name) for name in type(section).model_fields}
