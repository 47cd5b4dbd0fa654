"""Seconds of an optimizer step over workers, ZeRO stage and bandwidth, from the config alone.

    step = accumulation · (matrix products + memory traffic) + optimizer + communication not hidden

- Matrix products: the FLOPs of `modeling.flops`, three times the forward pass (four with activation checkpointing),
  at a share of the device's peak.
- Memory traffic: what is no matrix product moves bytes. Each byte that the forward pass keeps is written, read by
  the next operation and by the backward pass, and so is its gradient: `PASSES` times. Casts of weights and the loss's
  logits come on top, and what DeepSpeed copies to and from buckets (`copies`). Operations take time to start, and
  DeepSpeed's hooks on each weight take some of the host's: a GPU waits where it is faster, a CPU spends that time
  besides.
- Optimizer: weights, gradients and states are read and written once, each on its share of the workers.
- Communication: a ring (Patarasuk and Yuan 2009): an all-reduce of M bytes takes 2 (n−1)/n · M / bandwidth and for
  each of its calls 2 (n−1) latencies; an all-gather or a reduce-scatter half of it on a ring, with gloo more. A call
  carries a bucket; stage 3 gathers matrix by matrix.

Volumes per step, with 4 bytes for each of Ψ parameters (gradients are reduced in fp32) and a micro-batches:

    stage   Rajbhandari et al. 2020, section 7          DeepSpeed, as configured
    0       all-reduce: 2Ψ                              all-reduce
    1       reduce-scatter, all-gather: 2Ψ              all-reduce, all-gather: 3Ψ (it reduces whole buckets to all)
    2       the same                                    a · all-reduce, all-gather: (2a + 1)Ψ
    3       two all-gathers, reduce-scatter: 3Ψ         a · (all-gathers, reduce-scatter)

Not modelled: stragglers, contention with other jobs, data that comes late (it is given, and measured below 1 %).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modeling.activations import FP32, Workload, activations
from modeling.architecture import TransformerConfig
from modeling.flops import forward_flops_per_token
from modeling.hardware import Gpu
from modeling.memory import BUCKET_STAGE_0, Placed, optimizer_bytes
from modeling.shapes import count, parameter_shapes

PASSES = 5
OPERATIONS_PER_BLOCK, OPERATIONS_BESIDE = 110, 70
"""Started by a block's forward and backward pass together, and by embeddings, output layer and loss, about."""
CASTING = 1.5
"""So many times as many under autocast, which casts what each product takes."""
OPERATIONS_PER_STEP = 150
"""Of the norm, the update, counts of labels and the log's figures, about, however many micro-batches there are."""
SMALL_COLLECTIVES = 4
"""Of a step, some numbers each: counts of labels, losses and flags, the gradients' norm, overflow."""


HOOK_SECONDS = (7e-4, 2e-3)
"""On one core of a server processor, as measured (docs/placement.md)."""
GPU_HOOK_SECONDS = (1.25e-4, 4e-4)
"""On the host of a GPU, which does nothing but start operations: 25 and 80 of them; an assumption."""


@dataclass(frozen=True)
class Device:
    """What one worker computes with.

    Attributes:
        flops_per_second: of matrix products, as reached, not the peak.
        bytes_per_second: of memory, as reached.
        launch_seconds: to start one operation.
        peak_flops: for MFU; 0: unknown.
        asynchronous: operations are started while earlier ones run (a GPU); a CPU does both itself.
        hook_seconds: of DeepSpeed's hooks on the host, for a weight and micro-batch: at stages 1 and 2, and at stage 3.
    """

    flops_per_second: float
    bytes_per_second: float
    launch_seconds: float
    peak_flops: float = 0.0
    asynchronous: bool = False
    hook_seconds: tuple[float, float] = HOOK_SECONDS


@dataclass(frozen=True)
class Network:
    """Between workers.

    Attributes:
        bytes_per_second: one direction, between any two neighbours of the ring; the slowest link counts.
        latency_seconds: of one message.
        gather: seconds of an all-gather, as a share of those of an all-reduce of as many bytes; on a ring 0.5.
        scatter: the same of a reduce-scatter.
    """

    bytes_per_second: float
    latency_seconds: float
    gather: float = 0.5
    scatter: float = 0.5


