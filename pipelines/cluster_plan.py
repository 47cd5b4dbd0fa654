"""Speed, time and cost of a pretraining stage on the node types of a cluster: each number of workers, each ZeRO stage.

`modeling.step_time` says how long a step takes; a placement that does not fit is not offered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import BadConfig
from cluster.machines import Machine, read_cluster
from modeling.errors import ConfigError
from modeling.hardware import gpu
from modeling.memory import GIB, most_rows
from modeling.step_time import CPU_CORE, Device, Network, Step, gpu_device, gpu_network, step_time
from pipelines.capacity import Need, Training, needs
from pipelines.plan import Plan

DEFAULT_CLUSTER = "ray_config.yaml"
CPU_MEMORY_SHARE = 0.9
"""Of a CPU machine's memory for workers; the rest is the system's and Ray's."""


@dataclass(frozen=True)
class Option:
    """One placement on one node type, and what it gives.

    Attributes:
        machines: how many are rented.
        micro_batch: 0: no micro-batch fits.
        usd: 0: the price is not known.
    """

    machine: Machine
    workers: int
    zero_stage: int
    machines: int
    micro_batch: int
    needed_bytes: int
    available_bytes: int
    step: Step | None
    mfu: float | None
    steps: int

    @property
    def fits(self) -> bool:
        return self.step is not None

    @property
    def hours(self) -> float:
        return self.step.seconds * self.steps / 3600 if self.step else 0.0

    @property
    def usd(self) -> float:
        return self.hours * self.machines * self.machine.usd_per_hour

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "node_type": self.machine.name,
            "gpu": self.machine.gpu or None,
            "workers": self.workers,
            "machines": self.machines,
            "zero_stage": self.zero_stage,
            "fits": self.fits,
            "needed_bytes": self.needed_bytes,
            "available_bytes": self.available_bytes,
        }
        if self.step is not None:
            found |= {
                "micro_batch": self.micro_batch,
                "tokens_per_second": self.step.tokens_per_second,
                "step": self.step.as_json(),
                "mfu": self.mfu,
                "hours": self.hours,
                "usd": self.usd or None,
            }
        return found


@dataclass(frozen=True)
class Choice:
    """All options of one stage, with the two that stand out; None where nothing fits (or no price is known)."""

    stage: str
    training: Training
    options: list[Option]
    left_out: list[str]
    """Node types without a forecast, and why."""

    @property
    def fastest(self) -> Option | None:
        return min((o for o in self.options if o.fits), key=lambda o: (o.hours, o.usd), default=None)

    @property
    def cheapest(self) -> Option | None:
        return min((o for o in self.options if o.usd), key=lambda o: (o.usd, o.hours), default=None)

    def best(self) -> list[Option]:
        """For each node type and number of workers the fastest ZeRO stage that fits."""
        groups: dict[tuple[str, int], Option] = {}
        for option in self.options:
            group = option.machine.name, option.workers
            if option.fits and (group not in groups or option.hours < groups[group].hours):
                groups[group] = option
        return list(groups.values())

    def as_json(self) -> dict[str, Any]:
        fastest, cheapest = self.fastest, self.cheapest
        return {
            "stage": self.stage,
            "model": self.training.model,
            "steps": self.training.steps,
            "options": [option.as_json() for option in self.options],
            "fastest": fastest.as_json() if fastest else None,
            "cheapest": cheapest.as_json() if cheapest else None,
            "left_out": self.left_out,
        }


@dataclass(frozen=True)
class Forecast:
    """What a plan's training stages need, and what a cluster would make of its pretraining.

    Attributes:
        source: the cluster's file; empty: there was none.
    """

    needs: list[Need]
    choices: list[Choice]
    source: str


def forecast(plan: Plan, cluster: str | None = None, gpu_name: str = "") -> Forecast:
    """Of the stages that a plan would run.

    Args:
        cluster: a cluster launcher's file; None: `ray_config.yaml` of this folder, if there is one.
        gpu_name: the workers' GPU.

    Raises:
        BadConfig: the file, or a GPU's name, cannot be used.
    """
    path = Path(cluster or DEFAULT_CLUSTER)
    machines = read_cluster(path) if cluster or path.is_file() else []
    if gpu_name:
        gpu(gpu_name)  # also where no stage asks for one: a wrong name is a mistake
    found = needs([plan.steps[name].node for name in plan.to_run], gpu_name=gpu_name, machines=machines)
    small = _small_runs(plan)
    shown = [(next((s for s in need.stages if s not in small), ""), need.training) for need in found]
    choices = [choose(stage, training, machines) for stage, training in shown if stage and training.steps]
    return Forecast(found, choices if machines else [], path.name if machines else "")


