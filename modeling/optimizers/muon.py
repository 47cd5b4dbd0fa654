"""Muon (Jordan et al. 2024) with AdamW for what is not a layer's matrix, on whole tensors and on ZeRO's flat vectors.

torch's takes matrices only, and DeepSpeed's clips the orthogonalised update where ZeRO is on, so that its steps depend
on the stage. Here momentum stays in parts, and each rank brings together the matrices of which it has a part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modeling.optimizers.moments import adam_updates
from modeling.optimizers.partitions import OfWholeTensors, gathered
from modeling.optimizers.settings import Muon as Settings

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: the steepest at zero that keeps singular values near 1 (Jordan et al. 2024)."""


def muon(groups: list[dict[str, Any]], settings: Settings, peak_lr: float) -> torch.optim.Optimizer:
    """The optimizer over `groups`; those with `matrices` are Muon's."""
    shared = {
        "lr": peak_lr,
        "momentum": settings.momentum,
        "nesterov": settings.nesterov,
        "newton_schulz_steps": settings.newton_schulz_steps,
        "betas": settings.betas,
        "eps": settings.eps,
    }
    return Muon(groups, shared)


class Muon(OfWholeTensors):
    """m ← μ m + (1 − μ) g; w −= lr · (0.2 √max(rows, columns) · orthogonal(μ m + (1 − μ) g) + weight_decay · w)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            if group["matrices"]:
                updates = [self._orthogonal(p, group) for p in params]
            else:
                updates = adam_updates(self.state, params, group["betas"], group["eps"], True)
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _orthogonal(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """The update of a matrix, or of a rank's vector of pieces of several."""
        if not self.state[p]:
            self.state[p]["exp_avg"] = torch.zeros_like(p)
        mean = self.state[p]["exp_avg"].lerp_(p.grad, 1 - group["momentum"])
        moved = p.grad.lerp(mean, group["momentum"]) if group["nesterov"] else mean
        steps = group["newton_schulz_steps"]
        if self.pieces is None:
            return _scaled(moved, steps)
        update = torch.zeros_like(p)
        pieces = self.pieces[id(p)]
        for piece, matrix in zip(pieces, gathered(pieces, moved), strict=True):
            if matrix is not None:
                part = _scaled(matrix, steps).flatten()[piece.begin : piece.begin + piece.high - piece.low]
                update[piece.low : piece.high] = part
        return update


def _scaled(matrix: Tensor, steps: int) -> Tensor:
    return orthogonalised(matrix, steps).mul_(0.2 * max(matrix.shape) ** 0.5)


def orthogonalised(matrix: Tensor, steps: int) -> Tensor:
    """U Vᵀ, nearly, of matrix = U S Vᵀ, by Newton-Schulz iterations; in bf16 where products of it are fast (GPUs)."""
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.bfloat16) if matrix.is_cuda else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrix.dtype, copy=True)
