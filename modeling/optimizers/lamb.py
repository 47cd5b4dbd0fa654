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
        weights: list[Tensor] = []
        steps: list[Tensor] = []
        for p, update in zip(params, updates, strict=True):
            for piece in self._pieces(p):
                weights.append(p.flatten()[piece.low : piece.high])
                steps.append(update.view(-1)[piece.low : piece.high])
        squares = [each.double().square().sum() for each in (*weights, *steps)]
        norms = torch.stack(squares)
        if self.pieces is not None:
            norms = sum_over_ranks(norms)
        weight_norms, step_norms = norms.sqrt().chunk(2)
        ratios = torch.where((weight_norms > 0) & (step_norms > 0), weight_norms / step_norms, 1.0)
        for step, ratio in zip(steps, ratios.to(steps[0].dtype), strict=True):
            step.mul_(ratio)

    def _pieces(self, p: Tensor) -> list[Piece]:
        return whole(p) if self.pieces is None else self.pieces[id(p)]
