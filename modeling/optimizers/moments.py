"""Adam's update direction, for optimizers that take it further (LAMB) or use it for a part of the weights (Muon)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def adam_updates(
    state: Any, params: list[Tensor], betas: tuple[float, float], eps: float, bias_correction: bool
) -> list[Tensor]:
    """m̂ / (√v̂ + eps) of each parameter (Kingma and Ba 2015, algorithm 1); m and v in `state` are moved on.

    Without correction m and v are used as they are.
    """
    for p in params:
        if not state[p]:
            state[p].update(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state[p]["step"] += 1
    grads = [p.grad for p in params]
    means, squares = [state[p]["exp_avg"] for p in params], [state[p]["exp_avg_sq"] for p in params]
    torch._foreach_lerp_(means, grads, 1 - betas[0])
    torch._foreach_mul_(squares, betas[1])
    torch._foreach_addcmul_(squares, grads, grads, 1 - betas[1])
    t = int(state[params[0]]["step"])
    first, second = (1 - betas[0] ** t, math.sqrt(1 - betas[1] ** t)) if bias_correction else (1.0, 1.0)
    denominators = torch._foreach_sqrt(squares)
    torch._foreach_div_(denominators, second)
    torch._foreach_add_(denominators, eps)
    updates = torch._foreach_div(means, first)
    torch._foreach_div_(updates, denominators)
    return list(updates)
