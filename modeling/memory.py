"""Memory of one worker by ZeRO part, from the config alone: what `triptych plan` prints and refuses by.

Rajbhandari et al. 2020 (arXiv:1910.02054, sections 3 and 5) count 2Ψ + 2Ψ + KΨ bytes for weights, gradients and
optimizer (K = 12: fp32 weights and Adam's two moments) and divide by the workers n what a stage partitions. Here
weights and gradients are fp32 and matrix products are cast by autocast (`modeling.engine`), so with Ψ parameters and
an optimizer of k bytes (AdamW: 8):

    stage   weights     master copy   gradients   optimizer
    0       4Ψ          -             4Ψ          kΨ
    1       4Ψ          4Ψ/n          4Ψ/n, 4Ψ    kΨ/n      the second with several micro-batches to a step
    2       4Ψ          4Ψ/n          4Ψ/n        kΨ/n
    3       4Ψ/n        4Ψ/n          4Ψ/n        kΨ/n       and the weights that are gathered at a time

DeepSpeed keeps the master copy also where weights are fp32 already: on one worker stage 1 needs more than stage 0.
Which moment is the worst is worked out: as the backward pass begins (all activations, no new gradients), as it ends
(all gradients, buckets), or at the optimizer's step (gradients and a flat copy of them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from modeling.activations import FP32, Activations, Workload, activations
from modeling.architecture import TransformerConfig
from modeling.shapes import CLASSIFIER, Shapes, count, parameter_shapes

GIB = 1 << 30
CUDA_CONTEXT = GIB
"""Outside the allocator: context, cuBLAS's and NCCL's buffers; an assumption (0.5 to 1 GiB are seen in practice)."""
PROCESS = round(0.55 * GIB)
"""Of a worker's process: Python, torch, DeepSpeed and the data's memory maps (docs/placement.md)."""
BUCKET_STAGE_0 = 500_000_000  # DeepSpeed flattens so many gradients at once
GATHERED, PREFETCHED = 1_000_000_000, 50_000_000  # stage 3: its defaults, in parameters
STATE_BYTES = {"adamw": 8, "lamb": 8, "lion": 4}
"""Per parameter, fp32, by `modeling.optimizers`' names; muon and adafactor have formulas (`optimizer_bytes`)."""


