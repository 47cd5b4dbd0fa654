"""Activations, gated ones included, with few passes over memory.

torch computes GELU's tanh form with a tanh that takes longer than all the rest, once forwards and once more
backwards. Here it is its equal x · σ(x (a + b x²)), which torch's faster sigmoid serves, and σ is kept for the
backward pass. Element-wise operations go through some rows at a time, so that all but the first find them in the
cache. This is for fp32 on a CPU: bf16 would round after every operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CACHED_BYTES = 1 << 18
"""Of one operand of the element-wise operations, which have up to six."""
_A = 2 * math.sqrt(2 / math.pi)
_B = 0.044715 * _A


def activate(x: Tensor, name: str) -> Tensor:
    """The activation of that name; for a gated one that of its gate. `-tanh` is GELU's tanh form (GPT-2, T5 1.1)."""
    if name == "relu":
        return F.relu(x)
    if name == "swiglu":
        return F.silu(x)
    if not name.endswith("-tanh"):
        return F.gelu(x)
    if _exact_on_cpu(x) and x.requires_grad and torch.is_grad_enabled():
        return _TanhGELU.apply(x)
    return F.gelu(x, approximate="tanh")


def gated(h: Tensor, name: str) -> Tensor:
    """activation(first half) · second half of the last dimension (Shazeer 2020, arXiv:2002.05202)."""
    if _exact_on_cpu(h) and name == "geglu-tanh":
        return _TanhGEGLU.apply(h)
    if h.device.type == "cpu" and not torch.compiler.is_compiling():
        return _Gated.apply(h, name)
    gate, value = h.chunk(2, -1)
    return activate(gate, name) * value


def _exact_on_cpu(x: Tensor) -> bool:
    """Whether element-wise operations on x are fp32 or better, and eager ones on a CPU."""
    return x.device.type == "cpu" and x.element_size() >= 4 and not torch.compiler.is_compiling()


def _pieces(x_ND: Tensor) -> Iterator[slice]:
    """Rows at a time, as many as fit into `CACHED_BYTES`."""
    step = max(1, CACHED_BYTES // max(1, x_ND.shape[1] * x_ND.element_size()))
    return (slice(first, min(first + step, len(x_ND))) for first in range(0, len(x_ND), step))


def _sigmoid(x: Tensor, a: Tensor, out: Tensor) -> None:
    """σ(x (a + b x²)) = (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2."""
    torch.mul(x, x, out=out)
    torch.add(a, out, alpha=_B, out=out).mul_(x).sigmoid_()


class _TanhGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        a, sigmoid, out = x.new_tensor(_A), x_ND.new_empty(x_ND.shape), x_ND.new_empty(x_ND.shape)
        for rows in _pieces(x_ND):
            _sigmoid(x_ND[rows], a, sigmoid[rows])
            torch.mul(x_ND[rows], sigmoid[rows], out=out[rows])
        ctx.save_for_backward(x_ND, sigmoid)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x_ND, sigmoid = ctx.saved_tensors
        g_ND, a, d_x = g.reshape(x_ND.shape), x_ND.new_tensor(_A), x_ND.new_empty(x_ND.shape)
        for rows in _pieces(x_ND):
            x, s, d = x_ND[rows], sigmoid[rows], d_x[rows]
            # σ (1 + (1 − σ) x (a + 3b x²))
            torch.mul(x, x, out=d)
            torch.add(a, d, alpha=3 * _B, out=d).mul_(x)
            torch.addcmul(d, d, s, value=-1, out=d)
            torch.addcmul(s, s, d, out=d).mul_(g_ND[rows])
        return d_x.view(g.shape)


class _TanhGEGLU(torch.autograd.Function):
    """As `_Gated`."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        h_ND = h.reshape(-1, h.shape[-1])
        gate_ND, value_ND = h_ND.chunk(2, -1)
        a, sigmoid, out = h.new_tensor(_A), h.new_empty(gate_ND.shape), h.new_empty(gate_ND.shape)
        for rows in _pieces(gate_ND):
            _sigmoid(gate_ND[rows], a, sigmoid[rows])
            torch.mul(gate_ND[rows], sigmoid[rows], out=out[rows]).mul_(value_ND[rows])
        ctx.save_for_backward(h_ND, sigmoid)
        return out.view(*h.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        h_ND, sigmoid = ctx.saved_tensors
        g_ND, a, d_h = g.reshape(sigmoid.shape), h_ND.new_tensor(_A), h_ND.new_empty(h_ND.shape)
        (gate_ND, value_ND), (d_gate, d_value) = h_ND.chunk(2, -1), d_h.chunk(2, -1)
        activated, slope = None, None
        for rows in _pieces(gate_ND):
            x, s, g_ = gate_ND[rows], sigmoid[rows], g_ND[rows]
            if activated is None or slope is None or len(activated) != len(x):
                activated, slope = torch.empty_like(s), torch.empty_like(s)
            torch.mul(x, s, out=activated)
            torch.mul(g_, activated, out=d_value[rows])
            # σ + x σ (1 − σ) (a + 3b x²)
            torch.mul(x, x, out=slope)
            torch.add(a, slope, alpha=3 * _B, out=slope)
            torch.addcmul(activated, activated, s, value=-1, out=activated)
            torch.addcmul(s, activated, slope, out=slope).mul_(g_)
            torch.mul(slope, value_ND[rows], out=d_gate[rows])
        return d_h.view(*g.shape[:-1], -1)


class _Gated(torch.autograd.Function):
    """Both halves' gradients are written where they belong: autograd would make two tensors and join them."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, name: str) -> Tensor:
        gate, value = h.chunk(2, -1)
        activated = activate(gate, name)
        ctx.save_for_backward(h, activated)
        ctx.name = name
        return activated * value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        h, activated = ctx.saved_tensors
        gate, value = h.chunk(2, -1)
        d_h = torch.empty_like(h)
        d_gate, d_value = d_h.chunk(2, -1)
        torch.mul(g, activated, out=d_value)
        if ctx.name == "swiglu":
            torch.ops.aten.silu_backward.grad_input(g * value, gate, grad_input=d_gate)
        else:
            form = "tanh" if ctx.name.endswith("-tanh") else "none"
            torch.ops.aten.gelu_backward.grad_input(g * value, gate, approximate=form, grad_input=d_gate)
        return d_h, None
