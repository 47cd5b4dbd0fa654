"""Norm, rotation and attention with few passes over memory.

On a CPU these small operations, not the matrix products, take most of a step: torch's rms_norm there is
a chain of eight element-wise operations, and its flash attention is slow in bf16. On CUDA torch's own
kernels are used.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.weak import WeakTensorKeyDictionary

from modeling.masks import Visibility

PLAIN_ATTENTION_BYTES = 1 << 28
"""Largest attention weights of a layer that CPU attention may hold for the sake of speed."""
FLASH_SCORES_FP32 = 192 * 192
"""Up to so many scores a head, fp32 attention is at least as fast in torch's kernels, and beyond, where it is not
causal; a learnt bias they do not take."""
CAUSAL_QUERIES_FP32, CAUSAL_QUERIES_BF16 = 128, 256
"""Queries at once of a causal row on a CPU, with the keys up to the last of them."""
SCORES_AT_ONCE_FP32 = 1 << 20
"""Scores, of all heads and some rows of the batch, that fp32 attention on a CPU makes at once: 4 MB."""


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
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # in bf16 the weight would be rounded to its 8 bits, too
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps).to(dtype)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary positions: pairs (2i, 2i + 1) of the last dimension, as complex numbers, times `turn` (complex64)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


def attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Visibility, scale: float, dropout: float, bias: Tensor | None = None
) -> Tensor:
    """Softmax(scale · q kᵀ + bias) v over the keys that are visible, for [B, H, L, d].

    torch's flash kernels for CPUs are fast forwards and slow backwards in bf16 (several times slower than plain
    products), gain nothing from a causal mask backwards, and do not differentiate by a bias; so for a backward pass
    in bf16, or through long causal rows or a learnt bias, the products are written out, as long as their weights
    stay small.
    """
    if _written_out(q, k, visible, bias, dropout):
        return _Attention.apply(scale, visible, bias, q[None], k[None], v[None])
    learnt_bias = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    L, K = q.shape[2], k.shape[2]
    blocks = q.shape[3] >= FLEX_HEAD_WIDTH and _blocks_worth_it(visible, L, K)
    if q.device.type == "cuda" and bias is None and not dropout and blocks:
        flex = _compiled_flex_attention()
        if flex is not None:
            return flex(q, k, v, block_mask=block_mask(visible, L, K), scale=scale)
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


def cross_attention(q: Tensor, kv_2BHLd: Tensor, visible: Visibility, scale: float, dropout: float) -> Tensor:
    """`attention` over keys and values from one matrix product, whose gradient is then one tensor too."""
    k, v = kv_2BHLd.unbind(0)
    if _written_out(q, k, visible, None, dropout):
        return _Attention.apply(scale, visible, None, q[None], kv_2BHLd)
    return attention(q, k, v, visible, scale, dropout)


FLEX_LENGTH = 256
"""From here on, packed rows on a GPU leave out whole blocks of scores; blocks are of 128."""
FLEX_HEAD_WIDTH = 16
"""Narrower heads flex_attention does not take."""
_block_masks: Any = WeakTensorKeyDictionary()


def _blocks_worth_it(visible: Visibility, queries: int, keys: int) -> bool:
    """Whether a mask differs from query to query (documents packed into a row), over more than a block or two."""
    return visible.allowed is not None and visible.allowed.shape[-2] == queries >= FLEX_LENGTH <= keys


def block_mask(visible: Visibility, queries: int, keys: int) -> BlockMask:
    """flex_attention's form of `visible.allowed`; made once for all layers of a step."""
    assert visible.allowed is not None
    found = _block_masks.get(visible.allowed)
    if found is None:
        allowed = _four(visible.allowed)
        several, B = allowed.shape[0] > 1, allowed.shape[0]

        def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return allowed[b if several else 0, 0, q, k]

        batch = B if several else None
        found = create_block_mask(sees, batch, None, queries, keys, device=allowed.device)
        _block_masks[visible.allowed] = found
    return found


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any] | None:
    """torch's attention over blocks, compiled; None where it does not compile or errs here, with a warning.

    Sizes may change from call to call: after the second one the compiler takes them as variables. With fixed ones it
    would compile each anew, and after eight of them write all scores out, uncompiled.
    """
    try:
        flex = torch.compile(flex_attention)
        if all(_right(flex, rows, length) for rows, length in ((1, 256), (2, 384))):
            return flex
        reason = "its results differ from those of SDPA"
    except Exception as error:  # whatever a compiler can raise
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    warnings.warn(f"packed rows use SDPA with a mask, not flex_attention: {reason}", stacklevel=2)
    return None


