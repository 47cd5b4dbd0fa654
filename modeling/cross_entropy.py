"""Cross-entropy of a large vocabulary without keeping its logits.

The gradient of the logits is their softmax less one at the label: known as soon as the logits are. So a block of
rows is taken through the output matrix, the loss, and back through the matrix at once, in the forward pass, and
its logits are gone before the next block's are made. The backward pass multiplies what was gathered by the
incoming gradient. Products are those of the plain formula, in the dtype that autocast says; the softmax is taken
in fp32 or better, and the gradient of the matrix is summed over the blocks in its own dtype.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from modeling.kernels import compute_dtype

CHUNK_ROWS = 512
"""Rows whose logits are made at once, at most: few enough for the cache, enough for the matrix products."""
KEPT_BYTES = 1 << 28
"""Of logit gradients, until they become a gradient of the matrix: each such step passes over all of it."""
FAR_NATS = 80.0
"""Beyond this a float32 probability says too little of its own logarithm."""
PLAIN_BYTES_CUDA = 1 << 30
"""On a GPU the plain formula is used below this size of fp32 logits, and chunks have it: fewer, larger kernels."""


def linear_cross_entropy(
    states_NE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, labels_N: Tensor, vocab_size: int | None = None
) -> Tensor:
    """Σ over n of −log softmax(states · weightᵀ + bias)[label], in nats: a float32 (or float64) scalar.

    Args:
        states_NE: any float dtype; weight_VE, bias_V: of the output layer; labels_N: int64, none ignored.
        vocab_size: rows of the weight from here on are padding, of probability 0; None: there are none.
    """
    N, V = len(states_NE), len(weight_VE)
    small = states_NE.device.type == "cuda" and 4 * N * V <= PLAIN_BYTES_CUDA
    needs_gradient = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (states_NE, weight_VE, bias_V)
    )
    padded = vocab_size if bias_V is None and vocab_size is not None and vocab_size < V else V
    if N == 0 or small or torch.compiler.is_compiling():
        logits_NV = F.linear(states_NE, weight_VE, bias_V)
        if padded < V:
            logits_NV = logits_NV.index_fill(1, torch.arange(padded, V, device=logits_NV.device), float("-inf"))
        return F.cross_entropy(logits_NV.to(_exact(logits_NV.dtype)), labels_N, reduction="sum")
    dtype = compute_dtype(states_NE)
    if not needs_gradient:
        return _loss_only(states_NE, weight_VE, bias_V, labels_N, padded, dtype)
    return _LinearCrossEntropy.apply(states_NE, weight_VE, bias_V, labels_N, padded, dtype)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The dtype of softmax and loss."""
    return torch.promote_types(dtype, torch.float32)


def _rows(total: int, vocabulary: int, device: torch.device) -> int:
    """Rows of a chunk, all chunks but the last alike and that one hardly less: a short product is a slow one."""
    most = max(CHUNK_ROWS, PLAIN_BYTES_CUDA // (4 * vocabulary)) if device.type == "cuda" else CHUNK_ROWS
    return -(-total // -(-total // most)) if total else 1


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None, padded: int, out: Tensor | None = None) -> Tensor:
    if bias is None:
        logits = torch.mm(states, weight.t(), out=out)
        logits[:, padded:] = float("-inf")
        return logits
    return torch.addmm(bias, states, weight.t(), out=out)


def _loss_only(
    states: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, padded: int, dtype: torch.dtype
) -> Tensor:
    with torch.autocast(states.device.type, enabled=False):
        states, weight = states.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        loss = torch.zeros((), dtype=_exact(dtype), device=states.device)
        step = _rows(len(states), len(weight), states.device)
        for begin in range(0, len(states), step):
            rows = slice(begin, begin + step)
            logits = _logits(states[rows], weight, bias, padded).to(loss.dtype)
            loss += F.cross_entropy(logits, labels[rows], reduction="sum")
        return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, padded: int, dtype: torch.dtype
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        with torch.autocast(states.device.type, enabled=False):
            loss, gradients = _loss_and_gradients(states, weight, bias, labels, padded, dtype, wanted)
        ctx.present = [gradient is not None for gradient in gradients]
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        # Not in place: a second backward pass over a kept graph finds them as they were.
        return (*(next(saved) * d_loss if present else None for present in ctx.present), None, None, None)


def _loss_and_gradients(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    padded: int,
    dtype: torch.dtype,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and its gradients by states, weight and bias where `wanted`, in the dtypes of these."""
    N, V = len(states), len(weight)
    exact = _exact(dtype)
    x, w, b = states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    loss = torch.zeros((), dtype=exact, device=x.device)
    d_states = torch.empty_like(x) if wanted[0] else None
    d_weight: Tensor | None = None
    d_bias = torch.zeros(V, dtype=exact, device=x.device) if wanted[2] else None
    step = _rows(N, V, x.device)
    kept = max(step, KEPT_BYTES // (V * x.element_size()) // step * step) if wanted[1] else step
    # V is large and N is not: one buffer for the whole, or for as many rows as may be kept.
    buffer = torch.empty(min(N, kept), V, dtype=dtype, device=x.device)
    for first in range(0, N, kept):
        last = min(N, first + kept)
        for begin in range(first, last, step):
            rows = slice(begin, min(last, begin + step))
            d_logits = _logits(x[rows], w, b, padded, out=buffer[begin - first : rows.stop - first])
            losses = _softmax_less_label(d_logits, labels[rows], d_bias)
            if x.device.type == "cpu" and (far := losses > FAR_NATS).any():
                losses[far] = 0.0
                loss += _loss_only(x[rows][far], w, b, labels[rows][far], padded, dtype)
            loss += losses.sum()
            if d_states is not None:
                torch.mm(d_logits, w, out=d_states[rows])
        if wanted[1]:
            d_logits, x_rows = buffer[: last - first], x[first:last]
            if d_weight is None:
                d_weight = torch.mm(d_logits.t(), x_rows).to(weight.dtype)
            elif weight.dtype == dtype:
                d_weight.addmm_(d_logits.t(), x_rows)
            else:
                d_weight += torch.mm(d_logits.t(), x_rows)
    return loss, [
        None if d_states is None else d_states.to(states.dtype),
        d_weight,
        None if d_bias is None or bias is None else d_bias.to(bias.dtype),
    ]


def _softmax_less_label(logits_RV: Tensor, labels_R: Tensor, d_bias_V: Tensor | None) -> Tensor:
    """Logits become their gradient, in place; returns the loss [R] and adds to the bias's gradient.

    On a CPU the loss is the logarithm of a probability, and wrong beyond `FAR_NATS`. On a GPU, where asking for such
    rows would stall the queue, it is exact, for one pass more.
    """
    exact = _exact(logits_RV.dtype)
    labels = labels_R[:, None]
    if logits_RV.device.type == "cuda":
        p = torch.log_softmax(logits_RV, 1, dtype=exact)
        loss_R = -p.gather(1, labels).squeeze(1)
        p.exp_()
    else:
        out = logits_RV if logits_RV.dtype == exact else None
        p = torch.softmax(logits_RV, 1, dtype=exact, out=out)
        loss_R = -p.gather(1, labels).log().squeeze(1)
    p.scatter_add_(1, labels, torch.full_like(loss_R[:, None], -1.0))
    if d_bias_V is not None:
        d_bias_V += p.sum(0)
    if p is not logits_RV:
        logits_RV.copy_(p)
    return loss_R
