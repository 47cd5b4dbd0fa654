"""What a DeepSpeed engine really holds on this rank, in bytes by part of ZeRO, beside the formula's prediction.

Parts are those of the ZeRO paper (Rajbhandari et al. 2020, section 3.1), with its optimizer states in two: the fp32
copy of the weights that the optimizer changes, and its moments. Views of one buffer count once, padding included.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

PARTS = ("parameters", "gradients", "master_weights", "optimizer_state", "buffers")
"""`parameters`: what the forward pass uses, or this rank's share of it at stage 3. `gradients`: before the update.
`master_weights`: ZeRO's own copy of the weights, of this rank's share; at stage 0 there is none. `optimizer_state`: its
moments. `buffers`: buckets in which gradients travel."""


def memory_use(engine: Any, model: nn.Module) -> dict[str, int]:
    """Bytes of each of `PARTS` that exist now on this rank, and `offloaded`: those of them on another device.

    Gradients exist between the backward pass and the update, moments from the first update on: `largest` puts
    several moments together.
    """
    optimizer = engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    parameters = list(model.parameters())
    masters = [*_tensors(getattr(optimizer, name, None) for name in _MASTERS)]
    found: dict[str, list[Tensor]] = {
        "parameters": [t for p in parameters for t in (p.data, getattr(p, "ds_tensor", None)) if t is not None],
        "gradients": [
            *(t.grad for t in (*parameters, *masters) if t.grad is not None),
            *_tensors(getattr(optimizer, name, None) for name in _GRADIENTS),
        ],
        "master_weights": masters,
        "optimizer_state": [*_tensors(getattr(inner, "state", {}).values())],
        "buffers": [*_tensors(getattr(b, "buffer", None) for b in getattr(optimizer, "ipg_buckets", {}).values())],
    }
    counted: set[int] = set()
    sizes = {part: _bytes(tensors, counted) for part, tensors in found.items()}
    home = next((p.device.type for p in parameters), "cpu")
    every = [tensor for tensors in found.values() for tensor in tensors]
    return {**sizes, "offloaded": _bytes((t for t in every if t.device.type != home), set())}


def largest(*moments: Mapping[str, int]) -> dict[str, int]:
    """The largest of each figure."""
    return {name: max(moment[name] for moment in moments) for name in moments[0]}


def peaks(device: torch.device) -> dict[str, int]:
    """`peak_rss`: most memory this process ever had; `peak_cuda`: most that torch allocated on its GPU."""
    found = {"peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        found["peak_cuda"] = torch.cuda.max_memory_allocated(device)
    return found


# DeepSpeed's names, of stages 1 and 2, of stage 3, and of its fp16 optimizers.
_MASTERS = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat", "fp32_groups")
_GRADIENTS = ("averaged_gradients", "grad_partitions_flat_buffer", "grads_in_partition")


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors in nested lists and dicts."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _bytes(tensors: Iterable[Tensor], counted: set[int]) -> int:
    """Size of the tensors' storages, but for those counted before."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in counted:
            counted.add(storage.data_ptr())
            total += storage.nbytes()
    return total
