"""Adafactor: transformers' one, with the learning rate that the loop says at each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modeling.heads.base import NEVER
from modeling.optimizers.settings import Adafactor


def adafactor(groups: list[dict[str, Any]], settings: Adafactor, peak_lr: float) -> torch.optim.Optimizer:
    """The optimizer over `groups`. torch has one too, but it caps the learning rate at 1/√t by itself."""
    from transformers.optimization import Adafactor as Library

    class OfRealRows(Library):
        """With sizes of tensors that leave out the output biases of padded vocabulary rows: they are −10⁴."""

        @staticmethod
        def _rms(tensor: Tensor) -> Tensor:
            return torch.where(tensor > NEVER / 2, tensor, 0.0).norm() / tensor.numel() ** 0.5

    made: torch.optim.Optimizer = OfRealRows(
        groups,
        lr=peak_lr,
        eps=settings.eps,
        clip_threshold=settings.clip_threshold,
        decay_rate=-settings.decay_rate,
        beta1=settings.beta1 or None,
        scale_parameter=settings.relative,
        relative_step=False,
        warmup_init=False,
    )
    return made
