"""Norm, rotation and attention with few passes over memory.

On a CPU these small operations, not the matrix products, take most of a step: torch's rms_norm there is
a chain of eight element-wise operations, and its flash attention is slow in bf16. On CUDA torch's own
kernels are used.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN_ATTENTION_BYTES = 1 << 28
"""Largest score matrix that CPU attention may hold for the sake of speed."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products will compute in: autocast's dtype, or x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _RMSNorm(torch.autograd.Function):
    """Computes in fp32 or better. The backward pass is layer norm's fused kernel, told that the mean is 0.

    That kernel also takes out the mean of dy · weight, which RMS norm does not: it is put back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        D = x.shape[-1]
        dy, weight = dy.to(x.dtype).contiguous(), weight.to(x.dtype)
        dx, d_weight, _ = torch.ops.aten.native_layer_norm_backward(
            dy, x, [D], torch.zeros_like(scale), scale, weight, None, [True, True, False]
        )
        mean = (dy.view(-1, D) @ weight).div_(D).view_as(scale)
        return dx.add_(mean.mul_(scale)), d_weight, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """x / √(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich 2019).

    The result has `dtype`; None: the dtype of matrix products, which then need no cast.
    """
    dtype = dtype or compute_dtype(x)
    if x.device.type == "cpu":
        return _RMSNorm.apply(x, weight, eps, dtype)
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps).to(dtype)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary positions: pairs (2i, 2i + 1) of the last dimension, as complex numbers, times `turn` (complex64)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Softmax(q kᵀ / √d) v for [B, H, L, d]; `mask` is True where attention is allowed.

    torch's flash kernel for CPUs is three times slower in bf16 than the plain products, which are used as
    long as their score matrix stays small.
    """
    B, H, L, d = q.shape
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and 2 * B * H * L * L <= PLAIN_ATTENTION_BYTES
    if not plain:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout)
    scores = (q * d**-0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ v


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step, where it would give large ones back to the system.

    A training step frees and allocates the same large tensors again and again; without this each costs
    page faults. Nothing happens on other C libraries.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            library.mallopt(mmap_threshold, 1 << 30)
            library.mallopt(trim_threshold, 2**31 - 1)
