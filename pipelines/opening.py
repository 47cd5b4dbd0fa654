"""Which record a run has: one to continue, one that `submit` left for it, or a new one."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from cluster.errors import BadConfig
from cluster.store import Store
from pipelines.code import ROOT
from pipelines.plan import Plan
from pipelines.runs import RunRecord, check_name, new_name, newest_of_plan, plan_id

if TYPE_CHECKING:
    from pipelines.session import Request

KEPT = ("mlflow_run", "decisions")
"""What a continued run keeps of a stage's record."""
SENT = ("command", "words", "file")
"""What a driver on a cluster keeps of the record that `submit` left: there they are the user's, here the job's."""
MOST_STAGES = 5


def earlier_run(request: Request, store: Store, plan: Plan) -> RunRecord | None:
    """The run that the request is of: by its name, or the newest of the same plan.

    Raises:
        BadConfig: the run of that name is at work, or has another plan; or none can have it.
    """
    if request.name is None:
        return newest_of_plan(store, plan_id(request.recipe, plan.keys()))
    check_name(request.name)
    if not store.exists(f"runs/{request.name}/run.json"):
        return None
    record = RunRecord.load(store, request.name)
    state = record.state()
    if state == "submitted":  # it waits for this driver
        return record
    if record.info.get("plan") != plan_id(request.recipe, plan.keys()):
        raise BadConfig(
            f"run {record.name} exists already ({state}) and is {_another(record, request.recipe, plan)}",
            "choose another --name, or leave it out",
        )
    if state == "running":
        raise BadConfig(f"run {record.name} is at work already", "wait for it, or `triptych cancel` it")
    return record


def _another(record: RunRecord, recipe: str, plan: Plan) -> str:
    """How a run's plan is another one."""
    if record.info.get("recipe") != recipe:
        return f"of recipe {record.info.get('recipe')}, not of {recipe}"
    before = {name: entry.get("key") for name, entry in record.status["stages"].items()}
    keys = plan.keys()
    differ = [name for name in dict.fromkeys([*before, *keys]) if before.get(name) != keys.get(name)]
    more = f" and {len(differ) - MOST_STAGES} more" if len(differ) > MOST_STAGES else ""
    return f"of {recipe} with other stages, settings or code: {', '.join(differ[:MOST_STAGES])}{more}"


def open_record(
    request: Request, store: Store, plan: Plan, before: RunRecord | None, tracking: str | None
) -> tuple[RunRecord, bool]:
    """The record to write into, in state `running`, and whether it continues `before`.

    Args:
        before: of `earlier_run`. One of no name that is done or at work is left alone.
        tracking: the tracking URI without credentials.
    """
    stages = {
        name: {"state": "pending", "task": s.node.identity.task, "key": s.node.key, "inputs": s.node.parents}
        for name, s in plan.steps.items()
    }
    state = before.state() if before is not None else ""
    if before is not None and state != "submitted" and (request.name or state not in ("done", "running")):
        before.status["stages"] = {
            n: {**entry, **{k: v for k, v in before.status["stages"].get(n, {}).items() if k in KEPT}}
            for n, entry in stages.items()
        }
        before.reopen()
        return before, True
    info: dict[str, Any] = {
        **request_facts(request),
        "plan": plan_id(request.recipe, plan.keys()),
        "store": store.url,
        "tracking": tracking,
        "submitted": os.environ.get("TRIPTYCH_SUBMITTED"),
        "plan_steps": plan.as_json()["stages"] if len(plan.steps) <= 2000 else [],
    }
    name = request.name or new_name(request.recipe)
    if before is None or state != "submitted":
        return RunRecord.create(store, name, info, stages), False
    info.update({key: before.info.get(key) for key in SENT})
    info["git"] = info["git"] or before.info.get("git")
    return RunRecord.create(store, name, info, stages, over=before), False


def request_facts(request: Request) -> dict[str, Any]:
    """What a record says of the call."""
    return {
        "recipe": request.recipe,
        "label": request.label,
        "config": request.config,
        "given": request.given,
        "words": list(request.words),
        "file": request.file,
        "command": shlex.join(["triptych", *sys.argv[1:]]) if request.label else "",
        "address": request.address,
        "import_paths": [str(p) for p in request.import_paths],
        "git": git_commit(),
    }


def git_commit() -> dict[str, Any] | None:
    """The commit of the code and whether the tree differs from it; None outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "log", "-1", "--format=%H"], capture_output=True, text=True, timeout=5
        )
        if found.returncode:
            return None
        dirty = subprocess.run(
            ["git", "-C", str(ROOT), "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10
        )
        return {"commit": found.stdout.strip(), "dirty": bool(dirty.stdout.strip())}
    except (OSError, subprocess.SubprocessError):
        return None
