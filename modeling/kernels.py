"""Norm, rotation and attention with few passes over memory.

On a CPU these small operations, not the matrix products, take most of a step: torch's rms_norm there is
a chain of eight element-wise operations with an autograd node each, and its flash attention is slow in
bf16. Here each is one autograd node with in-place arithmetic. On CUDA torch's own kernels are used.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MATH_ATTENTION_BYTES = 1 << 30
"""Largest score matrix that CPU attention may hold for the sake of speed."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products will compute in: autocast's dtype, or x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        D = x.shape[-1]
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=weight.dtype)
        scale = norm.square_().div_(D).add_(eps).rsqrt_()
        y = torch.empty(x.shape, dtype=dtype, device=x.device)
        torch.mul(x, scale, out=y)
        y.mul_(weight.to(dtype))
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        D = x.shape[-1]
        product = (dy * x).to(weight.dtype).reshape(-1, D)
        rows = scale.reshape(-1)
        d_weight = product.t() @ rows
        inner = (product @ weight).mul_(rows.pow(3)).div_(D).view_as(scale)
        dx = (dy * weight).mul_(scale)
        dx.addcmul_(x, inner, value=-1)
        return dx.to(x.dtype), d_weight, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / √(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich 2019), in the compute dtype."""
    if x.device.type == "cpu":
        return _RMSNorm.apply(x, weight, eps, compute_dtype(x))
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(dy, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + d/2) of the last dimension by the angles behind cos and sin, which broadcast to x."""
    return _Rotate.apply(x, cos.to(x.dtype), sin.to(x.dtype))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Softmax(q kᵀ / √d) v for [B, H, L, d]; `mask` is True where attention is allowed.

    torch's flash kernel for CPUs is three times slower in bf16 than the plain products, which are used as
    long as their score matrix stays small.
    """
    B, H, L, d = q.shape
    plain = q.device.type == "cpu" and q.dtype != torch.float32 and B * H * L * L * 2 <= MATH_ATTENTION_BYTES
    if not plain:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout)
    scores = (q * d**-0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights @ v
