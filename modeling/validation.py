"""The loss on held-out examples: while a model trains and when it has, by the same function.

Held-out examples come in chunks that do not depend on the number of ranks; rank r takes chunks r, r + world, …, and
sums are of float64. So a model has the same figures wherever it is validated, up to the rounding of a chunk's sum.
Every rank makes as many forward passes as the others, since at ZeRO stage 3 each of them gathers weights.

Bits per byte: Σ nats / (ln 2 · Σ UTF-8 bytes) over the labels that are
text; special tokens are in neither sum. A tokenizer with longer tokens has a larger loss per token, but not per byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from modeling.heads.base import Parts, parts_of

Batch = dict[str, np.ndarray]
LABEL_BYTES = "label_bytes"
"""Optional key of a chunk, float64 [B, L]: UTF-8 bytes of each label that is text, 0 elsewhere; for bits per byte."""


@dataclass(frozen=True)
class HeldOut:
    """Examples that a model is validated on, the same for every rank.

    Attributes:
        chunks: how many there are.
        chunk: its number → its rows, with the keys that the model's forward wants, and LABEL_BYTES where bits per
            byte are asked for.
    """

    chunks: int
    chunk: Callable[[int], Batch]


def scores(model: nn.Module, batch: dict[str, Tensor], label_bytes: Tensor | None) -> Tensor:
    """A batch's sums, float64 [2 K + 3]: losses and labels of the K parts, right answers, nats and bytes of text.

    Right answers and text are of heads with `evaluate` (`modeling.heads.language`); 0 for others.
    """
    nothing = torch.zeros((), device=next(iter(batch.values())).device)
    correct = text_nats = nothing
    if hasattr(model, "evaluate"):
        found, correct, text_nats = model.evaluate(batch, None if label_bytes is None else label_bytes > 0)
    else:
        found = model(batch)
    total_bytes = nothing if label_bytes is None else label_bytes.sum()
    sums = [found.loss_sum.reshape(-1), found.count.reshape(-1)]
    sums += [each.reshape(1) for each in (correct, text_nats, total_bytes)]
    return torch.cat([each.double() for each in sums])


def validate(engine: Any, model: nn.Module, held_out: HeldOut, device: torch.device, seed: int) -> dict[str, float]:
    """Figures over all ranks, equal on each; every rank calls it.

    Args:
        engine: called as `engine(batch, None, label_bytes)` for `scores` (`modeling.engine.ScaledLoss`).
        seed: of what a model draws in its forward pass (ELECTRA's generator), by chunk; so that figures do not
            depend on what was drawn before, and training draws afresh in each step.

    Returns:
        validation_loss (nats per label; of several parts the weighted sum, and each as validation_loss_NAME),
        and where the head tells: validation_accuracy, validation_perplexity (of the first part) and, for labels
        that are text, validation_bits_per_byte.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    parts = parts_of(model)
    total = torch.zeros(2 * len(parts) + 3, dtype=torch.float64, device=device)
    engine.eval()
    with torch.no_grad():
        for first in range(0, held_out.chunks, world_size):
            number = first + rank
            rows = held_out.chunk(number if number < held_out.chunks else 0)
            batch = {name: torch.from_numpy(np.ascontiguousarray(a)).to(device) for name, a in rows.items()}
            label_bytes = batch.pop(LABEL_BYTES, None)
            torch.manual_seed(seed * 1_000_003 + number)
            found = engine(batch, None, label_bytes)
            if number < held_out.chunks:
                total += found
    engine.train()
    if world_size > 1:
        dist.all_reduce(total)
    return _figures(total.tolist(), parts, hasattr(model, "evaluate"))


def _figures(total: list[float], parts: Parts, scored: bool) -> dict[str, float]:
    K = len(parts)
    sums, counts, (correct, text_nats, text_bytes) = total[:K], total[K : 2 * K], total[2 * K :]
    means = {name: loss / max(labels, 1) for (name, _), loss, labels in zip(parts, sums, counts, strict=True)}
    figures = {"validation_loss": sum(weight * means[name] for name, weight in parts)}
    if K > 1:
        figures |= {f"validation_loss_{name}": mean for name, mean in means.items()}
    if scored:
        figures["validation_accuracy"] = correct / max(counts[0], 1)
        # e^700 is what a float holds; a model that bad has diverged
        figures["validation_perplexity"] = math.exp(min(means[parts[0][0]], 700.0))
    if text_bytes:
        figures["validation_bits_per_byte"] = text_nats / (math.log(2) * text_bytes)
    return figures
