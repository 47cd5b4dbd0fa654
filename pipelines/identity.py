"""A stage's identity: the canonical form of its config, and its key.

    key = BLAKE2b(task, canonical config, external fingerprints, keys of the inputs, code digest)

Placement never enters: fields of type `Runtime` and the display `name` are dropped by the encoder, not
by the tasks. Values that have no stable text (sets, objects, NaN) are refused rather than guessed at.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel

from cluster.errors import BadConfig
from modeling.config import Registry
from pipelines.code import CodeIndex
from tasks.base import Runtime, Task

KEY_FORMAT = "triptych-1"


def canonical(value: Any, where: str = "", key_of: Callable[[Task], str] | None = None) -> Any:
    """`value` as plain JSON data that means the same everywhere.

    Args:
        value: None, bool, int, finite float, str, enum, list, tuple, mapping with string keys, a config
            section, or a stage (which becomes `{"stage": key_of(stage)}`).
        where: path of the field, for the error.
        key_of: gives the key of a stage that stands in the config.

    Raises:
        BadConfig: for anything else, naming the field.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Enum):
        return canonical(value.value, where, key_of)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadConfig(f"{where}: {value} has no stable identity", "use a finite number or leave the field out")
        return value
    if isinstance(value, Task):
        if key_of is None:
            raise BadConfig(f"{where}: a stage may not stand here", "pass stages only to fields that are edges")
        return {"stage": key_of(value)}
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: canonical(getattr(value, name), f"{where}.{name}" if where else name, key_of)
            for name in sorted(fields)
            if _counts(value, name)
        }
    if isinstance(value, list | tuple):
        return [canonical(item, f"{where}[{i}]", key_of) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        if bad := [k for k in value if not isinstance(k, str)]:
            raise BadConfig(f"{where}: key {bad[0]!r} is not a string", "use string keys")
        return {k: canonical(value[k], f"{where}.{k}", key_of) for k in sorted(value)}
    raise BadConfig(
        f"{where}: {type(value).__name__} {value!r} has no stable identity",
        "use numbers, strings, lists, string-keyed maps or a Config section",
    )


def edges(task: Task) -> dict[str, Task | tuple[Task, ...]]:
    """The stages that a stage's fields point to: {field: stage or stages}."""
    found: dict[str, Task | tuple[Task, ...]] = {}
    for name in type(task).model_fields:
        value = getattr(task, name)
        if isinstance(value, Task):
            found[name] = value
        elif isinstance(value, tuple | list) and any(isinstance(item, Task) for item in value):
            found[name] = tuple(value)
    return found


def _counts(section: BaseModel, name: str) -> bool:
    """Whether a field is part of the identity: placement is not, nor what a field declares to be a place.

    `Field(json_schema_extra={"identity": False})` marks a path or URL whose content enters the key by
    `Task.external` instead.
    """
    extra = type(section).model_fields[name].json_schema_extra
    if isinstance(extra, dict) and extra.get("identity") is False:
        return False
    return not isinstance(getattr(section, name), Runtime)


def config_of(task: Task) -> dict[str, Any]:
    """A stage's canonical config: every field that is neither an edge, placement nor display name."""
    skip = {"name", *edges(task)}
    return {
        name: canonical(getattr(task, name), name)
        for name in sorted(type(task).model_fields)
        if name not in skip and _counts(task, name)
    }


def task_name(task: Task) -> str:
    """`module:Class`, the task's part of the identity."""
    return f"{type(task).__module__}:{type(task).__qualname__}"


def code_roots(task: Task) -> list[str]:
    """The task's class and every registry entry that its config names, nested sections included."""
    return [task_name(task), *sorted(set(_entries(task)))]


def _entries(section: BaseModel) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        for meta in field.metadata:
            if isinstance(meta, Registry):
                names = (value,) if isinstance(value, str) else tuple(value or ())
                yield from (meta[each] for each in names)
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, BaseModel) and not isinstance(item, Task | Runtime):
                yield from _entries(item)


class Identity:
    """Everything that goes into one stage's key, kept apart so that a change can be explained."""

    def __init__(self, task: Task, inputs: Mapping[str, Any], code: CodeIndex, external: Mapping[str, Any]) -> None:
        self.task = task_name(task)
        self.config = config_of(task)
        self.external = canonical(dict(external), "external")
        self.inputs = {field: inputs[field] for field in sorted(inputs)}
        self.code, checksum = code.digest(code_roots(task))
        text = json.dumps(
            [KEY_FORMAT, self.task, self.config, self.external, self.inputs, checksum],
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=True,
            allow_nan=False,
        )
        self.key = hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
