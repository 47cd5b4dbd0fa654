"""Facts about runs and artifacts for the reading commands, as plain data."""

from __future__ import annotations

import difflib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from cluster.errors import BadConfig, Unreachable, UserError
from cluster.store import Store
from pipelines.plan import code_differences, differences, explain
from pipelines.runs import RunRecord, resolve_run

SHORT_KEY, LONG_KEY = 6, 32
"""From how many hexadecimal digits on a word may be, and must be, an artifact's key."""


def run_row(record: RunRecord) -> dict[str, Any]:
    """One line of the list of runs."""
    status = record.status
    state = record.state()
    started = status.get("started")
    ended = status.get("ended") or (time.time() if state == "running" else status.get("updated"))
    counts = Counter(entry.get("state", "pending") for entry in status.get("stages", {}).values())
    return {
        "run": record.name,
        "recipe": record.info.get("recipe"),
        "state": state,
        "started": started,
        "seconds": round(ended - started, 3) if started and ended else None,
        "counts": dict(counts),
        "mlflow": record.info.get("mlflow") or {},
    }


def damaged_row(name: str, problem: str) -> dict[str, Any]:
    """The line of a run whose record cannot be read."""
    empty: dict[str, Any] = {"recipe": None, "started": None, "seconds": None, "counts": {}, "mlflow": {}}
    return {"run": name, "state": "damaged", **empty, "problem": problem}


def stage_rows(record: RunRecord) -> list[dict[str, Any]]:
    """The stages of a run with their state, in the order of the plan."""
    rows = []
    interrupted = record.state() == "interrupted"
    for name, entry in record.status.get("stages", {}).items():
        row = {"stage": name, **entry}
        if interrupted and row.get("state") == "running":
            row["state"] = "interrupted"
        row.setdefault("state", "pending")
        rows.append(row)
    return rows


