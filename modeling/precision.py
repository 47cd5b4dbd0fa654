"""Number formats of matrix products: which one, autocast, and the scale that keeps fp16's gradients in range.

Weights, their gradients, reductions and the optimizer are fp32 at every precision and ZeRO stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from modeling.hardware import processor_has_bf16

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}

FIRST_SCALE = 2.0**16
GROWTH_STEPS = 2000
"""After so many steps without overflow the scale doubles; at an overflow it halves (torch.amp.GradScaler's figures)."""


def autocast(device_type: str, precision: str) -> torch.autocast:
    """The context that a model's forward runs in.

    Its cache of cast weights stays on: a weight that layers or stacks share (ALBERT) is cast once a forward pass, not
    once a use. Autograd keeps one copy of it then, too, where it would keep one for each use; weights of one use cost
    nothing, since autograd keeps their copies anyway. Only with activation checkpointing are they held for nothing,
    until the forward pass ends. Each micro-batch has a context of its own, so nothing stays from one to the next.
    """
    return torch.autocast(device_type, LOW.get(precision, torch.bfloat16), enabled=precision in LOW)


def chosen(precision: str, device: torch.device) -> str:
    """fp32, bf16 or fp16; `auto` is bf16 where the devices of all ranks multiply it, else fp32.

    Every rank of the process group calls it.
    """
    if precision != "auto":
        return precision
    has_bf16 = torch.tensor([int(multiplies_bf16(device))], device=device)
    dist.all_reduce(has_bf16, op=dist.ReduceOp.MIN)
    return "bf16" if has_bf16.item() else "fp32"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether it has instructions for bf16 products, i.e. they are faster than fp32's."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return processor_has_bf16()


@dataclass
class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2): part of a checkpoint.

    fp16 ends at 65,504 and at 6e-8. A loss times the scale has gradients in the middle of that; they are divided by it
    in fp32. Where one overflows, the step is skipped, and the next ones have half the scale. Powers of two are exact.
    """

    scale: float = FIRST_SCALE
    good_steps: int = 0
    """Since the scale changed last."""
    skipped_steps: int = 0
    """Since the first step."""

    def update(self, overflow: bool) -> None:
        """Take note of a step."""
        if overflow:
            self.scale, self.good_steps, self.skipped_steps = self.scale / 2, 0, self.skipped_steps + 1
            return
        self.good_steps += 1
        if self.good_steps == GROWTH_STEPS:
            self.scale, self.good_steps = self.scale * 2, 0
