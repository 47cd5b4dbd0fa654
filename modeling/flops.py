"""Counting parameters and floating-point operations, and the share of a device's peak that is used (MFU).

Model FLOPs are those of the matrix products that the mathematics needs (PaLM, appendix B): recomputation
does not count, embedding look-ups do not either, and the output matrix counts at labelled positions only.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from modeling.architecture import TransformerConfig

PEAK_TFLOPS: dict[str, dict[str, float]] = {
    # Dense tensor-core peaks from the vendors' data sheets; fp32 is TF32 off.
    "H200": {"bf16": 989, "fp32": 67},
    "H100 PCIe": {"bf16": 756, "fp32": 51},
    "H100": {"bf16": 989, "fp32": 67},
    "A100": {"bf16": 312, "fp32": 19.5},
    "A10G": {"bf16": 70, "fp32": 35},
    "A10": {"bf16": 125, "fp32": 31.2},
    "L40S": {"bf16": 362, "fp32": 91.6},
    "L4": {"bf16": 121, "fp32": 30.3},
    "RTX 4090": {"bf16": 165, "fp32": 82.6},
    "RTX 3090": {"bf16": 71, "fp32": 35.6},
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s at `precision` (fp32 or bf16): a GPU's from its data sheet, a CPU's as measured.

    None for a GPU that is not in the table.
    """
    if device.type == "cpu":
        return measured_peak(precision)
    name = torch.cuda.get_device_name(device)
    return next((peaks[precision] * 1e12 for key, peaks in PEAK_TFLOPS.items() if key in name), None)


def measured_peak(precision: str, size: int = 1024, tries: int = 5) -> float:
    """The best FLOP/s of `tries` square matrix products on this process's threads (a tenth of a second).

    A CPU has no data sheet to go by (clock, cores that others use, AMX): MFU is against what it gives here.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.full((size, size), 0.5, dtype=dtype), torch.full((size, size), 0.25, dtype=dtype)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(tries + 1):  # the first one warms up
            begun = time.perf_counter()
            torch.matmul(left, right)
            best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Parameters by group: embedding, position, token_type, attention, feed_forward, norm, head, total.

    A tied output matrix counts once, under embedding. `non_embedding` is what Kaplan et al. call N:
    all but token, position and segment embeddings.
    """
    groups = dict.fromkeys(("embedding", "position", "token_type", "attention", "feed_forward", "norm", "head"), 0)
    for name, parameter in model.named_parameters():
        trunk = name.removeprefix("transformer.") if name.startswith("transformer.") else None
        if trunk is None and hasattr(model, "transformer"):
            group = "head"
        else:
            group = _group(trunk if trunk is not None else name)
        groups[group] += parameter.numel()
    total = sum(groups.values())
    embeddings = groups["embedding"] + groups["position"] + groups["token_type"]
    return {**groups, "non_embedding": total - embeddings, "total": total}


def _group(name: str) -> str:
    part = name.split(".")
    if part[0] in ("tokens", "positions", "token_types"):
        return {"tokens": "embedding", "positions": "position", "token_types": "token_type"}[part[0]]
    if part[0] == "blocks" and part[2] in ("attention", "ff"):
        return "attention" if part[2] == "attention" else "feed_forward"
    return "norm"


def forward_flops_per_token(config: TransformerConfig, length: int, label_share: float) -> float:
    """Multiply-adds × 2 of one token's forward pass in a sequence of `length` tokens.

    Args:
        label_share: labelled positions / all positions: the MLM head and the output matrix run there alone.
    """
    D, F, V = config.width, config.ff_width, config.padded_vocab_size
    matrices = 3 if config.activation.endswith("glu") else 2
    block = 2 * (4 * D * D + matrices * D * F) + 4 * length * D  # the last: QKᵀ and the weighted sum of V
    head = 2 * D * V + (2 * D * D if config.head_transform else 0)
    return config.layers * block + label_share * head


def training_flops_per_token(config: TransformerConfig, length: int, label_share: float) -> float:
    """Forward and backward: three times the forward pass."""
    return 3 * forward_flops_per_token(config, length, label_share)
