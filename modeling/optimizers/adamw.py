"""AdamW: torch's fused one, and BERT's variant without bias correction on the same kernel."""

from __future__ import annotations

import math
from typing import Any

import torch

from modeling.optimizers.settings import AdamW


def adamw(groups: list[dict[str, Any]], settings: AdamW, peak_lr: float) -> torch.optim.Optimizer:
    """The optimizer over `groups`."""
    kind = torch.optim.AdamW if settings.bias_correction else UncorrectedAdamW
    return kind(groups, lr=peak_lr, betas=settings.betas, eps=settings.eps, fused=True)


class UncorrectedAdamW(torch.optim.AdamW):
    """w −= lr · (m / (√v + eps) + weight_decay · w), without dividing m and v by 1 − βᵗ (Devlin et al. 2018, code).

    torch's step is lr′ · (m / c₁) / (√v / √c₂ + eps′), cᵢ = 1 − βᵢᵗ; at lr′ = lr · c₁ / √c₂, eps′ = eps / √c₂ and
    decay′ = decay · lr / lr′ it is this one. So the first steps are short, which is a warm-up of its own.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        given = [(group["lr"], group["eps"], group["weight_decay"]) for group in self.param_groups]
        for group in self.param_groups:
            t = self._steps_done(group) + 1
            first, second = 1 - group["betas"][0] ** t, math.sqrt(1 - group["betas"][1] ** t)
            group["weight_decay"] *= second / first
            group["lr"] *= first / second
            group["eps"] /= second
        try:
            return super().step(closure)
        finally:
            for group, (lr, eps, decay) in zip(self.param_groups, given, strict=True):
                group["lr"], group["eps"], group["weight_decay"] = lr, eps, decay

    def _steps_done(self, group: dict[str, Any]) -> int:
        known = (self.state[p]["step"] for p in group["params"] if "step" in self.state.get(p, {}))
        return int(next(known, 0))
