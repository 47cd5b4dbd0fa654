"""The one config system: `Config`, a frozen and strict section, and `Registry`, names that stand for code.

A registry is plain data, `{"mlm": "tasks.objectives.mlm:MaskedLM"}`: nothing is imported until
an entry is asked for, so `--help` stays fast, and the code digest (`pipelines.identity`) can follow
the one entry a config names without tying it to its siblings: a `NAME = Registry({...})` assignment
is left out of the digest of its module.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from modeling.errors import ConfigError


class Registry(Mapping[str, str]):
    """An immutable map from a public name to `module:attribute`.

    Use it as field metadata, `objective: Annotated[str, OBJECTIVES]`: `Config` then
    refuses unknown names with the nearest valid one, and the stage's key covers the entry's code.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> str:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, name: str) -> str:
        """Return `name` if it is an entry; raise ConfigError with the nearest name otherwise."""
        if name in self._entries:
            return name
        near = difflib.get_close_matches(str(name), self._entries, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown {self.kind} {name!r}", f"{hint}known: {', '.join(self._entries)}")

    def load(self, name: str) -> Any:
        """Import and return the object that `name` stands for."""
        module, _, attribute = self._entries[self.check(name)].partition(":")
        return getattr(importlib.import_module(module), attribute)


def section(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """`values` as a section of `kind`, from within another section's validator.

    Raises ConfigError with the field's name, what was found and, for an unknown one, the nearest.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, kind.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown key {name!r}{hint}", f"known: {', '.join(kind.model_fields)}") from None
        said = item["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{name}: {said}, found {item['input']!r}" if name else said) from None


def _booleans(kind: Any, value: Any) -> list[bool]:
    """The booleans in `value` where `kind`, a type, has numbers; pydantic would take `true` for 1."""
    if get_origin(kind) is Annotated:
        return _booleans(get_args(kind)[0], value)
    if isinstance(value, bool):
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        return [value] if {int, float} & {*kinds} and bool not in kinds else []
    if isinstance(value, Mapping | list | tuple) and (inner := get_args(kind)):
        items = value.values() if isinstance(value, Mapping) else value
        return [wrong for item in items for wrong in _booleans(inner[-1 if isinstance(value, Mapping) else 0], item)]
    return []


class Config(BaseModel):
    """A frozen, strict config section.

    Unknown keys are refused, and so are booleans and infinities for numbers; registry names are checked.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Fields that stand for one another: what a scale gives of them gives way to what a user gives."""
    brought: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """{field: sections that count for nothing where it is given, since it brings its own}"""

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans_for_numbers(cls, value: Any, info: Any) -> Any:
        if wrong := _booleans(cls.model_fields[info.field_name].annotation, value):
            raise ConfigError(f"expected a number, found {wrong[0]} (in YAML yes, no, on and off are booleans, too)")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _registry_names(cls, value: Any, info: Any) -> Any:
        for meta in cls.model_fields[info.field_name].metadata:
            if isinstance(meta, Registry):
                for name in (value,) if isinstance(value, str) else tuple(value or ()):
                    meta.check(name)
        return value
