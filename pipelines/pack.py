"""A pretraining stage as a folder that a machine without Ray can train from: `triptych pack`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.errors import BadConfig
from cluster.files import cache_folder
from pipelines.plan import Plan, stage_names
from tasks.pretrain import Pretrain
from tasks.pretrain_job import write_job


def pack(plan: Plan, store: Any, stage: str, to: Path) -> Path:
    """Write the job of a stage: its config and copies of its inputs. Returns `to`; a job is there whole, or not at all.

    Raises:
        BadConfig: the stage is no pretraining, its inputs are not made yet, or `to` is no new or empty folder.
    """
    (name, *more) = sorted(stage_names(plan.graph, [stage], "--stage"))
    node = plan.graph.nodes[name]
    if more or not isinstance(node.task, Pretrain):
        found = [n.name for n in plan.graph.nodes.values() if isinstance(n.task, Pretrain)]
        raise BadConfig(f"--stage {stage}: expected one pretraining stage", f"the pipeline has {', '.join(found)}")
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise BadConfig(f"--to {to} is {'not empty' if to.is_dir() else 'a file'}", "give a new folder")
    manifests = _inputs(plan, {field: stages[0] for field, stages in node.inputs.items()})
    partial = to.parent / f".partial-{to.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise BadConfig(f"--to {to} cannot be made: {error.strerror or error}", "give a new folder") from None
    for field, manifest in manifests.items():
        shutil.copytree(store.fetch(manifest, cache_folder() / "artifacts"), partial / field)
    facts = {field: {"key": m["key"], "kind": m["kind"]} for field, m in manifests.items()}
    write_job(partial, node.identity.config, node.task.runtime, facts, name)
    if to.exists():
        to.rmdir()
    partial.rename(to)
    return to


def _inputs(plan: Plan, stages: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    missing = [stage for stage in stages.values() if plan.steps[stage].manifest is None]
    if missing:
        only = " ".join(f"--only {stage}" for stage in missing)
        raise BadConfig(f"{', '.join(missing)}: not made yet", f"`triptych run` with the same settings and {only}")
    return {field: plan.steps[stage].manifest or {} for field, stage in stages.items()}
