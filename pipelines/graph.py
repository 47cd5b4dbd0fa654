"""A pipeline is a set of stages; passing one to another is an edge. Names, order, nothing else.

Stages with the same key are one stage, however often a recipe makes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import BadConfig
from pipelines.code import CodeIndex
from pipelines.identity import Identity, edges
from pipelines.sweep import Sweep
from tasks.base import Task


@dataclass(frozen=True)
class Registration:
    """Put the best of some models into MLflow's registry when the run ends well.

    Attributes:
        name: the registered model's name.
        candidates: (model stage, score stage) pairs; the highest primary score wins. A score of None
            registers the first model as it is.
    """

    name: str
    candidates: tuple[tuple[Task, Task | None], ...]


class Pipeline:
    """What a recipe returns: the stages to make, with all that they need.

    Args:
        targets: a stage, or stages (nested lists are flattened).
        report: a stage that gathers results; it runs even when other targets failed only if its own
            inputs are there.
        register: models to put into the registry.
        sweep: stages that are made cheapest first, as long as they are needed.
    """

    def __init__(
        self,
        targets: Any,
        *,
        report: Task | None = None,
        register: Sequence[Registration] = (),
        sweep: Sweep | None = None,
    ) -> None:
        self.targets = tuple(_flatten(targets))
        self.report = report
        self.register = tuple(register)
        self.sweep = sweep
        if not self.targets and report is None:
            raise BadConfig("the pipeline has no stages", "return Pipeline(stage) from the recipe")

    def roots(self) -> tuple[Task, ...]:
        return (*self.targets, self.report) if self.report is not None else self.targets


def _flatten(value: Any) -> Iterable[Task]:
    if isinstance(value, Task):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _flatten(item)
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from _flatten(item)
    else:
        raise BadConfig(f"a pipeline is made of stages; found {value!r}", "pass what calling a task returns")


@dataclass
class Node:
    """One stage of a resolved pipeline.

    Attributes:
        inputs: {field: names of the stages behind it}.
        many: fields that hold a tuple of stages.
    """

    name: str
    task: Task
    identity: Identity
    key: str
    inputs: dict[str, list[str]] = field(default_factory=dict)
    many: frozenset[str] = frozenset()

    @property
    def parents(self) -> list[str]:
        return list(dict.fromkeys(name for names in self.inputs.values() for name in names))


class Graph:
    """A pipeline's stages in topological order, named and keyed.

    Args:
        pipeline: what the recipe returned.
        code: the index that the code digests come from.
        accepted: {new key: old key}; an accepted key stands for the old one, so what is built on it
            keeps its key too (`triptych accept`).
    """

    def __init__(self, pipeline: Pipeline, code: CodeIndex, accepted: Mapping[str, str] | None = None) -> None:
        self.pipeline = pipeline
        self.import_paths = code.roots[1:]
        self.code = code
        self.nodes: dict[str, Node] = {}
        self._by_key: dict[str, Node] = {}
        self._of_task: dict[int, Node] = {}
        self._keep: list[Task] = []  # ids stay valid while the graph lives
        accepted = accepted or {}
        for root in pipeline.roots():
            self._visit(root, code, accepted)

    def node(self, task: Task) -> Node:
        """The node that stands for a stage of the pipeline."""
        return self._of_task[id(task)]

    def _visit(self, root: Task, code: CodeIndex, accepted: Mapping[str, str]) -> None:
        stack: list[tuple[Task, bool]] = [(root, False)]  # explicit: chains may be deeper than Python's stack
        open_: set[int] = set()
        while stack:
            task, leaving = stack.pop()
            if id(task) in self._of_task:
                continue
            below = edges(task)
            if not leaving:
                if id(task) in open_:
                    raise BadConfig(f"stage {_base_name(task)} depends on itself", "remove the cycle from the recipe")
                open_.add(id(task))
                stack.append((task, True))
                for value in below.values():
                    for item in reversed(value) if isinstance(value, tuple) else (value,):
                        if id(item) not in self._of_task:
                            stack.append((item, False))
                continue
            open_.discard(id(task))
            self._add(task, below, code, accepted)

    def _add(self, task: Task, below: Mapping[str, Any], code: CodeIndex, accepted: Mapping[str, str]) -> None:
        inputs: dict[str, list[str]] = {}
        keys: dict[str, Any] = {}
        for name, value in below.items():
            nodes = [self._of_task[id(item)] for item in (value if isinstance(value, tuple) else (value,))]
            inputs[name] = [node.name for node in nodes]
            keys[name] = [node.key for node in nodes] if isinstance(value, tuple) else nodes[0].key
        identity = Identity(task, keys, code, task.external())
        key = accepted.get(identity.key, identity.key)
        self._keep.append(task)
        if key in self._by_key:
            self._of_task[id(task)] = self._by_key[key]
            return
        name = self._free_name(task)
        many = frozenset(f for f, value in below.items() if isinstance(value, tuple))
        node = Node(name, task, identity, key, inputs, many)
        self.nodes[name] = node
        self._by_key[key] = node
        self._of_task[id(task)] = node

    def _free_name(self, task: Task) -> str:
        base = _base_name(task)
        if task.name and base in self.nodes:
            raise BadConfig(f"two different stages are named {base!r}", "give each stage of the recipe its own name=…")
        name, n = base, 2
        while name in self.nodes:
            name, n = f"{base}-{n}", n + 1
        return name

    def descendants(self, names: Iterable[str]) -> set[str]:
        """The named stages and everything that depends on them."""
        found = set(names)
        for node in self.nodes.values():  # topological order: one pass is enough
            if not found.isdisjoint(node.parents):
                found.add(node.name)
        return found

    def ancestors(self, names: Iterable[str]) -> set[str]:
        """The named stages and everything that they need."""
        found = set(names)
        for node in reversed(self.nodes.values()):
            if node.name in found:
                found.update(node.parents)
        return found


def _base_name(task: Task) -> str:
    if task.name:
        return task.name
    if type(task).stage:
        return type(task).stage
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(task).__name__).lower()
