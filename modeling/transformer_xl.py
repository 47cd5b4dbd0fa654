"""XLNet's encoder: attention by relative distance, and a second stream that does not see what it predicts.

A score of query i and key j has three terms (Dai et al. 2019, arXiv:1901.02860, section 3.3; Yang et al. 2019,
arXiv:1906.08237, section 2.5), with q, k the projected states and u, v, s learnt biases of each head:

    content   (q_i + u) · k_j
    position  (q_i + v) · W_r R(i − j)           R: sinusoids of the distance, W_r of each layer
    segment   (q_i + s) · e(same or different)   only "is j in my segment" is known, not which one it is

The content stream h is a plain post-norm encoder. The query stream g (section 2.3) has the same weights, starts
from one learnt vector at the places to predict, and takes keys and values from h: it knows its place, not its
token. There is no memory of earlier rows (the paper's section 2.4): rows are independent samples here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.architecture import TransformerConfig
from modeling.blocks import FeedForward, norm_layer
from modeling.errors import ConfigError
from modeling.masks import Visibility


class QueryStream(NamedTuple):
    """Where to predict, and what may be seen from there.

    Attributes:
        places_BT: int64 positions in the row; rows with fewer targets repeat any place.
        visible: `allowed` broadcasts to [B, 1, T, L]; a place must not be visible from itself.
    """

    places_BT: Tensor
    visible: Visibility


def sinusoids(reach: int, width: int) -> Tensor:
    """R: sines, then cosines, of the distances reach, reach − 1, …, 1 − reach: float32 [2 · reach, width].

    In float32 throughout, as the released models were trained: far from 0 its rounding shows in the fifth digit.
    """
    frequencies = 1 / torch.pow(10_000, torch.arange(0, width, 2).float() / width)
    angles = torch.outer(torch.arange(reach, -reach, -1).float(), frequencies)
    return torch.cat([angles.sin(), angles.cos()], -1)


class _Shift(torch.autograd.Function):
    """[..., L, 2L] to [..., L, L] with out[i, j] = x[i, L − i + j], a view: one step less in each next row.

    Written out for its gradient: torch's own of these slices fills and copies the double-width matrix twice.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _diagonal_rows(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        dx = grad.new_zeros(*grad.shape[:-1], 2 * grad.shape[-1])
        _diagonal_rows(dx).copy_(grad)
        return dx


def _diagonal_rows(x: Tensor) -> Tensor:
    L, twice = x.shape[-2:]
    # Without the first L, rows of 2L − 1 begin where they should.
    return x.flatten(-2)[..., L:].unflatten(-1, (L, twice - 1))[..., :L]


class _Softmax(torch.autograd.Function):
    """Softmax of the sum of two scores where not hidden: one new matrix, and no mask in the gradient, which is 0 there.

    A row that is hidden whole gets equal weights.
    """

    @staticmethod
    def forward(ctx: Any, content: Tensor, position: Tensor, hidden: Tensor | None) -> Tensor:
        scores = content + position
        if hidden is not None:
            scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
        weights = torch.ops.aten._softmax(scores, -1, False)  # autocast would have it in fp32 on a GPU
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (weights,) = ctx.saved_tensors
        d_scores = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)
        return d_scores, d_scores, None


class _Unseen(NamedTuple):
    """What a mask hides, heads first, worked out once for all layers."""

    hidden: Tensor | None
    """Bool, broadcasts to [1, B, T, L]."""
    blind: Tensor | None
    """Bool [1, B, T, 1]: queries that see nothing; None: there are none."""


def _unseen(visible: Visibility) -> _Unseen:
    if visible.allowed is None:
        return _Unseen(None, None)
    hidden = ~visible.allowed.transpose(0, 1)
    blind = hidden.all(-1, keepdim=True)
    # On a GPU looking would stall the queue.
    return _Unseen(hidden, blind if blind.device.type != "cpu" or bool(blind.any()) else None)


