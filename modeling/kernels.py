"""Norm, rotation and attention with few passes over memory.

On a CPU these small operations, not the matrix products, take most of a step: torch's rms_norm there is
a chain of eight element-wise operations, and its flash attention is slow in bf16. On CUDA torch's own
kernels are used.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from modeling.masks import Visibility

PLAIN_ATTENTION_BYTES = 1 << 28
"""Largest attention weights of a layer that CPU attention may hold for the sake of speed."""
FLASH_KEYS_FP32 = 192
"""From more keys on, fp32 attention without causal mask or learnt bias is as fast in torch's kernels."""
ROWS_OF_HEADS = 8
"""Heads times rows of the batch that fp32 attention on a CPU takes at once: their scores fit the cache."""


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


def attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Visibility, scale: float, dropout: float, bias: Tensor | None = None
) -> Tensor:
    """Softmax(scale · q kᵀ + bias) v over the keys that are visible, for [B, H, L, d].

    torch's flash kernels for CPUs are fast forwards and slow backwards (in bf16 several times slower than plain
    products), gain nothing from a causal mask backwards, and do not differentiate by a bias; so where there is
    a backward pass the products are written out, as long as their weights stay small.
    """
    if _written_out(q, k, visible, bias, dropout):
        return _Attention.apply(scale, visible, bias, q[None], k[None], v[None])
    learnt_bias = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    L, K = q.shape[2], k.shape[2]
    if not learnt_bias:
        mask = visible.allowed
        if bias is not None:
            bias = bias.to(q.dtype)
            if visible.causal:
                bias = bias.masked_fill(~_causal(L, K, q.device), float("-inf"))
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        causal = visible.causal and mask is None
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, is_causal=causal, scale=scale)
    scores = (q * scale) @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    allowed = _causal(L, K, q.device) if visible.causal and visible.allowed is None else visible.allowed
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).to(v.dtype)
    return (F.dropout(weights, dropout) if dropout else weights) @ v


def packed_attention(
    qkv_3BHLd: Tensor, visible: Visibility, scale: float, dropout: float, bias: Tensor | None = None
) -> Tensor:
    """`attention` of queries, keys and values from one matrix product, whose gradient is then one tensor too."""
    if _written_out(qkv_3BHLd[0], qkv_3BHLd[1], visible, bias, dropout):
        return _Attention.apply(scale, visible, bias, qkv_3BHLd)
    q, k, v = qkv_3BHLd.unbind(0)
    return attention(q, k, v, visible, scale, dropout, bias)


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _written_out(q: Tensor, k: Tensor, visible: Visibility, bias: Tensor | None, dropout: float) -> bool:
    """Whether `_Attention` is the way: training on a CPU, weights of a bearable size, no dropout on them."""
    if q.device.type != "cpu" or dropout or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    if not (q.requires_grad or k.requires_grad or (bias is not None and bias.requires_grad)):
        return False
    B, H, L, _ = q.shape
    learnt_bias = bias is not None and bias.requires_grad
    if visible.causal and k.shape[2] != L:
        return False
    if q.element_size() >= 4 and not (visible.causal or learnt_bias) and k.shape[2] > FLASH_KEYS_FP32:
        return False
    return q.element_size() * B * H * L * k.shape[2] <= PLAIN_ATTENTION_BYTES