@dataclass(frozen=True)
class Placed:
    """How a model is placed, as the engine's configuration has it (`cluster.deepspeed.engine_config`).

    Attributes:
        accumulation: micro-batches of a step on one worker.
        offload_optimizer, offload_parameters: none, cpu or nvme.
        bucket: parameters reduced at once; gathered, prefetched: stage 3's live parameters and its prefetch.
    """

    workers: int = 1
    zero_stage: int = 0
    accumulation: int = 1
    offload_optimizer: str = "none"
    offload_parameters: str = "none"
    bucket: int = BUCKET_STAGE_0
    gathered: int = GATHERED
    prefetched: int = PREFETCHED
    overlap: bool = False

    @classmethod
    def of(cls, engine_config: Mapping[str, Any]) -> Placed:
        """From DeepSpeed's JSON, so that a user's own changes to it count."""
        zero = engine_config["zero_optimization"]
        micro, accumulation = (
            int(engine_config[name]) for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        )
        return cls(
            workers=int(engine_config["train_batch_size"]) // (micro * accumulation),
            zero_stage=int(zero["stage"]),
            accumulation=accumulation,
            offload_optimizer=(zero.get("offload_optimizer") or {}).get("device", "none"),
            offload_parameters=(zero.get("offload_param") or {}).get("device", "none"),
            bucket=int(float(zero.get("reduce_bucket_size", BUCKET_STAGE_0))),
            gathered=int(float(zero.get("stage3_max_live_parameters", GATHERED))),
            prefetched=int(float(zero.get("stage3_prefetch_bucket_size", PREFETCHED))),
            overlap=bool(zero.get("overlap_comm", False)),
        )


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at its worst moment.

    Attributes:
        parts: {part: bytes} on the device: weights, master, gradients, optimizer, activations, casts, loss,
            communication, framework.
        host: {part: bytes} in host memory; on a CPU worker everything is in `parts`, and this holds nothing.
        disk: bytes on NVMe.
        moment: forward (as the backward pass begins), backward (as it ends) or step.
    """

    parts: Mapping[str, int]
    host: Mapping[str, int]
    disk: int
    moment: str

    @property
    def total(self) -> int:
        """On the device; of a CPU worker all of it."""
        return sum(self.parts.values())

    @property
    def host_total(self) -> int:
        return sum(self.host.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "total_bytes": self.total,
            "parts_bytes": dict(self.parts),
            "host_bytes": dict(self.host),
            "disk_bytes": self.disk,
            "moment": self.moment,
        }


@dataclass(frozen=True)
class Static:
    """Bytes that do not depend on the batch, by where they are: what a measurement between steps finds."""

    device: Mapping[str, int]
    host: Mapping[str, int] = field(default_factory=dict)
    disk: int = 0
    gradients: int = 0
    """On the device once they are there."""
    flat: int = 0
    """The flat copy of them that the step makes."""
    buckets: int = 0
    """For a moment, while gradients are reduced."""
    gathering: int = 0
    """For a moment, while weights are gathered."""


def memory(work: Workload, placed: Placed, *, optimizer: str = "adamw", frozen_trunk: bool = False) -> Memory:
    """What one worker needs to train `work` as `placed`.

    Args:
        optimizer: as of `optimizer_bytes`.
        frozen_trunk: the head alone trains: no activations, gradients or states of the trunk.
    """
    shapes = parameter_shapes(work.config, work.head)
    trained = {name: shape for name, shape in shapes.items() if not frozen_trunk or not name.startswith("transformer.")}
    fixed = static(shapes, trained, placed, optimizer, work.device)
    needed = Activations(0, 0, 0, activations(work).working) if frozen_trunk else activations(work)
    earlier = fixed.gradients if placed.accumulation > 1 else 0
    moments = {
        "forward": {
            "gradients": earlier,
            "activations": needed.kept + max(needed.working, fixed.gathering),
            "casts": needed.casts,
            "loss": needed.loss,
        },
        "backward": {"gradients": fixed.gradients, "activations": needed.working, "communication": fixed.buckets},
        "step": {"gradients": fixed.gradients + fixed.flat},
    }
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    parts = dict(fixed.device)
    for name, size in moments[moment].items():
        parts[name] = parts.get(name, 0) + size
    host = dict(fixed.host)
    if work.device == "cpu":  # one memory for all
        for name, size in host.items():
            parts[name] = parts.get(name, 0) + size
        host = {}
        parts["framework"] = PROCESS
    else:
        parts["framework"] = CUDA_CONTEXT
        host["framework"] = PROCESS
    return Memory({name: size for name, size in parts.items() if size}, host, fixed.disk, moment)


def static(shapes: Shapes, trained: Shapes, placed: Placed, optimizer: str, device: str) -> Static:
    """The parts that the table in the module's docstring gives, and DeepSpeed's buffers."""
    n, stage = placed.workers, placed.zero_stage
    P, T = count(shapes), count(trained)
    state = optimizer_bytes(optimizer, trained)
    if stage == 0:
        buckets = FP32 * min(T, BUCKET_STAGE_0) if n > 1 else 0
        parts = {"weights": FP32 * P, "optimizer": state}
        return Static(parts, gradients=FP32 * T, buckets=buckets)
    share = -(-T // n)
    weights = FP32 * P if stage < 3 else FP32 * (-(-P // n))
    # At stage 1 they are reduced as they come, at the last micro-batch; until then they stay whole.
    gradients = FP32 * (T if stage == 1 and placed.accumulation > 1 else share)
    parts = {"weights": weights, "master": FP32 * share, "optimizer": -(-state // n)}
    bucket = FP32 * (min(T, placed.bucket) if device == "cpu" else placed.bucket)  # pages that nothing touches are free
    reduced = FP32 * min(T, placed.bucket) if n > 1 else 0
    buckets = reduced + (bucket * (2 if placed.overlap else 1) if stage == 2 else 0)
    flat = FP32 * share
    host: dict[str, int] = {}
    disk = gathering = 0
    if stage == 3:
        buckets, flat = reduced, 0
        parts["communication"] = bucket
        if n > 1:
            parts["gathered"] = FP32 * min(P, placed.gathered)
            gathering = FP32 * min(P, placed.prefetched)
        gradients, parts["gradients"] = 0, gradients  # its buffer stays
        host["model"] = FP32 * P  # the caller's, whole, while stage 3 takes a copy apart
        if placed.offload_parameters != "none":
            moved = parts.pop("weights")
            disk += moved if placed.offload_parameters == "nvme" else 0
            host["weights"] = moved if placed.offload_parameters == "cpu" else 0
    if placed.offload_optimizer != "none":
        moved = parts.pop("master") + parts.pop("optimizer")
        host["gradients"] = FP32 * share
        if placed.offload_optimizer == "cpu":
            host["optimizer"] = moved + (FP32 * share if stage < 3 else 0)  # and a buffer for the way back
        else:
            disk += moved
        if stage == 3:
            parts.pop("gradients")
        else:
            gradients, flat = gradients if stage == 1 and placed.accumulation > 1 else 0, 0
    host = {name: size for name, size in host.items() if size}
    return Static(parts, host, disk, gradients, flat, buckets, gathering)


def predicted_parts(shapes: Shapes, trained: Shapes, placed: Placed, optimizer: str) -> dict[str, int]:
    """What `modeling.memory_use` should find, under its names, wherever offload puts it."""
    found = static(shapes, trained, replace(placed, offload_optimizer="none", offload_parameters="none"), optimizer, "")
    return {
        "parameters": found.device["weights"],
        "gradients": found.gradients + found.device.get("gradients", 0),
        "master_weights": found.device.get("master", 0),
        "optimizer_state": found.device["optimizer"],
        "buffers": found.device.get("communication", 0),
    }


def optimizer_bytes(name: str, shapes: Shapes) -> int:
    """fp32 state of an optimizer for parameters of these shapes.

    AdamW and LAMB keep two moments, Lion one; Muon one for the blocks' matrices (the rest is AdamW's); Adafactor
    (Shazeer and Stern 2018) a row and a column of a matrix, and all of a vector.

    Args:
        name: a kind of `modeling.optimizers`, or adafactor-mean: with a mean of updates (beta1 above 0).
    """
    if name == "adafactor-mean":
        return optimizer_bytes("adafactor", shapes) + FP32 * count(shapes)
    if name == "muon":
        return sum(math.prod(s) * (4 if _hidden_matrix(n, s) else 8) for n, s in shapes.items())
    if name == "adafactor":
        return sum(FP32 * (sum(s) if len(s) == 2 else math.prod(s)) for s in shapes.values())
    return STATE_BYTES[name] * count(shapes)


def _hidden_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and (".blocks." in f".{name}" or ".cross." in f".{name}")


def most_rows(work: Workload, placed: Placed, available: int, most: int, **options: Any) -> int:
    """The largest micro-batch of at most `most` rows that fits into `available` bytes; 0: not even one."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if memory(replace(work, rows=middle), placed, **options).total <= available:
            low = middle
        else:
            high = middle - 1
    return low


def of_finetuning(config: Any, precision: str, rows: int, length: int, **more: Any) -> Workload:
    """The workload of a task's model: trunk and classifier."""
    share = 1.0 if isinstance(config, TransformerConfig) else 0.0
    return Workload(config, CLASSIFIER, precision, rows, length, label_share=share, **more)
