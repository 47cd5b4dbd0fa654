"""Before a run starts anything: whether training fits into the memory of where it will run, as `plan` asks it too."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.connect import connect, joins, nodes, shutdown
from cluster.machines import Machine, read_cluster
from modeling.errors import ConfigError
from modeling.hardware import gpu
from pipelines.capacity import needs, refuse, training_of
from pipelines.cluster_plan import DEFAULT_CLUSTER
from pipelines.plan import Plan

OTHERWISE = "--skip-memory-check (check_memory=False in Python) starts it all the same"


def check_memory(plan: Plan, address: str | None, joined: ExitStack, **connecting: Any) -> None:
    """Look at the stages that would run: on this machine, or on the cluster at `address`.

    A cluster is what its nodes are, and the node types of this folder's `ray_config.yaml`. It is joined for that, where
    a stage asks for its GPUs; `joined` leaves it again. What is not known is not refused.

    Raises:
        BadConfig: one cannot fit; with what would.
    """
    todo = [plan.steps[name].node for name in plan.to_run]
    training = [node for node in todo if training_of(node.task) is not None]
    machines: Sequence[Machine] = ()
    cluster = joins(address)
    if cluster and any(node.task.runtime.gpus for node in training):
        if connect(address, **connecting):
            joined.callback(shutdown)
        path = Path(DEFAULT_CLUSTER)
        machines = [_known(machine) for machine in [*nodes(), *(read_cluster(path) if path.is_file() else [])]]
    refuse(needs(training, machines=machines, here=not cluster), OTHERWISE)


def _known(machine: Machine) -> Machine:
    """Without a GPU that the table does not have: its memory is not known."""
    try:
        return replace(machine, gpu=gpu(machine.gpu).name if machine.gpu else "")
    except ConfigError:
        return replace(machine, gpu="")