def near_stage(record: RunRecord, stage: str) -> str:
    """`stage` if the run has it.

    Raises:
        BadConfig: it has not; names the nearest.
    """
    names = list(record.status.get("stages", {}))
    if stage in names:
        return stage
    near = difflib.get_close_matches(stage, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise BadConfig(f"run {record.name} has no stage {stage!r}", f"{hint}stages: {', '.join(names[:20])}")


def reconcile(store: Store, records: Iterable[RunRecord]) -> None:
    """Mark the MLflow runs of dead drivers KILLED, once; close the records of jobs that ended before their driver."""
    from pipelines.session import TRACKING_OFF
    from pipelines.submitted import follow_up

    records = list(records)
    follow_up(records)
    for record in records:
        facts = record.info.get("mlflow") or {}
        if record.state() != "interrupted" or record.status.get("reconciled") or not facts.get("run_id"):
            continue
        if facts.get("uri") in (None, TRACKING_OFF):
            continue
        from cluster.tracking import Tracker

        stages = record.status["stages"].values()
        open_ = [e["mlflow_run"] for e in stages if e.get("mlflow_run") and e.get("state") == "running"]
        tracker = Tracker(facts["uri"], f"triptych-{record.info['recipe']}")
        tracker.reconcile([*open_, facts["run_id"]], "KILLED")
        if not tracker.close(60):  # the next command that reads tries again
            continue
        record.status["reconciled"] = True
        store.write_json(f"{record.folder}/status.json", record.status)


def explain_stage(store: Store, record: RunRecord, stage: str, rebuild: Callable[..., Any]) -> dict[str, Any]:
    """Why a stage ran or was cached in a run, and how it stands now."""
    from pipelines.session import make_plan

    name = near_stage(record, stage)
    entry = record.status["stages"][name]
    planned: dict[str, Any] = next((s for s in record.info.get("plan_steps") or [] if s["stage"] == name), {})
    found: dict[str, Any] = {
        "run": record.name,
        "stage": name,
        "state": entry.get("state"),
        "reason": entry.get("reason") or planned.get("reason") or "",
        "changes": planned.get("changes") or [],
        "decisions": entry.get("decisions") or [],
        "changes_since": [],
        "now": "unknown: the run was started from Python",
    }
    if not record.info.get("label"):
        return found
    plan = make_plan(rebuild(record, store.url), store)
    step = plan.steps.get(name)
    if step is None:
        found["now"] = "the recipe has no such stage any more"
        return found
    made = store.manifest(entry["key"])
    since = explain(made, step.node) if made and step.node.key != entry["key"] else []
    found["now"] = f"{step.state}" + (f" ({step.reason})" if step.reason else "")
    found["changes_since"] = since
    return found


def compare(store: Store, first: RunRecord, second: RunRecord) -> dict[str, Any]:
    """What differs between two runs: {"config": lines, "stages": {name: lines}}."""
    stages: dict[str, list[str]] = {}
    a, b = first.status.get("stages", {}), second.status.get("stages", {})
    manifests = store.manifests({e["key"] for e in [*a.values(), *b.values()] if e.get("key")})
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b:
            stages[name] = [f"only in {first.name if name in a else second.name}"]
            continue
        old, new = manifests.get(a[name].get("key", "")), manifests.get(b[name].get("key", ""))
        lines = []
        if a[name].get("key") != b[name].get("key") and old and new:
            lines += [f"config {line}" for line in differences(old["config"], new["config"])]
            lines += [f"source {line}" for line in differences(old["external"], new["external"])]
            lines += [f"code {line}" for line in code_differences(old["code"], new["code"])]
            if old["inputs"] != new["inputs"]:
                lines.append("inputs differ")
        lines += [f"metric {line}" for line in differences(a[name].get("metrics") or {}, b[name].get("metrics") or {})]
        if a[name].get("state") != b[name].get("state"):
            lines.append(f"state {a[name].get('state')} -> {b[name].get('state')}")
        if lines:
            stages[name] = lines
    return {
        "runs": [first.name, second.name],
        "config": differences(first.info.get("config") or {}, second.info.get("config") or {}),
        "stages": stages,
    }


def find_key(store: Store, what: str) -> str | None:
    """The key that is `what` or the only one that begins so; None where there is none, or `what` cannot begin one.

    Raises:
        BadConfig: several keys begin so, or it is a whole key that the store does not have.
    """
    if len(what) < SHORT_KEY or not all(c in "0123456789abcdef" for c in what):
        return None
    keys = sorted(key for key in store.keys() if key.startswith(what))
    if len(keys) > 1:
        told_apart = max(16, len(os.path.commonprefix(keys[:3])) + 4)
        raise BadConfig(
            f"{len(keys)} keys begin with {what}",
            f"give more of the key: for instance {', '.join(key[:told_apart] for key in keys[:3])}",
        )
    if not keys and len(what) >= LONG_KEY:
        raise BadConfig(f"no artifact {what} in the store {store.url}", "`triptych show RUN` lists the keys of a run")
    return keys[0] if keys else None


def verify_all(store: Store, what: str | None) -> dict[str, list[str]]:
    """{key: problems} of one artifact (by its key or a unique beginning), of a run's artifacts, or of all.

    Raises:
        BadConfig: nothing of that name.
    """
    if what is None:
        keys = list(store.keys())
    elif (key := find_key(store, what)) is not None:
        keys = [key]
    else:
        record = resolve_run(store, what)
        keys = [e["key"] for e in record.status["stages"].values() if e.get("state") in ("done", "cached")]
    manifests, found = _readable(store, keys)
    found.update({key: store.verify(manifest) for key, manifest in manifests.items()})
    if what is not None:
        found.update({key: ["no manifest: the artifact is gone"] for key in keys if key not in found})
    return found


def _readable(store: Store, keys: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """The manifests, and {key: [what is wrong]} of those that are damaged."""
    try:
        return store.manifests(keys), {}
    except Unreachable:
        raise
    except UserError:  # one of them; which, is found by reading each
        manifests: dict[str, dict[str, Any]] = {}
        damaged: dict[str, list[str]] = {}
        for key in keys:
            try:
                manifests.update(store.manifests([key]))
            except Unreachable:
                raise
            except UserError as error:
                damaged[key] = [error.message]
        return manifests, damaged