MATRIX_SHARE, MEMORY_SHARE, LINK_SHARE, LAUNCH_SECONDS = 0.7, 0.85, 0.8, 5e-6
"""Of a GPU's data sheet: what large matrix products, streaming kernels and NCCL's rings usually reach; assumptions."""
LINK_LATENCY, NETWORK_LATENCY = 1e-5, 3e-5
CPU_CORE = {"fp32": Device(1.2e11, 3.5e9, 1e-5), "bf16": Device(7e11, 3.5e9, 1e-5)}
"""One core of a server processor (Sapphire Rapids, AMX): fp32 as measured on small models (docs/placement.md), matrix
products in bf16 six times as fast (benchmarks/README.md)."""


def gpu_device(gpu: Gpu, precision: str) -> Device | None:
    """A GPU of the table at a precision; None where it has no tensor cores for it."""
    peak = gpu.tflops.get(precision)
    if peak is None:
        return None
    flops, bandwidth = peak * 1e12, gpu.memory_gb_per_second * 1e9
    return Device(flops * MATRIX_SHARE, bandwidth * MEMORY_SHARE, LAUNCH_SECONDS, flops, True, GPU_HOOK_SECONDS)


def gpu_network(gpu: Gpu, workers: int, gpus_per_machine: int, network_gbit: float) -> Network:
    """The ring of so many workers: the machine's own links, or its network card where a ring leaves the machine."""
    link = gpu.link_gb_per_second * 1e9
    if workers <= gpus_per_machine:
        return Network(link * LINK_SHARE, LINK_LATENCY)
    return Network(min(link, network_gbit / 8 * 1e9) * LINK_SHARE, NETWORK_LATENCY)


@dataclass(frozen=True)
class Step:
    """Seconds of one optimizer step, by part; `communication` is what is left of it beside the computation."""

    matrix: float
    memory: float
    optimizer: float
    communication: float
    data: float
    tokens: float
    flops: float

    @property
    def seconds(self) -> float:
        return self.matrix + self.memory + self.optimizer + self.communication + self.data

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def mfu(self, device: Device, workers: int) -> float | None:
        """Of all workers' peak together; None where it is not known."""
        return self.flops / (self.seconds * workers * device.peak_flops) if device.peak_flops else None

    def as_json(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in ("matrix", "memory", "optimizer", "communication", "data")}
        return {"seconds": self.seconds, "parts_seconds": parts, "tokens_per_second": self.tokens_per_second}


def step_time(
    work: Workload,
    placed: Placed,
    device: Device,
    network: Network,
    *,
    optimizer: str = "adamw",
    slowdown: float = 1.0,
    data_seconds: float = 0.0,
) -> Step:
    """One optimizer step.

    Args:
        slowdown: of the computation, where workers share processors, caches and memory; what messages take there is
            the network's.
    """
    micro = micro_flops(work)
    passes = 4 / 3 if work.checkpointing else 1.0
    matrix = passes * micro / device.flops_per_second
    shapes = parameter_shapes(work.config, work.head)
    memory = (passes * traffic(work) + copies(count(shapes), placed)) / device.bytes_per_second
    host = passes * operations(work) * device.launch_seconds
    if placed.zero_stage:
        host += len(shapes) * device.hook_seconds[placed.zero_stage == 3]
    memory = max(memory, host - matrix) if device.asynchronous else memory + host
    share = placed.workers if placed.zero_stage else 1
    # Gradients once more for the norm; a stage above 0 copies gradients and master weights, too.
    moved = (FP32 * (5 if placed.zero_stage else 4)) * count(shapes) + 2 * optimizer_bytes(optimizer, shapes)
    updated = moved / share / device.bytes_per_second
    if not placed.zero_stage and placed.workers > 1:  # all gradients into one tensor and back
        updated += 4 * FP32 * count(shapes) / device.bytes_per_second
    around = OPERATIONS_PER_STEP * device.launch_seconds
    updated = max(updated, around) if device.asynchronous else updated + around
    a = placed.accumulation
    matrices = sum(len(shape) > 1 for shape in shapes.values())
    sent = communication(count(shapes), placed, network, matrices=matrices)
    after = sent.get("all_gather", 0.0) if placed.zero_stage < 3 else 0.0  # of the new weights: nothing to hide behind
    beside = sum(sent.values()) - after
    if placed.overlap:
        beside = max(0.0, beside - a * (matrix + memory) * 2 / 3)
    return Step(
        matrix=a * matrix * slowdown,
        memory=a * memory * slowdown,
        optimizer=updated * slowdown,
        communication=beside + after,
        data=data_seconds,
        tokens=float(a * placed.workers * work.tokens),
        flops=a * placed.workers * micro,
    )