class _Attention(torch.autograd.Function):
    """Attention whose weights are kept for the backward pass; above the diagonal of a causal one none are made.

    Works through tiles: some rows of the batch (as many as suit the cache and the matrix products), and for
    causal attention so many queries at a time, with the keys up to the last of them.

    Takes tensors [n, B, H, L, d], stacked queries, keys and values: one of all three, or one of each.
    """

    @staticmethod
    def forward(ctx: Any, scale: float, visible: Visibility, bias: Tensor | None, *packs: Tensor) -> Tensor:
        q, k, v = (x for pack in packs for x in pack.unbind(0))
        B, H, L, d = q.shape
        tiles = list(_tiles(B, H, L, k.shape[2], visible.causal, q.dtype))
        q, k, v = (x.reshape(B * H, -1, d) for x in (q * scale, k, v))
        out_BLHd = q.new_empty(B, L, H, d)
        hidden = None if visible.allowed is None else ~_four(visible.allowed)
        added = None if bias is None else _four(bias).to(q.dtype)
        weights = []
        with torch.autocast("cpu", enabled=False):
            for rows, queries, keys in tiles:
                heads = slice(rows.start * H, rows.stop * H)
                s = torch.bmm(q[heads, queries], k[heads, keys].transpose(1, 2))
                s_BHLK = s.view(-1, H, *s.shape[1:])
                if added is not None:
                    s_BHLK += _part(added, rows, queries, keys)
                if hidden is not None:
                    s_BHLK.masked_fill_(_part(hidden, rows, queries, keys), torch.finfo(s.dtype).min)
                elif visible.causal:
                    diagonal = s[:, :, queries.start :]
                    above = torch.ones(diagonal.shape[1:], dtype=torch.bool).triu(1)
                    diagonal.masked_fill_(above, float("-inf"))
                torch.softmax(s, -1, out=s)
                out_BLHd[rows, queries].transpose(1, 2).copy_(torch.bmm(s, v[heads, keys]).view(-1, H, s.shape[1], d))
                weights.append(s)
        ctx.save_for_backward(bias, q, k, v, *weights)
        ctx.scale, ctx.tiles = scale, tiles
        ctx.like = [torch.empty_like(pack, device="meta") for pack in packs]  # sizes and strides
        return out_BLHd.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        bias, q, k, v, *weights = ctx.saved_tensors
        B, H, L, d = g.shape
        g = g.reshape(B * H, L, d)
        d_packs = [q.new_empty_strided(like.shape, like.stride()) for like in ctx.like]
        dq, dk, dv = (x for pack in d_packs for x in pack.unbind(0))
        d_bias = None
        if ctx.needs_input_grad[2]:
            d_bias = torch.zeros_like(_four(bias), dtype=torch.promote_types(bias.dtype, torch.float32))
        with torch.autocast("cpu", enabled=False):
            for (rows, queries, keys), p in zip(ctx.tiles, weights, strict=True):
                heads = slice(rows.start * H, rows.stop * H)
                g_tile = g[heads, queries]
                ds = torch.bmm(g_tile, v[heads, keys].transpose(1, 2))
                ds = torch._softmax_backward_data(ds, p, -1, p.dtype)
                if d_bias is not None:
                    part = _part(d_bias, rows, queries, keys)
                    part += ds.view(-1, H, *ds.shape[1:]).sum_to_size(part.shape)
                dq_tile = torch.bmm(ds, k[heads, keys]).view(-1, H, ds.shape[1], d)
                torch.mul(dq_tile, ctx.scale, out=dq[rows, :, queries])
                dk_tile = torch.bmm(ds.transpose(1, 2), q[heads, queries])  # these queries are scaled
                dv_tile = torch.bmm(p.transpose(1, 2), g_tile)
                # The last queries come first and see all keys: that tile writes, the others add.
                for total, tile in ((dk, dk_tile), (dv, dv_tile)):
                    tile = tile.view(-1, H, *tile.shape[1:])
                    if queries.stop == L:
                        total[rows, :, keys] = tile
                    else:
                        total[rows, :, keys] += tile
        d_bias = None if d_bias is None else d_bias.view(bias.shape).to(bias.dtype)
        return None, None, d_bias, *d_packs


def _tiles(B: int, H: int, L: int, K: int, causal: bool, dtype: torch.dtype) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of batch, queries and keys. Sizes as measured: fp32 products like the cache, bf16's (AMX) bulk."""
    half = dtype.itemsize < 4
    at_once = B if half else max(1, ROWS_OF_HEADS // H)
    step = (256 if half else 128) if causal and L == K else L
    for first in range(0, B, at_once):
        for last in range(L, 0, -step):
            queries = slice(max(0, last - step), last)
            yield slice(first, min(B, first + at_once)), queries, slice(0, last if causal and L == K else K)


def _four(x: Tensor) -> Tensor:
    """What broadcasts to [B, H, L, K] with all four dimensions."""
    return x.view((1,) * (4 - x.dim()) + x.shape)


def _part(x: Tensor, rows: slice, queries: slice, keys: slice) -> Tensor:
    """A tile of what broadcasts to [B, H, L, K]."""
    parts = (rows, slice(None), queries, keys)
    return x[tuple(part if size > 1 else slice(None) for size, part in zip(x.shape, parts, strict=True))]


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
