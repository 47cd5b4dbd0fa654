"""What each training stage of a plan needs in memory, whether its worker has it, and what would fit if not.

The formulas are `modeling.memory`'s; here a stage's config becomes a workload, and its placement a worker with so
much memory: a GPU by name, or this machine's memory shared among its workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.errors import BadConfig
from cluster.machines import Machine, host_memory_bytes, local_gpus
from modeling.activations import Workload
from modeling.architecture import PRESETS, model_config
from modeling.errors import ConfigError
from modeling.hardware import gpu, gpu_of_device, processor_has_bf16
from modeling.memory import GIB, Memory, Placed, memory, most_rows
from modeling.schedule import resolved
from modeling.shapes import CLASSIFIER, count, parameter_shapes
from modeling.step_time import micro_flops
from pipelines.graph import Node
from tasks.base import Runtime, Task
from tasks.datasets import LabelledData, is_symmetric
from tasks.finetune import Finetune
from tasks.objectives.settings import ObjectiveSettings
from tasks.objectives.shares import label_share
from tasks.pretrain import Pretrain
from tasks.training import placed_engine, state_name

VOCABULARY = 32_768
"""Taken where a tokenizer's size is not known before it is there (an imported one)."""
ACCELERATOR = "accelerator_type:"
"""Beginning of Ray's resource that asks for a kind of GPU."""


@dataclass(frozen=True)
class Training:
    """A training stage as numbers.

    Attributes:
        work: with the micro-batch as its rows.
        tokens_per_row: of both sides.
        batch_size: sequences of a step, over all workers.
        steps: 0: it depends on the size of the data set, or on the time of a step.
        zero_stages: those that the optimizer works at.
        assumed: what had to be assumed, to be shown; empty: nothing.
    """

    model: str
    work: Workload
    placed: Placed
    runtime: Runtime
    batch_size: int
    clip_norm: float
    steps: int = 0
    optimizer: str = "adamw"
    frozen_trunk: bool = False
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    assumed: str = ""

    @property
    def parameters(self) -> int:
        return count(parameter_shapes(self.work.config, self.work.head))

    @property
    def tokens_per_row(self) -> int:
        return self.work.length + self.work.target_length

    def memory(self) -> Memory:
        return memory(self.work, self.placed, optimizer=self.optimizer, frozen_trunk=self.frozen_trunk)

    def on(self, **placement: Any) -> Training:
        """The same stage with other fields of its placement."""
        runtime = self.runtime.model_copy(update=placement)
        engine = placed_engine(
            runtime,
            batch_size=self.batch_size,
            clip_norm=self.clip_norm,
            world_size=runtime.workers,
            length_tokens=self.tokens_per_row,
        )
        work = replace(
            self.work,
            rows=int(engine["train_micro_batch_size_per_gpu"]),
            checkpointing=runtime.activation_checkpointing,
            device="cuda" if runtime.gpus else "cpu",
        )
        return replace(self, runtime=runtime, work=work, placed=Placed.of(engine))


@dataclass(frozen=True)
class Room:
    """What a worker has: memory of its device, and beside a GPU its share of the host's. 0: not known, not refused."""

    bytes: int
    what: str
    host_bytes: int = 0

    def holds(self, needed: Memory) -> bool:
        device = not self.bytes or needed.total <= self.bytes
        return device and (not self.host_bytes or needed.host_total <= self.host_bytes)


@dataclass
class Need:
    """One training stage, or several that are alike, and whether it fits."""

    stages: list[str]
    training: Training
    memory: Memory
    room: Room
    advice: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        return self.room.holds(self.memory)

    def as_json(self) -> dict[str, Any]:
        work, runtime = self.training.work, self.training.runtime
        return {
            "stages": self.stages,
            "model": self.training.model,
            "parameters": self.training.parameters,
            "precision": work.precision,
            "workers": runtime.workers,
            "zero_stage": self.training.placed.zero_stage,
            "micro_batch": work.rows,
            "accumulation": self.training.placed.accumulation,
            "device": work.device,
            **self.memory.as_json(),
            "available_bytes": self.room.bytes or None,
            "available_host_bytes": self.room.host_bytes or None,
            "available": self.room.what,
            "fits": self.fits if self.room.bytes else None,
            "advice": self.advice,
            "assumed": self.training.assumed,
        }


def needs(
    nodes: Iterable[Node], *, gpu_name: str = "", machines: Sequence[Machine] = (), here: bool = True
) -> list[Need]:
    """Of all training stages among `nodes`; those that are alike (seeds of a task) together.

    Args:
        gpu_name: the workers' GPU; empty: that of the placement's resources, of this machine, or of `machines`.
        machines: nodes and node types that it may run on.
        here: it may run on this machine.

    Raises:
        BadConfig: `gpu_name` or a machine's GPU is not in the table.
    """
    found: dict[str, Need] = {}
    for node in nodes:
        training = training_of(node.task)
        if training is None:
            continue
        work = training.work
        alike = f"{work.config!r} {work.head} {work.precision} {training.tokens_per_row} {training.runtime!r}"
        alike += f" {training.batch_size} {training.optimizer} {training.frozen_trunk}"
        if alike in found:
            found[alike].stages.append(node.name)
            continue
        need = Need([node.name], training, training.memory(), room_of(training.runtime, gpu_name, machines, here))
        if not need.fits:
            need.advice = list(advice(training, lambda runtime: room_of(runtime, gpu_name, machines, here)))
        found[alike] = need
    return list(found.values())


