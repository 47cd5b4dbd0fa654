"""Runs that are made cheapest first, and only as long as they are needed.

A recipe hands a `Sweep` to its pipeline: the stages in the order of their cost, and a rule that looks at what has
been made and says which of the others are not needed any more. Those become `pruned`: not made, not failed. A task that
takes several runs and can do with fewer names the field in `Task.partial`; whatever else is behind a pruned stage is
pruned too. The rule is a pure function of the artifacts' manifests, so the same command again comes to the same end,
and what is there already is used, however it came to be made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.base import Task

if TYPE_CHECKING:
    from pipelines.graph import Graph

PRUNED = "pruned"
Made = Mapping[int, Mapping[str, Any]]
"""{number of a stage in the sweep: manifest of its artifact}."""


@dataclass(frozen=True)
class Sweep:
    """Stages in the order in which they are to be made, and what ends them.

    Attributes:
        stages: cheapest first.
        unneeded: what has been made → {number of a stage that is not needed: why}. It may name stages that are made.
    """

    stages: tuple[Task, ...]
    unneeded: Callable[[Made], Mapping[int, str]]

    def ranks(self, graph: Graph) -> dict[str, int]:
        """{stage's name: its place in the order}."""
        return {graph.node(stage).name: number for number, stage in enumerate(self.stages)}


def pruned(graph: Graph, made: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{stage: why it is not needed}, given the manifests of those that are made, by name.

    Stages behind a pruned one go with it, but for those that can do with fewer inputs and have some left.
    """
    sweep = graph.pipeline.sweep
    if sweep is None:
        return {}
    ranks = sweep.ranks(graph)
    names = {number: name for name, number in ranks.items()}
    found = sweep.unneeded({number: made[name] for name, number in ranks.items() if name in made})
    out = {names[number]: why for number, why in found.items() if names[number] not in made}
    for node in graph.nodes.values():  # topological order: one pass is enough
        if node.name in out or node.name in made:
            continue
        for field, stages in node.inputs.items():
            gone = [stage for stage in stages if stage in out]
            if gone and (field not in node.task.partial or len(gone) == len(stages)):
                out[node.name] = f"needs {gone[0]}, which is not made: {out[gone[0]]}"
                break
    return out
