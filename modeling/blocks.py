"""What a layer is made of: norm, attention, feed-forward, and the two of them with residuals.

Queries, keys and values of self-attention come from one matrix product; what is not a matrix product is in
`modeling.kernels`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modeling.architecture import TransformerConfig
from modeling.cache import LayerCache
from modeling.kernels import attention, cross_attention, packed_attention, rms_norm, rotate
from modeling.masks import Visibility
from modeling.nonlinearities import activate, gated


def norm_layer(config: TransformerConfig, width: int = 0) -> nn.Module:
    """A norm over `width` (0: the config's width)."""
    if config.norm == "rmsnorm":
        return RMSNorm(width or config.width, eps=config.norm_eps)
    return nn.LayerNorm(width or config.width, eps=config.norm_eps)


class RMSNorm(nn.Module):
    """Normalises by the root mean square (Zhang and Sennrich 2019); its output is ready for a matrix product."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return rms_norm(x, self.weight, self.eps, dtype)


class Attention(nn.Module):
    """Multi-head attention of a sequence over itself (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.head_width, self.dropout = config.heads, config.head_width, config.dropout
        self.scale = config.head_width**-0.5 if config.attention_scale else 1.0
        inner = config.heads * config.head_width
        self.qkv = nn.Linear(config.width, 3 * inner, bias=config.bias)
        self.output = nn.Linear(inner, config.width, bias=config.bias)
        self.query_norm = RMSNorm(config.head_width, config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(config.head_width, config.norm_eps) if config.qk_norm else None

    def forward(
        self,
        x_BLD: Tensor,
        visible: Visibility,
        turn: Tensor | None = None,
        bias: Tensor | None = None,
        cache: LayerCache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """[B, L, D]; with `at` [N, D], of these places of B·L only.

        `turn`: rotary factors; `bias`: added to the scores, broadcasts to [B, H, Lq, Lk].
        """
        B, L, _ = x_BLD.shape
        qkv_3BHLd = self.qkv(x_BLD).view(B, L, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        if turn is None and cache is None and self.query_norm is None:
            out = packed_attention(qkv_3BHLd, visible, self.scale, dropout, bias)
        else:
            q, k, v = qkv_3BHLd.unbind(0)
            if self.query_norm is not None and self.key_norm is not None:
                q, k = self.query_norm(q, torch.float32), self.key_norm(k, torch.float32)
            if turn is not None:
                q, k = rotate(q, turn), rotate(k, turn)
            q, k = q.to(v.dtype), k.to(v.dtype)
            if cache is not None:
                k, v = cache.append(k, v)
            out = attention(q, k, v, visible, self.scale, dropout, bias)
        return self.output(take(out.transpose(1, 2).reshape(B, L, -1), at))


def take(x_BLD: Tensor, at: Tensor | None) -> Tensor:
    """The states [N, D] at places `at` of B·L; all of them, [B, L, D], for None."""
    return x_BLD if at is None else x_BLD.flatten(0, 1).index_select(0, at)


class CrossAttention(nn.Module):
    """A decoder's attention over the encoder's states, with its norm and residual."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.head_width, self.rate = config.heads, config.head_width, config.dropout
        self.scale = config.head_width**-0.5 if config.attention_scale else 1.0
        self.pre = config.norm_placement == "pre"
        inner = config.heads * config.head_width
        self.norm = norm_layer(config)
        self.query = nn.Linear(config.width, inner, bias=config.bias)
        self.key_value = nn.Linear(config.width, 2 * inner, bias=config.bias)
        self.output = nn.Linear(inner, config.width, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def keys_and_values(self, memory_BLD: Tensor) -> Tensor:
        """Of the encoder's states, [2, B, H, L, head size]."""
        B, L, _ = memory_BLD.shape
        return self.key_value(memory_BLD).view(B, L, 2, self.heads, self.head_width).permute(2, 0, 3, 1, 4)

    def forward(self, x_BLD: Tensor, keys_and_values: Tensor, visible: Visibility) -> Tensor:
        B, L, _ = x_BLD.shape
        q = self.query(self.norm(x_BLD) if self.pre else x_BLD).view(B, L, self.heads, self.head_width).transpose(1, 2)
        out = cross_attention(q, keys_and_values, visible, self.scale, self.rate if self.training else 0.0)
        x_BLD = x_BLD + self.dropout(self.output(out.transpose(1, 2).reshape(B, L, -1)))
        return x_BLD if self.pre else self.norm(x_BLD)


class FeedForward(nn.Module):
    """Two linear layers around an activation, or a gated one (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = config.activation
        branches = 2 if config.activation.partition("-")[0].endswith("glu") else 1
        self.input = nn.Linear(config.width, branches * config.ff_width, bias=config.bias)
        self.output = nn.Linear(config.ff_width, config.width, bias=config.bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        h = self.input(x_BLD)
        if "glu" in self.activation:
            return self.output(gated(h, self.activation))
        return self.output(activate(h, self.activation))


class Block(nn.Module):
    """Attention and feed-forward, each with a residual; the norm before (pre) or after the sum (post).

    In a decoder the attention over the encoder stands between the two; it is the caller's (`cross`), so that
    two stacks can share their blocks.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre = config.norm_placement == "pre"
        self.attention_norm, self.attention = norm_layer(config), Attention(config)
        self.ff_norm, self.ff = norm_layer(config), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BLD: Tensor,
        visible: Visibility,
        turn: Tensor | None = None,
        bias: Tensor | None = None,
        cache: LayerCache | None = None,
        cross: tuple[CrossAttention, Tensor, Visibility] | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """[B, L, D]; with `at` [N, D], of these places of B·L only.

        All that comes after attention is done at these alone: in the last block nothing else is of use.
        """
        before_cross = at if cross is None else None  # the cross attention takes rows of the batch
        read = self.attention_norm(x_BLD) if self.pre else x_BLD
        x = take(x_BLD, before_cross) + self.dropout(self.attention(read, visible, turn, bias, cache, before_cross))
        if not self.pre:
            x = self.attention_norm(x)
        if cross is not None:
            layer, keys_and_values, over = cross
            x = take(layer(x, keys_and_values, over), at)
        if self.pre:
            return x + self.dropout(self.ff(self.ff_norm(x)))
        return self.ff_norm(x + self.dropout(self.ff(x)))