def refuse(found: Iterable[Need], otherwise: str = "") -> None:
    """Raise BadConfig for the first stage that cannot fit: what it needs, what would fit, and what can be done else."""
    for need in found:
        if need.fits:
            continue
        training, work = need.training, need.training.work
        host = need.memory.total <= need.room.bytes
        largest = sorted((need.memory.host if host else need.memory.parts).items(), key=lambda part: -part[1])[:3]
        parts = ", ".join(f"{name} {gib(size)}" for name, size in largest)
        needed, has, of = need.memory.total, need.room.bytes, ""
        if host:
            needed, has, of = need.memory.host_total, need.room.host_bytes, " of host memory"
        batch = f"micro_batch {work.rows} x {training.tokens_per_row} tokens"
        where = f"on {training.runtime.workers} worker" + ("s" if training.runtime.workers > 1 else "")
        fits = (
            "; or ".join(need.advice) if need.advice else "no placement of it does: take a smaller model or more memory"
        )
        raise BadConfig(
            f"stage {need.stages[0]}: {training.model} ({number(training.parameters)} parameters) at ZeRO stage "
            f"{training.placed.zero_stage} {where}, {batch}, needs about {gib(needed)}{of} a worker "
            f"({parts}); {need.room.what} has {gib(has)}{of}",
            f"what fits: {fits}" + (f"; {otherwise}" if otherwise else ""),
        )


MOST_ADVICE = 3


def advice(training: Training, room: Callable[[Runtime], Room]) -> Iterator[str]:
    """Changes of the placement that fit, the least costly first, `MOST_ADVICE` at most.

    Args:
        room: what a worker has in a placement.
    """
    given = 0
    for change in _changes(training.runtime):
        stage = change.get("zero_stage", training.runtime.zero_stage)
        if change.get("workers", 1) > training.batch_size or stage not in training.zero_stages:
            continue
        if change and all(getattr(training.runtime, name) == value for name, value in change.items()):
            continue
        other = training.on(**change, micro_batch=0) if change else training
        available = room(other.runtime)
        options = {"optimizer": training.optimizer, "frozen_trunk": training.frozen_trunk}
        rows = most_rows(other.work, other.placed, available.bytes or 1 << 62, other.work.rows, **options)
        if not rows or not available.holds(training.on(**change, micro_batch=rows).memory()):
            continue  # the second: fewer rows at once mean more micro-batches, whose gradients stay
        words = [f"{name}={str(value).lower()}" for name, value in change.items()]
        if rows != training.work.rows or not words:
            words.append(f"micro_batch={rows}")
        yield " ".join(f"placement.{word}" for word in words)
        given += 1
        if given == MOST_ADVICE:
            return


def _changes(runtime: Runtime) -> Iterator[dict[str, Any]]:
    """Placements beside the given one, none of which changes what is computed."""
    yield {}
    yield {"activation_checkpointing": True}
    if runtime.workers > 1:
        yield from ({"zero_stage": stage} for stage in (1, 2, 3) if stage > runtime.zero_stage)
    if not runtime.gpus:  # workers share one memory, and a stage above 0 keeps a second copy of the weights
        yield {"workers": 1, "zero_stage": 0}
        return
    offload = {"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"}
    yield {"zero_stage": max(1, runtime.zero_stage), "offload_optimizer": "cpu"}
    yield offload
    yield {**offload, "activation_checkpointing": True}
    yield from ({"workers": n, "zero_stage": 3} for n in (2, 4, 8, 16, 32, 64, 128, 256) if n > runtime.workers)


# ---------------------------------------------------------------- from a stage to numbers


def training_of(task: Task) -> Training | None:
    """A stage's numbers; None for one that does not train, or whose model is known only when it runs."""
    if isinstance(task, Pretrain):
        return _pretraining(task)
    return _finetuning(task) if isinstance(task, Finetune) else None


def _pretraining(task: Pretrain) -> Training | None:
    objective = getattr(task.examples, "objective", None)
    config, assumed = _shape(task.model, task.init, task.tokenizer)
    if config is None or not isinstance(objective, ObjectiveSettings):
        return None
    length, target = objective.lengths(int(task.examples.length_tokens))  # type: ignore[attr-defined]
    if target and config.architecture != "encoder-decoder":
        length, target = objective.joint_length(int(task.examples.length_tokens)), 0  # type: ignore[attr-defined]
    work = Workload(
        config,
        {"name": task.head, "settings": objective.model_dump()},
        _precision(task),
        1,
        length,
        target,
        label_share(objective, int(task.examples.length_tokens), config.architecture),  # type: ignore[attr-defined]
    )
    flops = micro_flops(work) / work.tokens or None
    steps = resolved(task.loop, row_tokens=work.tokens, flops_per_token=flops).steps
    return _placed(task, work, assumed, task.loop, steps=steps)


