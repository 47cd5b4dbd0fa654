"""Accepting a change: a stage's new key stands for the artifact that is there."""

from __future__ import annotations

import fnmatch
from typing import Any

from cluster.errors import BadConfig
from cluster.store import Store
from pipelines.code import CodeIndex
from pipelines.graph import Graph
from pipelines.plan import explain
from pipelines.runs import RunRecord, remember_keys
from pipelines.session import Request, accepted_keys
from pipelines.status import near_stage


def accept_changes(
    request: Request, store: Store, record: RunRecord, pattern: str, *, config_too: bool = False
) -> list[dict[str, Any]]:
    """Point the new keys of matching stages at the artifacts they had in a run.

    Stages are taken from the inputs on, each with the keys that the acceptances before it give: so a
    stage whose input was accepted has its old key again and needs nothing.

    Returns:
        [{stage, new, old, changes}] of what was accepted.

    Raises:
        BadConfig: no such stage, no artifact, or (without `config_too`) a change that is not code alone.
    """
    names = fnmatch.filter(record.status["stages"], pattern) or [near_stage(record, pattern)]
    code = CodeIndex(request.import_paths)
    keys = accepted_keys(store)
    found: list[dict[str, Any]] = []
    for name in [n for n in record.status["stages"] if n in names]:
        node = Graph(request.pipeline, code, keys).nodes.get(name)
        if node is None:
            raise BadConfig(f"the recipe has no stage {name!r} any more", "there is nothing to accept")
        old = record.status["stages"][name]["key"]
        if node.key == old:
            continue
        manifest = store.manifest(old)
        if manifest is None:
            raise BadConfig(f"stage {name} of {record.name} has no artifact", "only an artifact can be accepted")
        changes = explain(manifest, node)
        other = [line for line in changes if not line.startswith("code ")]
        if other and not config_too:
            raise BadConfig(
                f"stage {name} changed in more than code: {other[0]}",
                "accept its input stages first, or use --any if you are sure",
            )
        keys = {**keys, node.identity.key: old}
        found.append({"stage": name, "new": node.identity.key, "old": old, "changes": changes})
    for item in found:
        store.write_json(f"accepted/{item['new']}.json", {"key": item["old"], "changes": item["changes"]})
    if found:
        remember_keys(store, record.info["recipe"], {item["stage"]: item["old"] for item in found})
    return found
