"""What a run would do: for each stage cached / run / stale, and why, down to the field or function.

- `cached`: the artifact is there, made from these inputs.
- `stale`: the recipe made this stage before, from something that has changed since; `changes` says what.
- `pruned`: a run of a sweep that is not needed, given those that are made.
- `run`: never made, or forced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import BadConfig
from cluster.store import Store
from pipelines.graph import Graph, Node
from pipelines.sweep import PRUNED, pruned

CACHED, RUN, STALE = "cached", "run", "stale"
_ABSENT = "(absent)"


@dataclass
class Step:
    """One stage of a plan.

    Attributes:
        changes: lines such as `config steps: 100 -> 200` or `code tasks.pretrain:Pretrain.run changed`.
        expected_seconds: from the manifest of its last execution; None where there was none.
    """

    node: Node
    state: str
    reason: str
    changes: list[str] = field(default_factory=list)
    manifest: dict[str, Any] | None = None
    expected_seconds: float | None = None

    @property
    def name(self) -> str:
        return self.node.name

    def as_json(self) -> dict[str, Any]:
        return {
            "stage": self.name,
            "task": self.node.identity.task,
            "key": self.node.key,
            "state": self.state,
            "reason": self.reason,
            "changes": self.changes,
            "inputs": self.node.inputs,
            "expected_seconds": self.expected_seconds,
        }


class Plan:
    """The steps of a pipeline in topological order.

    Args:
        graph: the resolved pipeline.
        store: where artifacts are looked for.
        force: stages to run although they are cached.
        only: stages to make, with what they need; empty means all.
        known: {stage: key} of earlier runs of the recipe, for the reasons.

    Raises:
        BadConfig: `force` or `only` names a stage that the pipeline has not.
    """

    def __init__(
        self,
        graph: Graph,
        store: Store,
        *,
        force: Iterable[str] = (),
        only: Iterable[str] = (),
        known: Mapping[str, str] | None = None,
    ) -> None:
        self.graph = graph
        self.force = stage_names(graph, force, "--force")
        wanted = stage_names(graph, only, "--only")
        selected = graph.ancestors(wanted) if wanted else set(graph.nodes)
        nodes = [node for node in graph.nodes.values() if node.name in selected]
        manifests = store.manifests([node.key for node in nodes])
        missing = {node.name for node in nodes if node.key not in manifests}
        old_keys = {name: key for name, key in (known or {}).items() if name in missing or name in self.force}
        old = store.manifests([key for key in old_keys.values() if key not in manifests])
        made = {node.name: manifests[node.key] for node in nodes if node.key in manifests}
        unneeded = {name: why for name, why in pruned(graph, made).items() if name not in self.force}
        self.steps: dict[str, Step] = {}
        for node in nodes:
            if node.name in unneeded:
                self.steps[node.name] = Step(node, PRUNED, unneeded[node.name])
                continue
            before = old.get(old_keys.get(node.name, ""))
            self.steps[node.name] = self._step(node, manifests, before)

    def _step(self, node: Node, manifests: Mapping[str, dict[str, Any]], before: dict[str, Any] | None) -> Step:
        manifest = manifests.get(node.key)
        expected = _seconds(manifest or before)
        if node.name in self.force:
            return Step(node, RUN, "forced", [], manifest, expected)
        if manifest is None:
            if before is None:
                return Step(node, RUN, "not made before", [], None, None)
            changes = explain(before, node, self.graph)
            return Step(node, STALE, _headline(changes), changes, None, expected)
        if changed := changed_inputs(node, manifest, self.graph, manifests):
            reason = f"input {', '.join(changed)} was made again with other bytes"
            return Step(node, STALE, reason, [reason], None, expected)
        if other := other_inputs(node, manifest, self.graph, manifests):
            reason = f"input {', '.join(other[:5])}{' …' if len(other) > 5 else ''} came or went"
            return Step(node, STALE, reason, [reason], None, expected)
        again = [name for name in node.parents if self.steps[name].state not in (CACHED, PRUNED)]
        if again:
            return Step(node, CACHED, f"kept if {', '.join(again)} gives the same bytes", [], manifest, expected)
        return Step(node, CACHED, "", [], manifest, expected)

    @property
    def to_run(self) -> list[str]:
        return [step.name for step in self.steps.values() if step.state not in (CACHED, PRUNED)]

    def keys(self) -> dict[str, str]:
        return {name: step.node.key for name, step in self.steps.items()}

    def as_json(self) -> dict[str, Any]:
        steps = [step.as_json() for step in self.steps.values()]
        known = [s["expected_seconds"] for s in steps if s["state"] in (RUN, STALE) and s["expected_seconds"]]
        counts = {state: sum(s["state"] == state for s in steps) for state in (CACHED, RUN, STALE)}
        if self.graph.pipeline.sweep is not None:
            counts[PRUNED] = sum(s["state"] == PRUNED for s in steps)
        return {"counts": counts, "expected_seconds": sum(known) if known else None, "stages": steps}


def changed_inputs(
    node: Node, manifest: Mapping[str, Any], graph: Graph, manifests: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Input stages whose artifact no longer has the bytes that `manifest` was made from."""
    made_from = manifest.get("input_content") or {}
    changed = []
    for name in node.parents:
        parent = graph.nodes[name]
        now = manifests.get(parent.key)
        if now is not None and made_from.get(parent.key, now.get("content")) != now.get("content"):
            changed.append(name)
    return changed