def _finetuning(task: Finetune) -> Training | None:
    config, assumed = _shape(task.model, task.init or task.like, task.tokenizer)
    if config is None:
        return None
    head = {**CLASSIFIER, "settings": {"labels": 2, "pooling": task.pooling}}
    data = task.dataset
    twice = task.both_orders and isinstance(data, LabelledData) and is_symmetric(data.task)
    work = Workload(config, head, _precision(task), 1, task.length_tokens * (1 + twice))
    frozen = task.method == "probe" or (task.init is not None and config.architecture in ("word-vectors", "bilstm"))
    return _placed(task, work, assumed, task.loop, frozen_trunk=frozen)


def _precision(task: Pretrain | Finetune) -> str:
    """What the stage will compute in; `auto` without a GPU: what the processor here takes, and with one bf16."""
    asked = task.loop.precision
    if asked != "auto":
        return asked
    return "bf16" if task.runtime.gpus or processor_has_bf16() else "fp32"


def _placed(task: Task, work: Workload, assumed: str, loop: Any, **more: Any) -> Training:
    training = Training(
        _model_name(work.config),
        work,
        Placed(),
        task.runtime,
        loop.batch_size,
        loop.clip_norm,
        optimizer=state_name(loop.optimizer),
        zero_stages=loop.optimizer.zero_stages,
        assumed=assumed,
        **more,
    )
    return training.on()


def _shape(model: Any, init: Any, tokenizer: Any) -> tuple[Any, str]:
    """(config with a vocabulary, what was assumed); None where only the stage that makes it knows."""
    while model is None and init is not None:
        model, init = getattr(init, "model", None), getattr(init, "init", None)
    if model is None:
        return None, ""
    if model.vocab_size:
        return model, ""
    size = getattr(tokenizer, "vocab_size", 0)
    assumed = "" if size else f"a vocabulary of {VOCABULARY:,}"
    return model.with_vocabulary(int(size or VOCABULARY)), assumed


def _model_name(config: Any) -> str:
    """Its preset's name, or the shape in words."""
    bare = config.model_copy(update={"vocab_size": 0})
    for name in PRESETS:
        if PRESETS.load(name).get("width") == config.width and model_config(name) == bare:
            return name
    layers = getattr(config, "layers", 0)
    return f"{config.architecture} {layers} x {config.width}" if layers else f"{config.architecture} {config.width}"


# ---------------------------------------------------------------- what a worker has


def room_of(runtime: Runtime, gpu_name: str = "", machines: Sequence[Machine] = (), here: bool = True) -> Room:
    """The memory of one worker, and what it is of. See `needs`."""
    if runtime.gpus:
        return _gpu_room(runtime, gpu_name, machines, here)
    if runtime.memory_gb:
        return Room(round(runtime.memory_gb * 1e9), "placement.memory_gb")
    total = host_memory_bytes() if here else 0
    return Room(total // runtime.workers, f"each of {runtime.workers} workers on this machine" if total else "")


def _gpu_room(runtime: Runtime, gpu_name: str, machines: Sequence[Machine], here: bool) -> Room:
    share = min(1.0, runtime.gpus)
    part = "" if share == 1 else f"{share:g} of one "
    asked = next((name.removeprefix(ACCELERATOR) for name in runtime.resources if name.startswith(ACCELERATOR)), "")
    for name in (gpu_name, asked):
        if name:
            found = _known(name)
            return Room(round(found.memory_gib * GIB * share), f"{part or 'one '}{found.name}")
    own = local_gpus() if here else []
    if own and (device := gpu_of_device(own[0])) is not None:
        host = host_memory_bytes() // runtime.workers
        return Room(round(device.memory_gib * GIB * share), f"{part}this machine's {device.name}", host)
    rooms = [
        Room(
            round(_known(m.gpu).memory_gib * GIB * share),
            f"{part}the {m.gpu} of node type {m.name}",
            round(m.memory_gib * GIB / m.gpus),
        )
        for m in machines
        if m.gpus and m.gpu
    ]
    return max(rooms, key=lambda room: room.bytes, default=Room(0, ""))


def _known(name: str) -> Any:
    try:
        return gpu(name)
    except ConfigError as error:
        raise BadConfig(error.message, error.remedy) from None


def gib(size: float) -> str:
    """Bytes as GiB, with as many digits as say something."""
    value = size / GIB
    if value < 0.1:
        return f"{size / 2**20:.0f} MiB"
    return f"{value:.0f} GiB" if value >= 100 else f"{value:.1f} GiB" if value >= 1 else f"{value:.2f} GiB"


def number(value: float) -> str:
    """A count in words' units: 124 M, 1.3 B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.1f} {unit}" if scaled < 10 else f"{scaled:.0f} {unit}"
    return f"{value:.0f}"


def as_json(found: Iterable[Need]) -> list[Mapping[str, Any]]:
    return [need.as_json() for need in found]
