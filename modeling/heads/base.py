"""What every head gives the loop: sums of losses, and how many labels each is over.

The loop normalises by the counts of the global batch, whatever its split into ranks and micro-batches (docs:
loss normalisation), so a head never divides. A head with several losses names them in `parts`; each has its
own count, and the loss is Σ weight · sum / count.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

IGNORE = -100
"""Label of a position without loss."""
NEVER = -1e4
"""Output bias of padded vocabulary rows: their probability is exactly zero, and so is their gradient."""
OUTPUT_BIASES = frozenset({"head.bias", "generator_head.bias", "output.bias"})
"""Paths of the parameters that have it: neither their decay nor their norm means anything."""

Parts = tuple[tuple[str, float], ...]
ONE_PART: Parts = (("loss", 1.0),)


class LossSum(NamedTuple):
    """Summed losses in nats and the number of labels each is over: scalars, or [K] for K parts."""

    loss_sum: Tensor
    count: Tensor


@runtime_checkable
class Trainable(Protocol):
    """What `modeling.loop.fit` trains: an nn.Module with these methods, and `parts` if there are several losses."""

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        """Summed losses and their numbers of labels."""

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        """Numbers of labels in the batch, as forward would count them."""


def parts_of(model: nn.Module) -> Parts:
    """(name, weight) of a model's losses."""
    return getattr(model, "parts", ONE_PART)


def mean_pool(hidden_BLD: Tensor, attention_mask_BL: Tensor | None) -> Tensor:
    """Mean over the attended tokens, [B, D]; padding does not count."""
    if attention_mask_BL is None:
        return hidden_BLD.mean(1)
    weight_BL = attention_mask_BL.to(hidden_BLD.dtype)
    return torch.einsum("bld,bl->bd", hidden_BLD, weight_BL) / weight_BL.sum(1, keepdim=True).clamp(min=1)


def last_token(hidden_BLD: Tensor, attention_mask_BL: Tensor | None) -> Tensor:
    """The state of each row's last attended token, [B, D]; padding stands at the end."""
    if attention_mask_BL is None:
        return hidden_BLD[:, -1]
    places = torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device)
    last_B = (attention_mask_BL.long() * places).argmax(1)
    return hidden_BLD[torch.arange(len(hidden_BLD), device=hidden_BLD.device), last_B]
