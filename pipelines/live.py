"""A stage while its run goes, and the job that its worker is handed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.files import cache_folder
from cluster.leases import Claim
from pipelines.code import ROOT
from pipelines.graph import Graph, Node
from pipelines.retries import Failures
from pipelines.sweep import PRUNED
from pipelines.worker import Job
from tasks.base import Edge, Runtime

DONE = ("done", "cached")
WELL = (*DONE, PRUNED)
ENDED = (*WELL, "failed", "skipped", "cancelled")


@dataclass
class Live:
    """A stage while the run goes."""

    node: Node
    state: str = "pending"
    manifest: dict[str, Any] | None = None
    claim: Claim | None = None
    attempt: int = 0
    runtime: Runtime = field(default_factory=Runtime)
    not_before: float = 0.0
    forced: bool = False
    failures: Failures = field(default_factory=Failures)
    oom_kills: int = 0
    """Of the kernel, when the attempt began."""


def job(
    live: Live, others: Mapping[str, Live], graph: Graph, *, store_url: str, run: str, facts: Mapping[str, Any]
) -> Job:
    """What the worker of a claimed stage needs to know.

    Args:
        others: all stages of the run, by name; those before this one have manifests, or are pruned.
        facts: added to the manifest.
    """
    node = live.node
    identity = node.identity
    inputs: dict[str, Any] = {}
    content: dict[str, str] = {}
    for name, stages in node.inputs.items():
        manifests = [others[stage].manifest or {} for stage in stages if others[stage].state != PRUNED]
        inputs[name] = manifests if name in node.many else manifests[0]
        content.update({m["key"]: m["content"] for m in manifests})
    used = {name: [m["key"] for m in inputs[name]] for name in node.many}
    edges: dict[str, Any] = {}  # edges travel as manifests, not as stages
    for name in node.inputs:
        found = inputs[name] if name in node.many else [inputs[name]]
        seen = tuple(Edge(m["key"], m.get("kind", "")) for m in found)
        edges[name] = seen if name in node.many else seen[0]
    assert live.claim is not None
    return Job(
        stage=node.name,
        task=node.task.model_copy(update=edges),
        claim=live.claim,
        store_url=store_url,
        inputs=inputs,
        facts={
            "key": node.key,
            "stage": node.name,
            "task": identity.task,
            "config": identity.config,
            "external": identity.external,
            "inputs": {f: used[f] if f in node.task.partial else keys for f, keys in identity.inputs.items()},
            "input_content": content,
            "code": identity.code,
            **facts,
        },
        run=run,
        attempt=live.attempt,
        runtime=live.runtime,
        cache_dir=str(cache_folder() / "artifacts"),
        stamps=graph.code.stamps(identity.code),
        sys_path=[str(ROOT), *map(str, graph.import_paths)],
    )
