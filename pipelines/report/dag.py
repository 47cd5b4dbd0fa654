"""The graph to draw: a run's stages, with repeated siblings and long chains folded until it fits a page."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FITS = 30
"""So many stages are drawn one by one; above it siblings are folded."""
MOST = 60
"""Boxes on a page at the most."""
DEEPEST = 20
"""Layers on a page, before unbranched chains of one task are folded."""
WORST = ("failed", "running", "cancelled", "skipped", "pending", "done", "cached", "pruned")
"""States from the one that matters most; a folded box has the colour of its worst."""


@dataclass
class Box:
    """One box: a stage, or several of a kind. `inputs` are indices of boxes."""

    label: str
    stages: list[Mapping[str, Any]]
    inputs: set[int] = field(default_factory=set)
    kind: str = ""
    """`siblings`, `chain`, `task` or empty for a single stage."""

    @property
    def state(self) -> str:
        found = {str(stage.get("state") or "pending") for stage in self.stages}
        return next((state for state in WORST if state in found), "pending")

    @property
    def states(self) -> list[tuple[str, int]]:
        """(state, count), worst first."""
        counts = Counter(str(stage.get("state") or "pending") for stage in self.stages)
        return sorted(counts.items(), key=lambda item: WORST.index(item[0]) if item[0] in WORST else 99)


def fold(stages: Sequence[Mapping[str, Any]]) -> list[Box]:
    """Boxes in topological order for `stages`: each its own, or folded where there are too many.

    Siblings do the same task on the same (folded) inputs, as the seeds of a fine-tuning do. If that is
    not enough, chains of one task become a box, and at last all stages of a task.
    """
    stages = _ordered(stages)
    if len(stages) <= FITS:
        return _quotient(stages, [stage["name"] for stage in stages], "")
    shape: dict[str, Hashable] = {}
    seen: dict[Hashable, int] = {}  # a signature as a small number, else it would grow with the depth
    for stage in stages:
        inputs = frozenset(shape[name] for name in stage["inputs"])
        shape[stage["name"]] = seen.setdefault((stage["task"], inputs), len(seen))
    boxes = _quotient(stages, [shape[stage["name"]] for stage in stages], "siblings")
    if len(boxes) > MOST or max(depths(boxes)) >= DEEPEST:
        boxes = _quotient(stages, _chains(stages), "chain")
    if len(boxes) > MOST:
        boxes = _quotient(stages, [stage["task"] for stage in stages], "task")
    for box in boxes:
        box.inputs = {number for number in box.inputs if number < MOST}
    return boxes[:MOST]


def depths(boxes: Sequence[Box]) -> list[int]:
    """Layer of each box: one more than its deepest input."""
    layer = [0] * len(boxes)
    for index, box in enumerate(boxes):
        layer[index] = max((layer[number] + 1 for number in box.inputs if number < index), default=0)
    return layer


def _ordered(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Stages with every field this module needs, inputs before users; unknown inputs are dropped."""
    known: dict[str, dict[str, Any]] = {}
    for number, stage in enumerate(stages):
        name = str(stage.get("name") or f"stage {number}")
        known[name] = {**stage, "name": name, "task": str(stage.get("task") or name)}
    for stage in known.values():
        stage["inputs"] = [str(name) for name in stage.get("inputs") or () if str(name) in known]
    order: dict[str, dict[str, Any]] = {}
    for start in known:
        stack = [(start, iter(known[start]["inputs"]))]
        path = {start}
        while stack:
            name, rest = stack[-1]
            following = next((other for other in rest if other not in order and other not in path), None)
            if following is not None:
                path.add(following)
                stack.append((following, iter(known[following]["inputs"])))
            else:
                stack.pop()
                order.setdefault(name, known[name])
    return list(order.values())


def _chains(stages: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    """For each stage the head of the unbranched chain of one task that it belongs to."""
    by_name = {stage["name"]: stage for stage in stages}
    users = Counter(name for stage in stages for name in stage["inputs"])
    head: dict[str, Hashable] = {}
    for stage in stages:
        before = stage["inputs"][0] if len(stage["inputs"]) == 1 else None
        goes_on = before is not None and users[before] == 1 and by_name[before]["task"] == stage["task"]
        head[stage["name"]] = head[before] if goes_on and before is not None else stage["name"]
    return [head[stage["name"]] for stage in stages]


def _quotient(stages: Sequence[Mapping[str, Any]], groups: Sequence[Hashable], kind: str) -> list[Box]:
    members: dict[Hashable, list[Mapping[str, Any]]] = defaultdict(list)
    group_of = {stage["name"]: group for stage, group in zip(stages, groups, strict=True)}
    for stage in stages:
        members[group_of[stage["name"]]].append(stage)
    number = {group: index for index, group in enumerate(members)}
    boxes = []
    for group, inside in members.items():
        inputs = {number[group_of[name]] for stage in inside for name in stage["inputs"]} - {number[group]}
        single = len(inside) == 1
        boxes.append(Box(inside[0]["name"] if single else _label(inside), inside, inputs, "" if single else kind))
    return boxes


def _label(inside: Sequence[Mapping[str, Any]]) -> str:
    """The parts that the names have in common (`finetune-pretrained`), if that says something, else the task."""
    split = [re.split(r"[-_.]", str(stage["name"])) for stage in inside]
    rest = [set(parts) for parts in split[1:]]
    common = [part for part in split[0] if part and not part.isdigit() and all(part in other for other in rest)]
    label = "-".join(common)
    return label if len(label) >= 3 else str(inside[0]["task"])
