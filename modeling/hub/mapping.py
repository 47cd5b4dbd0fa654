"""State dicts by rules: each says which tensor of ours is made of which of theirs, and works in both directions.

A rule's operation (`join` theirs into ours, `split` ours into theirs) only moves numbers, it never computes with
them, so that a round trip gives every byte back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from modeling.errors import ConfigError

SHOWN = 8
"""Names that a message lists before it says how many more there are."""


class Operation:
    """One tensor as it is."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Ours, of theirs."""
        return parts[0]

    def split(self, whole: Tensor, parts: int) -> Sequence[Tensor]:
        """Theirs, of ours."""
        return [whole]


class Stacked(Operation):
    """Several of theirs, one below the other: queries, keys and values; the two branches of a gated layer."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    def split(self, whole: Tensor, parts: int) -> Sequence[Tensor]:
        return whole.chunk(parts)


class Turned(Operation):
    """Transposed: GPT's `Conv1D` keeps its matrix as [inputs, outputs]."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0].T

    def split(self, whole: Tensor, parts: int) -> Sequence[Tensor]:
        return [whole.T]


@dataclass(frozen=True)
class Rows(Operation):
    """Rows of the vocabulary: ours has more of them, which hold `fill`."""

    count: int
    padded: int
    fill: float = 0.0
    lead: tuple[int, ...] = ()
    """Leading dimensions of size 1 that theirs has and ours has not (BART's bias)."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        rows = parts[0].reshape(parts[0].shape[len(self.lead) :])
        whole = rows.new_full((self.padded, *rows.shape[1:]), self.fill)
        whole[: len(rows)] = rows
        return whole

    def split(self, whole: Tensor, parts: int) -> Sequence[Tensor]:
        return [whole[: self.count].reshape(*self.lead, self.count, *whole.shape[1:])]


COPY, STACKED, TURNED = Operation(), Stacked(), Turned()


class Rule(NamedTuple):
    """`ours` is `operation.join` of `theirs`."""

    ours: str
    theirs: tuple[str, ...]
    operation: Operation = COPY


def rule(ours: str, *theirs: str, by: Operation = COPY) -> Rule:
    """A `Rule`, as the families write it."""
    return Rule(ours, theirs, by)


def layer(ours: str, theirs: str, by: Operation = COPY, bias: bool = True) -> list[Rule]:
    """The rules of a linear layer or a norm: weight and bias; a bias is never transposed."""
    found = [rule(f"{ours}.weight", f"{theirs}.weight", by=by)]
    if bias:
        found.append(rule(f"{ours}.bias", f"{theirs}.bias"))
    return found


def stacked(ours: str, theirs: Iterable[str], bias: bool = True) -> list[Rule]:
    """The rules of one linear layer of ours that is several of theirs."""
    theirs = tuple(theirs)
    kinds = ("weight", "bias") if bias else ("weight",)
    return [rule(f"{ours}.{kind}", *(f"{name}.{kind}" for name in theirs), by=STACKED) for kind in kinds]


@dataclass(frozen=True)
class StateMap:
    """All that a family says about one model's tensors.

    Attributes:
        rules: in the order of writing.
        blanks: theirs that we have no tensor for and that hold zeros: {name: shape}.
        copies: theirs that hold the same as another of theirs, and are written: {name: the other}.
        aliases: the same, not written: tied weights, of which some files keep two.
        left: patterns of names that files have and this model does not use (poolers, buffers).
    """

    rules: tuple[Rule, ...]
    blanks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()


def to_hub(state: Mapping[str, Tensor], mapping: StateMap) -> dict[str, Tensor]:
    """Their tensors of ours, each with storage of its own."""
    tensors: dict[str, Tensor] = {}
    for each in mapping.rules:
        parts = each.operation.split(state[each.ours], len(each.theirs))
        tensors |= {name: part.detach().clone().contiguous() for name, part in zip(each.theirs, parts, strict=True)}
    tensors |= {name: torch.zeros(shape) for name, shape in mapping.blanks.items()}
    tensors |= {name: tensors[of].clone() for name, of in mapping.copies.items()}
    return tensors


def from_hub(
    tensors: Mapping[str, Tensor], mapping: StateMap, shapes: Mapping[str, torch.Size], where: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(our tensors in float32, those of theirs that are left).

    Args:
        shapes: of our model's tensors.
        where: the file, for messages.

    Raises:
        ConfigError: tensors are missing, not expected, or of another shape; names them.
    """
    found = dict(tensors)
    same = {**mapping.aliases, **mapping.copies}
    for name, of in same.items():
        if name in found and of not in found:  # of two tied ones a file may hold either
            found[of] = found[name]
    missing = [name for each in mapping.rules for name in each.theirs if name not in found]
    if missing:
        raise ConfigError(
            f"{where}: {len(missing)} tensors are missing: {_listed(missing)}",
            "the file does not hold the model that its config.json describes",
        )
    state: dict[str, Tensor] = {}
    for each in mapping.rules:
        parts = [found[name].to(torch.float32) for name in each.theirs]
        expected, whole = shapes[each.ours], _joined(each, parts)
        if whole is None or whole.shape != expected:
            sizes = ", ".join(f"{name} {list(part.shape)}" for name, part in zip(each.theirs, parts, strict=True))
            raise ConfigError(f"{where}: {sizes} does not fit {each.ours} {list(expected)} of the config")
        state[each.ours] = whole.clone().contiguous()
    used = {name for each in mapping.rules for name in each.theirs}
    rest = {name: value for name, value in found.items() if name not in used}
    rest = {name: value for name, value in rest.items() if not _is_blank(name, value, mapping)}
    for name, of in same.items():
        if name in rest and torch.equal(rest[name], found[of]):
            del rest[name]
    left = {name for name in rest if any(re.search(pattern, name) for pattern in mapping.left)}
    unexpected = [name for name in rest if name not in left]
    if unexpected:
        raise ConfigError(
            f"{where}: {len(unexpected)} tensors are not expected: {_listed(unexpected)}",
            "the model has parts that its config.json does not tell of, or that Triptych does not build",
        )
    return state, {name: rest[name] for name in rest if name in left}


def _joined(each: Rule, parts: Sequence[Tensor]) -> Tensor | None:
    try:
        return each.operation.join(parts)
    except (RuntimeError, IndexError):
        return None  # parts of shapes that do not go together; the caller shows them


def _is_blank(name: str, value: Tensor, mapping: StateMap) -> bool:
    return name in mapping.blanks and tuple(value.shape) == mapping.blanks[name] and not bool(value.any())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
