"""Collecting garbage: artifacts, attempts and checkpoints that no run and no registered model reaches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cluster.errors import UserError
from cluster.store import Store
from pipelines.runs import RunRecord, resolve_run, run_names
from pipelines.session import TRACKING_OFF, default_tracking


def collect(store: Store, *, delete: bool, forget: Iterable[str] = ()) -> dict[str, Any]:
    """What could be deleted; with `delete` it is.

    Reached is every key that a run's record names (whatever became of the stage), every key of a
    registered model in the tracking stores those runs used, and all that they were made from.

    Returns:
        {"items": [{kind, path, bytes, why}], "bytes", "kept", "deleted"}.

    Raises:
        UserError: a tracking store does not answer, so its registered models are not known.
    """
    forgotten = {resolve_run(store, name).name for name in forget}
    records = [RunRecord.load(store, name) for name in run_names(store)]
    for record in records:
        if record.name in forgotten and record.state() == "running":
            raise UserError(f"run {record.name} is at work", "cancel it first")
    kept_records = [r for r in records if r.name not in forgotten]
    reached = _closure(
        store, {e["key"] for r in kept_records for e in r.status.get("stages", {}).values() if "key" in e}
    )
    reached |= _closure(store, _registered(store, records))
    busy = {e["key"] for r in kept_records if r.state() == "running" for e in r.status["stages"].values()}
    items: list[dict[str, Any]] = []
    for record in records:
        if record.name in forgotten:
            items.append(_item("run", record.folder, 0, "forgotten"))
    keys = list(store.keys())
    manifests = store.manifests(keys)
    for key in keys:
        folder = f"artifacts/{key[:2]}/{key}"
        if store.holder(key) is not None:
            continue  # somebody is at work on it
        if key not in reached:
            items.append(_item("artifact", folder, store.size(key), "no run or registered model reaches it", key))
            continue
        used = manifests.get(key, {}).get("folder", "")
        for number, size in store.attempts(key):
            if not used.endswith(f"{key}/a{number:06d}"):
                why = "replaced by a later one" if key in manifests else "never published"
                items.append(_item("attempt", f"{folder}/a{number:06d}", size, why, key, number))
    for key in store.list("scratch"):
        if key not in busy and (key in manifests or key not in reached):
            items.append(_item("scratch", f"scratch/{key}", 0, "its stage is done or not reached", key))
    if delete:
        for item in items:
            _delete(store, item)
    public = [{k: v for k, v in item.items() if k not in ("key", "number")} for item in items]
    kept = len(reached & set(manifests))
    return {"items": public, "bytes": sum(i["bytes"] for i in items), "kept": kept, "deleted": delete}


def _item(kind: str, path: str, size: int, why: str, key: str = "", number: int = 0) -> dict[str, Any]:
    return {"kind": kind, "path": path, "bytes": size, "why": why, "key": key, "number": number}


def _delete(store: Store, item: dict[str, Any]) -> None:
    if item["kind"] == "artifact":
        store.delete_artifact(item["key"])
        store.clear_scratch(item["key"])
    elif item["kind"] == "attempt":
        store.delete_attempt(item["key"], item["number"])
    elif item["kind"] == "scratch":
        store.clear_scratch(item["key"])
    else:
        store.delete(item["path"])


def _closure(store: Store, keys: set[str]) -> set[str]:
    """The keys and all that their artifacts were made from."""
    reached: set[str] = set()
    todo = set(keys)
    while todo:
        reached |= todo
        found: set[str] = set()
        for manifest in store.manifests(todo).values():
            for value in manifest.get("inputs", {}).values():
                found.update([value] if isinstance(value, str) else value)
        todo = found - reached
    return reached


def _registered(store: Store, records: Iterable[RunRecord]) -> set[str]:
    uris = {str(r.info["tracking"]) for r in records if r.info.get("tracking") not in (None, TRACKING_OFF)}
    if not uris:
        return set()
    from cluster.tracking import registered_keys

    keys: set[str] = set()
    for uri in uris | {default_tracking(store)}:
        keys |= set(registered_keys(uri))
    return keys