def other_inputs(
    node: Node, manifest: Mapping[str, Any], graph: Graph, manifests: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Stages of a field that takes what there is (`Task.partial`) that were used and are gone, or the reverse."""
    used = manifest.get("input_content") or {}
    stages = [name for field in node.task.partial for name in node.inputs.get(field, [])]
    keys = {name: graph.nodes[name].key for name in stages}
    return [name for name, key in keys.items() if (key in used) != (key in manifests)]


def explain(before: Mapping[str, Any], node: Node, graph: Graph | None = None) -> list[str]:
    """What differs between a manifest and a stage as it stands now, one line each, causes first."""
    identity = node.identity
    lines: list[str] = []
    wider: list[str] = []
    if before.get("task") != identity.task:
        lines.append(f"task: {before.get('task')} -> {identity.task}")
    lines += [f"config {line}" for line in differences(before.get("config") or {}, identity.config)]
    lines += [f"source {line}" for line in differences(before.get("external") or {}, identity.external)]
    lines += [f"code {line}" for line in code_differences(before.get("code") or {}, identity.code)]
    old_inputs = before.get("inputs") or {}
    for name in sorted({*old_inputs, *identity.inputs}):
        if name in node.task.partial and set(old_inputs.get(name) or ()) <= set(identity.inputs.get(name) or ()):
            wider.append(f"input {name}: other stages are planned")  # of which not all need have been made
            continue
        if old_inputs.get(name) != identity.inputs.get(name):
            stages = ", ".join(node.inputs.get(name, [])) or "none"
            lines.append(f"input {name} changed ({stages})")
    return lines or wider


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Differing leaves of two JSON values as `path: old -> new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines: list[str] = []
        for key in sorted({*old, *new}):
            where = f"{path}.{key}" if path else str(key)
            if key not in old:
                lines.append(f"{where}: {_ABSENT} -> {_short(new[key])}")
            elif key not in new:
                lines.append(f"{where}: {_short(old[key])} -> {_ABSENT}")
            else:
                lines += differences(old[key], new[key], where)
        return lines
    if isinstance(old, list) and isinstance(new, list):
        return [line for a, b, place in _paired(old, new) for line in differences(a, b, f"{path}[{place}]")]
    if _ABSENT in (old, new):
        return [f"{path}: {_short(old)} -> {_short(new)}"]
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _paired(old: list[Any], new: list[Any]) -> Iterator[tuple[Any, Any, int]]:
    """(old item, new item, place) of what differs in two lists; of an item that came or went one is absent."""
    if len(old) == len(new):
        yield from zip(old, new, range(len(new)), strict=True)
        return
    from difflib import SequenceMatcher

    was, now = ([json.dumps(item, sort_keys=True) for item in items] for items in (old, new))
    for _, first, last, begin, end in SequenceMatcher(None, was, now, autojunk=False).get_opcodes():
        both = min(last - first, end - begin)
        yield from zip(old[first : first + both], new[begin : begin + both], range(begin, begin + both), strict=True)
        for at in range(first + both, last):
            yield old[at], _ABSENT, at
        for at in range(begin + both, end):
            yield _ABSENT, new[at], at


def code_differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Definitions that changed, appeared or went away, as lines."""
    lines = [f"{name} changed" for name in new if name in old and old[name] != new[name]]
    lines += [f"{name} is new" for name in new if name not in old]
    return lines + [f"{name} is gone" for name in old if name not in new]


def _short(value: Any) -> str:
    if isinstance(value, Mapping):  # what it is called first, since the rest may be cut
        value = {key: value[key] for key in sorted(value, key=lambda key: (key not in ("kind", "name"), key))}
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _headline(changes: list[str]) -> str:
    if not changes:
        return "made before under another key"
    return changes[0] if len(changes) == 1 else f"{changes[0]} (and {len(changes) - 1} more)"


def _seconds(manifest: Mapping[str, Any] | None) -> float | None:
    return (manifest or {}).get("timings", {}).get("seconds")


def stage_names(graph: Graph, names: Iterable[str], flag: str) -> set[str]:
    """The stages that names or globs mean; BadConfig, with the nearest, where one means none."""
    import difflib
    import fnmatch

    found: set[str] = set()
    for name in names:
        matches = fnmatch.filter(graph.nodes, name)
        if not matches:
            near = difflib.get_close_matches(name, graph.nodes, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise BadConfig(
                f"{flag} {name}: the pipeline has no such stage", f"{hint}stages: {', '.join(list(graph.nodes)[:20])}"
            )
        found.update(matches)
    return found
