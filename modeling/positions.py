"""What positions are computed from: rotary turns, T5's buckets of distances, and biases that look at near tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modeling.architecture import TransformerConfig


def rotary_turns(config: TransformerConfig) -> Tensor:
    """e^(i·p·θ_j), θ_j = base^(−2j/head_width), for position p and pair j: complex64 [max_length, head_width/2].

    Su et al. 2021 (arXiv:2104.09864), equation 34, with pairs (2j, 2j + 1) as there.
    """
    half = config.head_width // 2
    frequencies = config.rotary_base ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(config.max_length, dtype=torch.float64), frequencies)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def relative_bucket(distance: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """T5's bucket of key place − query place (Raffel et al. 2020, section 2.1): exact when near, then logarithmic.

    A bidirectional stack gives half of the buckets to each direction; a causal one has none for the future.
    """
    offset = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    # in float32, as the released models were trained: the last digit decides a bucket at the edges
    far = torch.log(distance.float().clamp(min=1) / exact) / math.log(max_distance / exact) * (buckets - exact)
    far = (exact + far.long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


OTHER_SIDE = -4.0
"""What a head's score of a token on the side that it does not begin with is lowered by, besides its distance."""


def near_bias(buckets: int, max_distance: int, heads: int, bidirectional: bool) -> Tensor:
    """Biases [buckets, heads] from which heads look at near tokens first: −slope · distance, the mean of a bucket's.

    Slopes are geometric from 1 on, down to about 2^−8, as those of Press et al. 2022 (ALiBi, arXiv:2108.12409,
    section 3), but a start that training moves away from. In a bidirectional stack heads take turns: the even ones
    begin with the left side, the odd ones with the right; a lone head with both.
    """
    distance = torch.arange(-max_distance, max_distance + 1 if bidirectional else 1)
    bucket = relative_bucket(distance, buckets, max_distance, bidirectional)
    total = torch.bincount(bucket, distance.float(), minlength=buckets)
    mean = (total / torch.bincount(bucket, minlength=buckets).clamp(min=1))[:, None].float()
    two_sided = bidirectional and heads > 1
    head = torch.arange(heads)
    on_a_side = torch.where(head % 2 == 0, (heads + 1) // 2, heads // 2) if two_sided else torch.tensor(heads)
    slope = 2.0 ** (-8 * (head // 2 if two_sided else head) / on_a_side)
    bias = -slope * mean.abs()
    if two_sided:
        bias += OTHER_SIDE * torch.where(head % 2 == 0, mean > 0, mean < 0)
    return bias