class RelativeAttention(nn.Module):
    """Queries of either stream over the content stream's keys and values. No linear layer has a bias."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.head_width, self.rate = config.heads, config.head_width, config.dropout
        self.scale = config.head_width**-0.5 if config.attention_scale else 1.0
        inner = self.inner = config.heads * config.head_width
        # Apart, since each stream has queries: ZeRO 3 has a weight at hand while its own layer computes, not before.
        self.query = nn.Linear(config.width, inner, bias=False)
        self.key_value = nn.Linear(config.width, 2 * inner, bias=False)
        self.position = nn.Linear(config.width, inner, bias=False)
        self.output = nn.Linear(inner, config.width, bias=False)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape) * config.init_std)

        # Flat, as biases are: the optimizer decays matrices only.
        self.content_bias, self.position_bias = drawn(inner), drawn(inner)
        self.segment_bias = drawn(inner) if config.token_types else None
        self.segments = drawn(2, inner) if config.token_types else None  # same, different

    def forward(
        self,
        x_BLD: Tensor,
        distances_RD: Tensor,
        unseen: _Unseen,
        differs_BLL: Tensor | None,
        queries: tuple[Tensor, Tensor, _Unseen, Tensor | None] | None = None,
        content: bool = True,
    ) -> tuple[Tensor | None, Tensor | None]:
        """What each stream takes from the content stream: [B, L, D] and [B, T, D], after the output matrix.

        Args:
            distances_RD: `sinusoids` of reach L.
            differs_BLL: bool, query and key in different segments; None: all in one.
            queries: the query stream: states [B, T, D], places [B, T], what they do not see, their `differs` [B, T, L].
            content: False: the content stream gives keys and values only.
        """
        k_BLI, v_BLI = self.key_value(x_BLD).split(self.inner, -1)
        k_HBLd, v_HBLd, r_HRd = self._heads(k_BLI), self._heads(v_BLI), self._heads(self.position(distances_RD))
        seen = k_HBLd, v_HBLd, r_HRd
        h = g = None
        if content:
            h = self._attend(self.query(x_BLD), *seen, unseen, differs_BLL)
        if queries is not None:
            g_BTD, places_BT, g_unseen, differs_BTL = queries
            g = self._attend(self.query(g_BTD), *seen, g_unseen, differs_BTL, places_BT)
        return h, g

    def _heads(self, x: Tensor) -> Tensor:
        """[..., H · d] to [H, ..., d]."""
        return x.unflatten(-1, (self.heads, self.head_width)).movedim(-2, 0)

    def _attend(
        self,
        q_BTI: Tensor,
        k_HBLd: Tensor,
        v_HBLd: Tensor,
        r_HRd: Tensor,
        unseen: _Unseen,
        differs_BTL: Tensor | None,
        places_BT: Tensor | None = None,
    ) -> Tensor:
        """Softmax of the three terms, times the values; queries at `places_BT` (None: at 0 … L − 1)."""
        B, T, _ = q_BTI.shape
        scores = self._biased(q_BTI, self.content_bias) @ k_HBLd.transpose(-1, -2)
        # All queries of a head as one matrix: the distances' gradient then is one product as well.
        position = self._biased(q_BTI, self.position_bias).flatten(1, 2) @ r_HRd.transpose(-1, -2)
        position = position.unflatten(1, (B, T))
        if places_BT is None:
            position = _Shift.apply(position)
        else:
            L = k_HBLd.shape[2]
            columns_BTL = L - places_BT[..., None] + torch.arange(L, device=places_BT.device)
            position = position.gather(-1, columns_BTL.expand(self.heads, -1, -1, -1))
        if differs_BTL is not None and self.segments is not None and self.segment_bias is not None:
            # (q + s) · e(same) would be common to all keys of a query: softmax does not see it.
            step = self._heads((self.segments[1] - self.segments[0]).to(q_BTI.dtype))[:, None, None]
            scores = scores + (self._biased(q_BTI, self.segment_bias) * step).sum(-1, keepdim=True) * differs_BTL
        weights = _Softmax.apply(scores, position, unseen.hidden)
        if self.training and self.rate:
            weights = F.dropout(weights, self.rate)
        out_HBTd = weights.to(v_HBLd.dtype) @ v_HBLd
        if unseen.blind is not None:
            # The first of an order that has no token outside it sees nothing: softmax would have it see all.
            out_HBTd = out_HBTd.masked_fill(unseen.blind, 0.0)
        return self.output(out_HBTd.movedim(0, 2).flatten(2))

    def _biased(self, q_BTI: Tensor, bias_I: Tensor) -> Tensor:
        """Scaled queries plus a bias, [H, B, T, d]."""
        return self._heads(torch.add((bias_I * self.scale).to(q_BTI.dtype), q_BTI, alpha=self.scale))


class RelativeBlock(nn.Module):
    """Attention and feed-forward, a norm after each sum; the same weights for both streams."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention, self.attention_norm = RelativeAttention(config), norm_layer(config)
        self.ff, self.ff_norm = FeedForward(config), norm_layer(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        h_BLD: Tensor,
        distances_RD: Tensor,
        unseen: _Unseen,
        differs_BLL: Tensor | None,
        queries: tuple[Tensor, Tensor, _Unseen, Tensor | None] | None = None,
        content: bool = True,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The next states of both streams; arguments as `RelativeAttention.forward`, whose None stays None."""
        h, g = self.attention(h_BLD, distances_RD, unseen, differs_BLL, queries, content)
        h = None if h is None else self._add(h_BLD, h)
        return h, None if g is None or queries is None else self._add(queries[0], g)

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        """The stream's next states from its present ones and what attention brought it."""
        x = self.attention_norm(x + self.dropout(attended))
        return self.ff_norm(x + self.dropout(self.ff(x)))


class RelativeStack(nn.Module):
    """Embedded tokens to hidden states, of the content stream or, given places, of the query stream.

    Raises ConfigError for options that relative attention has not.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config, self.layers = config, config.layers
        self.positions = self.token_types = None  # both are relative, in the attention
        self.embedding_norm = norm_layer(config) if config.normalises_embeddings else None
        self.mask_embedding = nn.Parameter(torch.randn(config.width) * config.init_std)
        self.blocks = nn.ModuleList(RelativeBlock(config) for _ in range(1 if config.share_layers else config.layers))
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("distances", sinusoids(config.max_length, config.width), persistent=False)

    def forward(
        self,
        x_BLD: Tensor,
        visible: Visibility,
        *,
        token_type_ids_BL: Tensor | None = None,
        position_ids_BL: Tensor | None = None,
        query_stream: QueryStream | None = None,
    ) -> Tensor:
        """Hidden states [B, L, D]; with `query_stream` the states [B, T, D] at its places, and nothing else.

        Args:
            visible: who sees whom in the content stream.
            token_type_ids_BL: segments; None: all tokens in one.
            position_ids_BL: not used: inside a document, where alone they matter, distances in the row are the same.
        """
        L, reach = x_BLD.shape[1], self.config.max_length
        if reach < L:
            raise ConfigError(
                f"a sequence has {L} tokens, but model.max_length is {reach}",
                "shorten the examples or raise model.max_length",
            )
        # One draw for the batch: the distances are the same in all of its rows.
        distances_RD = self.dropout(self.distances[reach - L : reach + L])
        differs_h = differs_g = None
        if token_type_ids_BL is not None and self.config.token_types:
            differs_h = token_type_ids_BL[:, :, None] != token_type_ids_BL[:, None, :]
        unseen = _unseen(visible)
        h_BLD = self.dropout(x_BLD if self.embedding_norm is None else self.embedding_norm(x_BLD))
        if query_stream is None:
            for n in range(self.layers):
                h_BLD, _ = self.blocks[n % len(self.blocks)](h_BLD, distances_RD, unseen, differs_h)
            return self.dropout(h_BLD)

        B, T = query_stream.places_BT.shape
        g_unseen = _unseen(query_stream.visible)
        if differs_h is not None:
            differs_g = differs_h.gather(1, query_stream.places_BT[..., None].expand(-1, -1, L))
        g_BTD = self.dropout(self.mask_embedding.to(h_BLD.dtype).expand(B, T, -1))
        for n in range(self.layers):
            block = self.blocks[n % len(self.blocks)]
            # Nobody reads the content stream's last states: its queries and feed-forward are spared there.
            last = n == self.layers - 1
            queries = (g_BTD, query_stream.places_BT, g_unseen, differs_g)
            h, g_BTD = block(h_BLD, distances_RD, unseen, differs_h, queries, not last)
            h_BLD = h_BLD if last else h
        return self.dropout(g_BTD)
