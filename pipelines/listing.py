"""What `triptych recipes RECIPE` lists: each setting with the value that a run without words has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from modeling.config import Registry
from pipelines.config import Recipe, defaults


class Setting(NamedTuple):
    """One line of the listing.

    Attributes:
        path: what stands before the `=` on the command line.
        default: as JSON; None where there is none.
    """

    path: str
    type: str
    default: Any
    help: str


def settings(recipe: Recipe) -> Iterator[Setting]:
    """All settings of a recipe, in the order of its config."""
    return _rows(recipe.section()[0], defaults(recipe), "")


def _rows(kind: type[BaseModel], values: Mapping[str, Any], above: str) -> Iterator[Setting]:
    for name, field in kind.model_fields.items():
        value = values[name] if name in values else field.get_default(call_default_factory=True)
        path, annotation = f"{above}{name}", field.annotation
        if isinstance(value, BaseModel):  # of its own class: which objective, which optimizer
            yield from _rows(type(value), dict(value), f"{path}.")
        elif value is PydanticUndefined and isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _rows(annotation, {}, f"{path}.")
        else:
            default = None if value is PydanticUndefined else to_jsonable_python(value)
            yield Setting(path, type_text(annotation, field.metadata), default, field.description or "")


def type_text(kind: Any, metadata: Any = ()) -> str:
    """A type as a reader wants it: `tuple[str, ...] | None`, and the names of a registry as a `Literal`."""
    for item in metadata:
        if isinstance(item, Registry):
            return f"Literal[{', '.join(map(repr, item))}]"
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_text(inner[0], inner[1:])
    if origin in (Union, UnionType):
        return " | ".join(type_text(each) for each in inner)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if origin is not None:
        return f"{origin.__name__}[{', '.join('...' if each is ... else type_text(each) for each in inner)}]"
    return "None" if kind is type(None) else getattr(kind, "__name__", str(kind))
