"""Making a stage again in isolation: same inputs, same code, another store; are the bytes equal?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from cluster.errors import BadConfig
from cluster.store import Store
from pipelines.runs import RunRecord
from pipelines.session import Request, Watcher, _run
from pipelines.status import near_stage


class Overlay(Store):
    """A scratch store that reads what it does not have from another one."""

    def __init__(self, url: str, below: Store) -> None:
        super().__init__(url)
        self.below = below

    def manifests(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        keys = list(keys)
        own = super().manifests(keys)
        missing = [key for key in keys if key not in own]
        return {**{k: {**m, "store": self.below.url} for k, m in self.below.manifests(missing).items()}, **own}


def reproduce(request: Request, store: Store, record: RunRecord, stage: str) -> dict[str, Any]:
    """Run a stage again beside the store.

    Returns:
        {"equal": bool, "files": [names], "differences": [lines], "seconds", "first_seconds", "key"}.

    Raises:
        BadConfig: the stage has no artifact, or its inputs are gone.
    """
    name = near_stage(record, stage)
    key = record.status["stages"][name]["key"]
    first = store.manifest(key)
    if first is None:
        raise BadConfig(f"stage {name} of {record.name} has no artifact", "run it first")
    with tempfile.TemporaryDirectory(prefix="triptych-repro-") as folder:
        scratch = Overlay(folder, store)
        again = replace(
            request, store=folder, tracking="off", force=(name,), only=(name,), name=None, check_memory=False
        )
        result = _run(again, Watcher(), scratch)
        made = result.artifacts.get(name)
        if made is None or result.state != "done":
            entry = (result.record.status["stages"] if result.record else {}).get(name, {})
            said = (entry.get("error") or {}).get("message", result.state)
            raise BadConfig(f"stage {name} did not run again: {said}", (entry.get("error") or {}).get("remedy", ""))
    old, new = first["files"], made["files"]
    lines = []
    for file in sorted({*old, *new}):
        if file not in new:
            lines.append(f"{file}: not made this time")
        elif file not in old:
            lines.append(f"{file}: not made the first time")
        elif old[file] != new[file]:
            lines.append(f"{file}: {old[file]['size']} bytes -> {new[file]['size']} bytes, other content")
    equal = not lines
    if made["key"] != key:
        lines.append("the stage's key has changed since: its code or config is not what it was (see `triptych why`)")
    return {
        "stage": name,
        "run": record.name,
        "key": key,
        "equal": equal,
        "files": sorted(new),
        "differences": lines,
        "seconds": made["timings"]["seconds"],
        "first_seconds": first["timings"]["seconds"],
    }