def operations(work: Workload) -> float:
    """Started by a micro-batch's forward and backward pass; an LSTM's steps follow one another, six or so a layer."""
    config, casting = work.config, CASTING if work.precision != "fp32" else 1.0
    if isinstance(config, TransformerConfig):
        return casting * (config.depth * OPERATIONS_PER_BLOCK + OPERATIONS_BESIDE)
    if config.architecture == "bilstm":
        return casting * (2 * config.layers * work.length * 6 + OPERATIONS_BESIDE)
    return casting * (2 * OPERATIONS_PER_BLOCK)


def micro_flops(work: Workload) -> float:
    """Forward and backward of a micro-batch; word vectors have no matrix products to speak of."""
    labelled = work.target_length if _two_stacks(work) else work.length + work.target_length
    share = work.label_share * labelled / (work.length + work.target_length)
    head: Mapping[str, Any] = work.head
    if head["name"] == "classifier":  # all positions go through the last block, none through an output matrix
        head, share = {"name": "discriminator", "settings": {}}, 0.0
    forward = forward_flops_per_token(work.config, work.length, share, target_length=work.target_length, head=head)
    return 3 * (forward or 0.0) * work.tokens


def _two_stacks(work: Workload) -> bool:
    return bool(work.config.architecture == "encoder-decoder" and work.target_length)


def traffic(work: Workload) -> float:
    """Bytes that a micro-batch moves beside its matrix products."""
    kept = activations(work)
    casts = 3 * kept.casts  # a weight of 4 bytes read, its copy of 2 written
    return PASSES * kept.kept + casts + 3 * kept.loss + _logits(work)


def _logits(work: Workload) -> float:
    """Of the output layer: written, read for the softmax, and written and read as their gradient."""
    config = work.config
    if work.head["name"] in ("classifier", "discriminator", "word-vectors", "glove"):
        return 0.0
    labelled = work.label_share * work.rows * (work.target_length or work.length)
    return 4 * labelled * config.padded_vocab_size * work.s


def volumes(parameters: int, placed: Placed) -> dict[str, float]:
    """{operation: bytes of the tensors that take part} of a step, on each worker."""
    size, a = float(FP32 * parameters), placed.accumulation
    if placed.workers == 1:
        return {}
    if placed.zero_stage == 3:
        return {"all_gather": a * _gathers(parameters, placed) * size, "reduce_scatter": a * size}
    reduced = a * size if placed.zero_stage == 2 else size
    return {"all_reduce": reduced} | ({"all_gather": size} if placed.zero_stage else {})


def copies(parameters: int, placed: Placed) -> float:
    """Bytes that DeepSpeed reads and writes besides in a micro-batch: gradients into buckets, gathered weights."""
    if not placed.zero_stage:
        return 0.0
    gathers = _gathers(parameters, placed) if placed.zero_stage == 3 else 0
    return 2.0 * FP32 * parameters * (1 + gathers)


def _gathers(parameters: int, placed: Placed) -> int:
    """Stage 3, of a micro-batch: weights that do not all fit are gathered for the backward pass anew."""
    return 2 if parameters > placed.gathered else 1


def communication(parameters: int, placed: Placed, network: Network, *, matrices: int = 1) -> dict[str, float]:
    """{operation: seconds} of a step's collectives.

    Args:
        matrices: weights of two dimensions or more, which stage 3 gathers one by one.
    """
    n = placed.workers
    if n == 1:
        return {}
    bucket = FP32 * (placed.bucket if placed.zero_stage else BUCKET_STAGE_0)
    latency = 2 * (n - 1) * network.latency_seconds
    share = {"all_reduce": 1.0, "all_gather": network.gather, "reduce_scatter": network.scatter}
    seconds = {"small": SMALL_COLLECTIVES * latency}
    for name, size in volumes(parameters, placed).items():
        calls = max(1.0, size / bucket)
        if placed.zero_stage == 3:
            each = matrices * _gathers(parameters, placed) if name == "all_gather" else 1
            calls = max(calls, placed.accumulation * each)
        seconds[name] = share[name] * (2 * (n - 1) / n * size / network.bytes_per_second + calls * latency)
    return seconds
