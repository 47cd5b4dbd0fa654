"""Which token comes next: filters of the distribution, and draws that depend on nothing but their own number.

A draw is the inverse of the cumulative distribution at a uniform number, and that number is a hash of (seed, prompt,
sample, step): no generator's state passes from token to token or from row to row, so a text is the same whatever is
generated beside it.
"""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

NO = float("-inf")


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """The k most probable tokens; −inf elsewhere (Fan et al. 2018, arXiv:1805.04833, section 5.3).

    Exactly min(k, V) are kept: of equal ones at the border those with the lowest ids. k = 0 keeps all.
    """
    V = logits_BV.shape[-1]
    if not 0 < k < V:
        return logits_BV
    border_B1 = logits_BV.topk(k, dim=-1).values[:, -1:]
    above, level = logits_BV > border_B1, logits_BV == border_B1
    room_B1 = k - above.sum(-1, keepdim=True)
    return logits_BV.masked_fill(~(above | (level & (level.cumsum(-1) <= room_B1))), NO)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """The fewest most probable tokens whose probability is at least p; −inf elsewhere.

    Nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751, equation 2). At least one token is kept; of equal ones
    at the border those with the lowest ids. p = 1 keeps all.
    """
    if p >= 1:
        return logits_BV
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    probability_BV = sorted_BV.double().softmax(-1)
    before_BV = probability_BV.cumsum(-1) - probability_BV
    # the sums' rounding (1e-16 a term) must not admit a token beyond a border that p meets exactly
    kept_BV = before_BV < p - 1e-12
    kept_BV[:, 0] = True
    return logits_BV.masked_fill(~torch.zeros_like(kept_BV).scatter(-1, order_BV, kept_BV), NO)


def shaped(logits_BV: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits / temperature, then top-k, then top-p of what is left: float32 [B, V]."""
    logits_BV = logits_BV.float()
    # the largest becomes 0, and 1e-30 is a float32: however cold, it stays 0
    logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / max(temperature, 1e-30)
    return keep_top_p(keep_top_k(logits_BV, top_k), top_p)


def uniform(seed: int, prompt: int, sample: int, step: int) -> float:
    """A number in [0, 1) for a place: which prompt of the call, which of its samples, which new token."""
    place = b"".join(n.to_bytes(8, "little", signed=True) for n in (seed, prompt, sample, step))
    # 52 bits: also after the product with a sum near 1, a double below it
    return (int.from_bytes(blake2b(place, digest_size=8).digest(), "little") >> 12) / 2**52


def draw(logits_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Ids int64 [B]: the first one up to which more than `uniforms` of the probability lies.

    Args:
        uniforms_B: float64 in [0, 1). A token without probability is never drawn.
    """
    cumulative_BV = logits_BV.float().softmax(-1).cumsum(-1, dtype=torch.float64)
    targets_B1 = (uniforms_B * cumulative_BV[:, -1])[:, None]
    return torch.searchsorted(cumulative_BV, targets_B1, right=True).squeeze(1)