def _right(flex: Callable[..., Any], rows: int, length: int) -> bool:
    """Whether its results and their gradients are those of SDPA, up to bf16's rounding of values of about 1."""
    draws = torch.Generator("cuda").manual_seed(0)  # of its own: dropout's draws stay where they are
    shape = 3, rows, 2, length, 64
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cuda", enabled=False):
        qkv = torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=draws, requires_grad=True)
        document = torch.arange(length, device="cuda") // 100
        allowed = (document[:, None] == document).expand(rows, 1, -1, -1).contiguous()
        found = flex(*qkv.unbind(0), block_mask=block_mask(Visibility(allowed), length, length), scale=0.125)
        right = F.scaled_dot_product_attention(*qkv.unbind(0), allowed, scale=0.125)
        gradients = [torch.autograd.grad(each.float().square().sum(), qkv)[0] for each in (found, right)]
    return torch.allclose(found, right, atol=0.05) and torch.allclose(*gradients, atol=0.1)


def running_sum(x: Tensor) -> Tensor:
    """cumsum over the last dimension, also where deterministic kernels are asked for.

    Releases of torch differ in whether they count a GPU's among those: here it does, since rows are summed one by one.
    """
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    if not strict:
        return x.cumsum(-1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return x.cumsum(-1)
    finally:
        torch.use_deterministic_algorithms(True)


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
    if q.element_size() >= 4 and not learnt_bias and not (visible.causal and L * k.shape[2] > FLASH_SCORES_FP32):
        return False
    return q.element_size() * B * H * L * k.shape[2] <= PLAIN_ATTENTION_BYTES


class _Attention(torch.autograd.Function):
    """Attention whose weights are kept for the backward pass; above the diagonal of a causal one none are made.

    Works through tiles: some rows of the batch, and for causal attention so many queries at a time, with the
    keys up to the last of them.

    Takes tensors [n, B, H, L, d], stacked queries, keys and values: one of all three, one of the queries and one of
    the others, or one of each.
    """

    @staticmethod
    def forward(ctx: Any, scale: float, visible: Visibility, bias: Tensor | None, *packs: Tensor) -> Tensor:
        q, k, v = (x for pack in packs for x in pack.unbind(0))
        B, H, L, d = q.shape
        out_BLHd = q.new_empty(B, L, H, d)
        hidden = None if visible.allowed is None else ~_four(visible.allowed)
        added = None if bias is None else _four(bias).to(q.dtype)
        weights, tiles = [], []
        with torch.autocast("cpu", enabled=False):
            for rows in _row_tiles(q, k, visible.causal):
                q_, k_, v_ = (x[rows].reshape(-1, *x.shape[2:]) for x in (q, k, v))
                tiles += [q_, k_, v_]
                for queries, keys in _query_tiles(q, k, visible.causal):
                    s = _product(q_[:, queries], k_[:, keys].transpose(1, 2), scale)
                    s_BHLK = s.view(-1, H, *s.shape[1:])
                    if added is not None:
                        s_BHLK += _part(added, rows, queries, keys)
                    if hidden is not None:
                        s_BHLK.masked_fill_(_part(hidden, rows, queries, keys), torch.finfo(s.dtype).min)
                    elif visible.causal:
                        diagonal = s[:, :, queries.start :]
                        diagonal += _hidden_above(diagonal)
                    torch.softmax(s, -1, out=s)
                    out = torch.bmm(s, v_[:, keys])
                    out_BLHd[rows, queries].transpose(1, 2).copy_(out.view(-1, H, *out.shape[1:]))
                    weights.append(s)
        ctx.save_for_backward(bias, *tiles, *weights)
        ctx.scale, ctx.causal, ctx.tiles = scale, visible.causal, len(tiles)
        ctx.packs = [(pack.shape, pack.stride()) for pack in packs]
        return out_BLHd.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        bias, *saved = ctx.saved_tensors
        tiles, weights = iter(saved[: ctx.tiles]), iter(saved[ctx.tiles :])
        d_packs = [torch.empty_strided(shape, stride, dtype=g.dtype) for shape, stride in ctx.packs]
        dq, dk, dv = (x for pack in d_packs for x in pack.unbind(0))
        H = g.shape[1]
        d_bias = None
        if ctx.needs_input_grad[2]:
            d_bias = torch.zeros_like(_four(bias), dtype=torch.promote_types(bias.dtype, torch.float32))
        with torch.autocast("cpu", enabled=False):
            for rows in _row_tiles(dq, dk, ctx.causal):
                q_, k_, v_ = next(tiles), next(tiles), next(tiles)
                g_ = g[rows].reshape(-1, *g.shape[2:])
                dk_, dv_ = torch.empty_like(k_), torch.empty_like(v_)
                for queries, keys in _query_tiles(dq, dk, ctx.causal):
                    p = next(weights)
                    g_tile = g_[:, queries]
                    ds = torch.bmm(g_tile, v_[:, keys].transpose(1, 2))
                    torch.ops.aten._softmax_backward_data.out(ds, p, -1, p.dtype, grad_input=ds)
                    if d_bias is not None:
                        part = _part(d_bias, rows, queries, keys)
                        part += ds.view(-1, H, *ds.shape[1:]).sum_to_size(part.shape)
                    dq_tile = _product(ds, k_[:, keys], ctx.scale)
                    dq[rows, :, queries] = dq_tile.view(-1, H, *dq_tile.shape[1:])
                    # The last queries come first and see all keys: that tile writes, the others add.
                    for total, left, right in ((dk_, ds, q_[:, queries]), (dv_, p, g_tile)):
                        if queries.stop == q_.shape[1]:
                            torch.bmm(left.transpose(1, 2), right, out=total)
                        else:
                            total[:, keys] += torch.bmm(left.transpose(1, 2), right)
                dk_.mul_(ctx.scale)
                dk[rows], dv[rows] = dk_.view(dk[rows].shape), dv_.view(dv[rows].shape)
        d_bias = None if d_bias is None else d_bias.view(bias.shape).to(bias.dtype)
        return None, None, d_bias, *d_packs


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale · a b, of [N, ., .]."""
    out = a.new_empty(len(a), a.shape[1], b.shape[2])
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _row_tiles(q_BHLd: Tensor, k_BHLd: Tensor, causal: bool) -> Iterator[slice]:
    """Rows of the batch at a time: in bf16 all, in fp32 as many as stay in the cache, and not one by one, either.

    Each product ends with its threads waiting for each other, which takes long where others use the processor.
    """
    (B, H, L, _), K = q_BHLd.shape, k_BHLd.shape[2]
    at_once = B
    if q_BHLd.element_size() >= 4:
        at_once = max(1, SCORES_AT_ONCE_FP32 // (H * K * (min(L, CAUSAL_QUERIES_FP32) if causal else L)))
    return (slice(first, min(B, first + at_once)) for first in range(0, B, at_once))


def _query_tiles(q_BHLd: Tensor, k_BHLd: Tensor, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Queries and the keys that they may see: all, or in a causal row a stretch of queries, from the last one."""
    L = q_BHLd.shape[2]
    step = (CAUSAL_QUERIES_FP32 if q_BHLd.element_size() >= 4 else CAUSAL_QUERIES_BF16) if causal else L
    for last in range(L, 0, -step):
        yield slice(max(0, last - step), last), slice(0, last if causal else k_BHLd.shape[2])


def _hidden_above(scores_NLL: Tensor) -> Tensor:
    """[L, L] to add: −∞ above the diagonal. A sum takes a quarter of the time of masked_fill_."""
    L = scores_NLL.shape[1]
    return torch.full((L, L), float("-inf"), dtype=scores_NLL.dtype, device=scores_NLL.device).triu_(1)


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
