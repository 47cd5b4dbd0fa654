"""Lion (Chen et al. 2023, algorithm 2); DeepSpeed's needs a compiled operator for each device."""

from __future__ import annotations

from typing import Any

import torch

from modeling.optimizers.settings import Lion as Settings


def lion(groups: list[dict[str, Any]], settings: Settings, peak_lr: float) -> torch.optim.Optimizer:
    """The optimizer over `groups`."""
    return Lion(groups, {"lr": peak_lr, "betas": settings.betas})


class Lion(torch.optim.Optimizer):
    """w −= lr · (sign(β₁ m + (1 − β₁) g) + weight_decay · w), then m ← β₂ m + (1 − β₂) g."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            for p in params:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            means = [self.state[p]["exp_avg"] for p in params]
            first, second = group["betas"]
            updates = torch._foreach_lerp(means, grads, 1 - first)
            torch._foreach_sign_(updates)
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, updates, alpha=-group["lr"])
            torch._foreach_lerp_(means, grads, 1 - second)
