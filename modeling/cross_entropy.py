"""Cross-entropy of a large vocabulary without keeping its logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy(states_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, labels_N: Tensor) -> Tensor:
    """Σ over n of −log softmax(states · weightᵀ + bias)[label], in nats, float32 scalar.

    Args:
        states_NE: any float dtype; weight_VE, bias_V: of the output layer; labels_N: int64, none ignored.
    """
    return F.cross_entropy(F.linear(states_NE, weight_VE, bias_V).float(), labels_N, reduction="sum")
