"""Collecting garbage: artifacts, attempts and checkpoints that no run and no registered model reaches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.errors import Unreachable, UserError
from cluster.store import Store
from cluster.tracking_uri import sqlite_path
from pipelines.runs import RunRecord, load_runs, resolve_run, run_names
from pipelines.session import TRACKING_OFF, default_tracking


def collect(store: Store, *, delete: bool, forget: Iterable[str] = ()) -> dict[str, Any]:
    """What could be deleted; with `delete` it is.

    Reached is every key that a run's record names (whatever became of the stage), every key of a
    registered model in the tracking stores those runs used, and all that they were made from.

    Returns:
        {"items": [{kind, path, bytes, why}], "bytes", "kept", "deleted"}.

    Raises:
        UserError: a record cannot be read, or a tracking store does not answer: so what is needed is not known.
    """
    records, damaged = load_runs(store)
    for name in {*run_names(store)} - {r.name for r in records} - {*damaged}:
        if store.exists(f"runs/{name}/status.json"):
            damaged[name] = f"runs/{name} in the store {store.url} has a status.json and no run.json"
    forgotten = {name if name in damaged else resolve_run(store, name).name for name in forget}
    for name, problem in damaged.items():
        if name not in forgotten:
            raise UserError(
                f"what run {name} needs is not known, so nothing is collected: {problem}",
                f"put the file back, or count the run's artifacts as not needed: --forget {name}",
            )
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
    items += [_item("run", f"runs/{name}", 0, "forgotten") for name in sorted(forgotten)]
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


def _moved(path: Path, record: RunRecord, store: Store) -> bool:
    """Whether the database was beside the store, and has moved with it."""
    now = sqlite_path(default_tracking(store))
    beside = path == Path(str(record.info.get("store"))) / path.name
    return beside and store.local_root is not None and now is not None and now.exists()


def _registered(store: Store, records: Iterable[RunRecord]) -> set[str]:
    """The keys of registered models in all tracking stores that runs used.

    Raises:
        UserError: one does not answer, or its database is not here.
    """
    used = [r for r in records if r.info.get("tracking") not in (None, TRACKING_OFF)]
    if not used:
        return set()
    from cluster.tracking import registered_keys

    for record in used:
        path = sqlite_path(str(record.info["tracking"]))
        known = (record.info.get("mlflow") or {}).get("run_id") or record.state() == "done"
        if path is not None and known and not path.exists() and not _moved(path, record, store):
            raise Unreachable(
                f"the tracking database {path} of run {record.name} is not here, so the models that are registered in "
                "it are not known and nothing is collected",
                f"put it back, or work where it is; if it is lost for good, make an empty one: mkdir -p {path.parent} "
                f"&& touch {path}",
            )
    keys: set[str] = set()
    for uri in {str(r.info["tracking"]) for r in used} | {default_tracking(store)}:
        keys |= set(registered_keys(uri))
    return keys