def _small_runs(plan: Plan) -> set[str]:
    """The runs of a sweep but the largest, which says enough."""
    sweep = plan.graph.pipeline.sweep
    return set(sorted(ranks := sweep.ranks(plan.graph), key=lambda name: ranks[name])[:-1]) if sweep else set()


def choose(stage: str, training: Training, machines: Sequence[Machine]) -> Choice:
    """The options of a stage on GPU node types where it asks for GPUs, on the others where it does not."""
    options: list[Option] = []
    left_out: list[str] = []
    for machine in machines:
        if bool(machine.gpus) != bool(training.runtime.gpus):
            continue
        found, why = _on_gpus(training, machine) if machine.gpus else _on_cpus(training, machine)
        options += found
        if why:
            left_out.append(f"{machine.name}: {why}")
    return Choice(stage, training, options, left_out)


def _on_gpus(training: Training, machine: Machine) -> tuple[list[Option], str]:
    if not machine.gpu:
        return [], "its GPU is not known: set the label ray.io/accelerator-type"
    try:
        card = gpu(machine.gpu)
    except ConfigError as error:
        raise BadConfig(f"node type {machine.name}: {error.message}", error.remedy) from None
    device = gpu_device(card, training.work.precision)
    if device is None:
        return [], f"a {card.name} has no {training.work.precision}"
    available = round(card.memory_gib * GIB)
    found = []
    for workers in _sizes(machine.gpus, machine.most, training.batch_size):
        network = gpu_network(card, workers, machine.gpus, machine.network_gbit or 10)
        count = math.ceil(workers / machine.gpus)
        found += [
            _option(training, machine, workers, stage, count, available, device, network)
            for stage in training.zero_stages
        ]
    return found, ""


def _on_cpus(training: Training, machine: Machine) -> tuple[list[Option], str]:
    per_worker = max(1, math.ceil(training.runtime.cpus))
    on_one = machine.cpus // per_worker
    if not on_one:
        return [], f"it has {machine.cpus} cores, a worker wants {per_worker}"
    core = CPU_CORE.get(training.work.precision, CPU_CORE["fp32"])
    device = Device(
        core.flops_per_second * per_worker, core.bytes_per_second * per_worker, core.launch_seconds, core.peak_flops
    )
    memory = round(machine.memory_gib * GIB * CPU_MEMORY_SHARE) or 1 << 62
    found = []
    for workers in _sizes(on_one, machine.most, training.batch_size):
        speed = CPU_NETWORK_BYTES if workers <= on_one else min(CPU_NETWORK_BYTES, (machine.network_gbit or 10) / 8e-9)
        network = Network(speed, CPU_LATENCY, CPU_GATHER, CPU_SCATTER)
        count, available = math.ceil(workers / on_one), memory // min(workers, on_one)
        found += [
            _option(training, machine, workers, stage, count, available, device, network)
            for stage in training.zero_stages
        ]
    return found, ""


CPU_NETWORK_BYTES, CPU_LATENCY, CPU_GATHER, CPU_SCATTER = 1.1e9, 8.0e-4, 1.0, 1.5
"""gloo between processes of one machine, as measured here (docs/placement.md)."""


def _sizes(on_one: int, most: int, batch_size: int) -> Iterator[int]:
    """Numbers of workers worth a look: powers of two of one machine, then of machines; never more than rows."""
    workers = 1
    while workers < on_one:
        if workers <= batch_size:
            yield workers
        workers *= 2
    machines = 1
    while machines <= most:
        if machines * on_one <= batch_size:
            yield machines * on_one
        machines *= 2


def _option(
    training: Training,
    machine: Machine,
    workers: int,
    stage: int,
    machines: int,
    available: int,
    device: Device,
    network: Network,
) -> Option:
    """The placement with the largest micro-batch that fits, the stage's own choice at most."""
    placed = training.on(workers=workers, zero_stage=stage, offload_optimizer="none", offload_parameters="none")
    needed = placed.memory().total
    if needed > available:
        options = {"optimizer": training.optimizer, "frozen_trunk": training.frozen_trunk}
        rows = most_rows(placed.work, placed.placed, available, placed.work.rows, **options)
        placed = placed.on(micro_batch=rows) if rows else placed
        needed = placed.memory().total
    step = None
    host = machine.memory_gib * GIB / max(1, min(workers, machine.gpus)) if machine.gpus else 0.0
    if needed <= available and (not host or placed.memory().host_total <= host):
        step = step_time(placed.work, placed.placed, device, network, optimizer=training.optimizer)
    mfu = step.mfu(device, workers) if step else None
    micro = placed.work.rows if step else 0
    return Option(machine, workers, stage, machines, micro, needed, available, step, mfu, training.steps)
