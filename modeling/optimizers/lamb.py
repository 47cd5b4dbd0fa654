"""LAMB (You et al. 2020, algorithm 2), on whole tensors and on ZeRO's flat vectors alike.

DeepSpeed's needs a CUDA operator, and takes a flat vector for one tensor; torch and transformers have none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modeling.optimizers.moments import adam_updates
from modeling.optimizers.partitions import OfWholeTensors, Piece, sum_over_ranks, whole
from modeling.optimizers.settings import Lamb as Settings


def lamb(groups: list[dict[str, Any]], settings: Settings, peak_lr: float) -> torch.optim.Optimizer:
    """The optimizer over `groups`."""
    shared = {
        "lr": peak_lr,
        "betas": settings.betas,
        "eps": settings.eps,
        "bias_correction": settings.bias_correction,
    }
    return Lamb(groups, shared)


class Lamb(OfWholeTensors):
    """u = Adam's update + weight_decay · w; w −= lr · ‖w‖ / ‖u‖ · u for each tensor; the ratio is 1 where a norm is 0.

    Norms are of whole tensors.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates = adam_updates(self.state, params, group["betas"], group["eps"], group["bias_correction"])
            if group["weight_decay"]:
                torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            if group["decays"]:
                self._adapt(params, updates)
            torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _adapt(self, params: list[Tensor], updates: list[Tensor]) -> None:
        """Multiply each tensor's update by ‖w‖ / ‖u‖."""
        weights, steps, places, count = [], [], [], 0
        for p, update in zip(params, updates, strict=True):
            for piece in self._pieces(p):
                if piece.high > piece.low:
                    weights.append(p.flatten()[piece.low : piece.high])
                    steps.append(update.view(-1)[piece.low : piece.high])
                    places.append(count)
                count += 1
        squares = torch.zeros(2, count, dtype=torch.float64, device=params[0].device)
        if places:
            norms = torch.stack([torch.stack(torch._foreach_norm(each)) for each in (weights, steps)])
            squares[:, places] = norms.double().square()
        if self.pieces is not None:
            squares = sum_over_ranks(squares)
        of_weights, of_steps = squares.sqrt()
        ratios = torch.where((of_weights > 0) & (of_steps > 0), of_weights / of_steps, 1.0).to(params[0].dtype)
        for step, place in zip(steps, places, strict=True):
            step.mul_(ratios[place])

    def _pieces(self, p: Tensor) -> list[Piece]:
        return whole(p) if self.pieces is None else self.pieces[id(p)]
