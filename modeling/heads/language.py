"""Language modelling on any trunk: token logits where there is a label, and what some objectives add.

One head for masked, causal, prefix and sequence-to-sequence language models: they differ in who may look at
whom, which is the trunk's matter, and in where labels stand, which is the batch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.blocks import norm_layer
from modeling.cross_entropy import linear_cross_entropy
from modeling.heads.base import IGNORE, NEVER, LossSum, Parts
from modeling.nonlinearities import activate
from modeling.transformer import Transformer, TransformerConfig, hidden_states, init_weights


class OutputLayer(nn.Module):
    """Hidden states to logits over the vocabulary: transform (BERT's dense, activation, norm), matrix, bias.

    The matrix is the token embedding's where `tie_embeddings`. Logits have `padded_vocab_size` columns; padded
    ones are so low that their probability is zero.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        E, V = config.token_width, config.padded_vocab_size
        self.dense = nn.Linear(config.width, E) if config.head_transform else None
        self.norm = norm_layer(config, E) if config.head_transform else None
        width = E if config.head_transform else config.width
        self.matrix = None if config.tie_embeddings else nn.Linear(width, V, bias=False)
        self.scale = config.width**-0.5 if config.head_scale else 1.0
        bias = torch.zeros(V)
        bias[config.vocab_size :] = NEVER
        self.bias = nn.Parameter(bias) if config.head_bias else None
        for layer in (self.dense, self.matrix):
            if layer is not None:
                init_weights(layer, config.init_std if config.init == "normal" else config.width**-0.5)
        if self.matrix is not None:
            with torch.no_grad():
                self.matrix.weight[config.vocab_size :].zero_()

    def states(self, hidden: Tensor) -> Tensor:
        """What the output matrix multiplies, [..., E]."""
        if self.dense is not None and self.norm is not None:
            gate = self.config.activation.replace("geglu", "gelu").replace("swiglu", "gelu")
            hidden = self.norm(activate(self.dense(hidden), gate))
        return hidden * self.scale if self.scale != 1.0 else hidden

    def weight(self, tokens: nn.Embedding) -> Tensor:
        """The output matrix, [padded_vocab_size, E]."""
        return tokens.weight if self.matrix is None else self.matrix.weight

    def forward(self, hidden: Tensor, tokens: nn.Embedding) -> Tensor:
        """Logits [..., padded_vocab_size]."""
        logits = F.linear(self.states(hidden), self.weight(tokens), self.bias)
        if self.bias is None:
            logits[..., self.config.vocab_size :] = NEVER
        return logits

    def loss(self, hidden_ND: Tensor, tokens: nn.Embedding, labels_N: Tensor) -> Tensor:
        """Σ −log p(label), a scalar."""
        return self.loss_of_states(self.states(hidden_ND), tokens, labels_N)

    def loss_of_states(self, states_NE: Tensor, tokens: nn.Embedding, labels_N: Tensor) -> Tensor:
        """`loss` of what the output matrix multiplies."""
        return linear_cross_entropy(states_NE, self.weight(tokens), self.bias, labels_N, self.config.vocab_size)


class SpanBoundary(nn.Module):
    """SpanBERT's span-boundary objective (Joshi et al. 2020, section 3.2).

    A token of a masked span from the states just outside the span and its place in it: two layers of (dense,
    GELU, layer norm), then the output matrix.
    """

    def __init__(self, config: TransformerConfig, longest: int) -> None:
        super().__init__()
        D, E = config.width, config.token_width
        self.places = nn.Embedding(longest + 1, D)
        self.first, self.first_norm = nn.Linear(3 * D, D), nn.LayerNorm(D, eps=config.norm_eps)
        self.second, self.second_norm = nn.Linear(D, E), nn.LayerNorm(E, eps=config.norm_eps)
        for layer in (self.places, self.first, self.second):
            init_weights(layer, config.init_std)

    def forward(self, left_ND: Tensor, right_ND: Tensor, place_N: Tensor) -> Tensor:
        """States [N, E] for the output matrix."""
        place_N = place_N.clamp(max=self.places.num_embeddings - 1)
        x = torch.cat([left_ND, right_ND, self.places(place_N).to(left_ND.dtype)], -1)
        x = self.first_norm(F.gelu(self.first(x)))
        return self.second_norm(F.gelu(self.second(x)))


class PairHead(nn.Module):
    """Two classes from the first token: is B next (NSP), or were they swapped (SOP). BERT's pooler, then linear."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pooler, self.classifier = nn.Linear(config.width, config.width), nn.Linear(config.width, 2)
        for layer in (self.pooler, self.classifier):
            init_weights(layer, config.init_std)

    def forward(self, hidden_BD: Tensor) -> Tensor:
        """Logits [B, 2] from the first token's states."""
        return self.classifier(torch.tanh(self.pooler(hidden_BD)))


class _Read(NamedTuple):
    """What the losses of a batch are computed from.

    Attributes:
        states_ND: of the places that a loss reads.
        row: each place's row among them, [B·L]; None: they are all places, or those with a label.
        where: places with a label, [N] of B·L; None: states_ND are theirs.
        labels_N: their labels.
        boundaries: `_boundaries` of the batch, for a head with that loss.
    """

    states_ND: Tensor
    row: Tensor | None
    where: Tensor | None
    labels_N: Tensor
    boundaries: tuple[Tensor, Tensor, Tensor] | None

    def at(self, places: Tensor) -> Tensor:
        """The states of some places of B·L."""
        return self.states_ND.index_select(0, places if self.row is None else self.row[places])

    def labelled(self) -> tuple[Tensor, Tensor]:
        """States and labels of the places with a label, in order."""
        return self.states_ND if self.where is None else self.at(self.where), self.labels_N


class LanguageModel(nn.Module):
    """A trunk with logits at the labelled positions.

    Batch: what the trunk takes, and labels [B, L] (−100: no loss) at the inputs, or at the decoder's inputs of
    an encoder-decoder. With `span_boundary` also boundary_left, boundary_right, boundary_offset [B, L] (−1, −1,
    0 outside of spans), with `pairs` pair_labels [B].
    """

    def __init__(self, config: TransformerConfig, *, pairs: bool = False, longest_span: int = 0) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.head = OutputLayer(config)
        self.boundary = SpanBoundary(config, longest_span) if longest_span else None
        self.pair = PairHead(config) if pairs else None
        names = ["tokens" if pairs or longest_span else "loss"]
        names += ["span_boundary"] * bool(longest_span) + ["pairs"] * pairs
        self.parts: Parts = tuple((name, 1.0) for name in names)

    @classmethod
    def for_objective(cls, config: TransformerConfig, settings: Mapping[str, Any]) -> LanguageModel:
        """The model that an objective's settings (`tasks.objectives.settings`) ask for."""
        # a span is counted in words there, in tokens here
        longest = 4 * int(settings["span_max"]) if settings.get("span_boundary") else 0
        return cls(config, pairs=settings.get("pairs", "none") != "none", longest_span=longest)

    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """The trunk's states [B, L, D] where labels stand."""
        return hidden_states(self.transformer, batch)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., padded_vocab_size] of hidden states [..., D]."""
        return self.head(hidden, self.transformer.tokens)

    def labelled_logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [N, V] and labels [N] of the N positions with a label, in order."""
        where, labels_N = _labels(batch["labels"])
        return self.logits(hidden_states(self.transformer, batch, where).flatten(0, -2)), labels_N

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        return LossSum(self._losses(self._read(batch), batch), self.count(batch))

    def evaluate(self, batch: dict[str, Tensor], text_BL: Tensor | None = None) -> tuple[LossSum, Tensor, Tensor]:
        """`forward`, how many labelled tokens are the most probable ones, and Σ −log p of the labels in `text_BL`."""
        read = self._read(batch)
        labelled_ND, labels_N = read.labelled()
        correct = (self.logits(labelled_ND).argmax(-1) == labels_N).sum()
        text_nats = labelled_ND.new_zeros(())
        if text_BL is not None:
            text = (text_BL.flatten()[(batch["labels"] != IGNORE).flatten()]).nonzero().squeeze(1)
            states = labelled_ND.index_select(0, text)
            text_nats = self.head.loss(states, self.transformer.tokens, labels_N.index_select(0, text))
        return LossSum(self._losses(read, batch), self.count(batch)), correct, text_nats

    def _read(self, batch: dict[str, Tensor]) -> _Read:
        """The states that a loss reads; the last block need not make the others.

        All places are looked up before the trunk runs: how many there are is asked of the device, which then has
        nothing else to do yet.
        """
        labels_BL = batch["labels"]
        where, labels_N = _labels(labels_BL)
        places = where
        boundaries = None if self.boundary is None else _boundaries(batch)
        if where is not None and (boundaries is not None or self.pair is not None):
            read_BL = labels_BL != IGNORE
            if self.pair is not None:
                read_BL[:, 0] = True
            for side in () if boundaries is None else boundaries[:2]:
                read_BL.view(-1).index_fill_(0, side, True)
            places = read_BL.flatten().nonzero().squeeze(1)
        if places is None or len(places) == labels_BL.numel():
            return _Read(hidden_states(self.transformer, batch).flatten(0, 1), None, where, labels_N, boundaries)
        states_ND = hidden_states(self.transformer, batch, places)
        if places is where:
            return _Read(states_ND, None, None, labels_N, None)
        return _Read(states_ND, read_BL.flatten().cumsum(0) - 1, where, labels_N, boundaries)

    def _losses(self, read: _Read, batch: dict[str, Tensor]) -> Tensor:
        tokens = self.transformer.tokens
        labelled_ND, labels_N = read.labelled()
        losses = [self.head.loss(labelled_ND, tokens, labels_N)]
        if self.boundary is not None and read.boundaries is not None:
            left, right, inside = read.boundaries
            place_N = batch["boundary_offset"].flatten()[inside]
            states_NE = self.boundary(read.at(left), read.at(right), place_N)
            labels_N = batch["labels"].flatten()[inside]
            losses.append(self.head.loss_of_states(states_NE, tokens, labels_N))
        if self.pair is not None:
            B, L = batch["labels"].shape
            logits_B2 = self.pair(read.at(torch.arange(B, device=labels_N.device) * L)).float()
            losses.append(F.cross_entropy(logits_B2, batch["pair_labels"], ignore_index=IGNORE, reduction="sum"))
        return torch.stack(losses) if len(losses) > 1 else losses[0]

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        counts = [(batch["labels"] != IGNORE).sum()]
        if self.boundary is not None:
            counts.append((batch["boundary_offset"] > 0).sum())
        if self.pair is not None:
            counts.append((batch["pair_labels"] != IGNORE).sum())
        return torch.stack(counts) if len(counts) > 1 else counts[0]

    def predict(self, batch: dict[str, Tensor]) -> Tensor:
        """Most probable id at each labelled position, [N] int64, in order."""
        return self.labelled_logits(batch)[0].argmax(-1)


def _labels(labels_BL: Tensor) -> tuple[Tensor | None, Tensor]:
    """Places (of B·L; None: all) and labels [N] of the positions with a label."""
    labels = labels_BL.flatten()
    where = (labels != IGNORE).nonzero().squeeze(1)
    return (None, labels) if len(where) == len(labels) else (where, labels.index_select(0, where))


def _boundaries(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Places (of B·L) before and after the span of each token in one, and of these tokens themselves, [N] each."""
    inside = batch["boundary_offset"].flatten().nonzero().squeeze(1)
    L = batch["boundary_offset"].shape[1]
    first = inside // L * L
    return first + batch["boundary_left"].flatten()[inside], first + batch["boundary_right"].flatten()[inside], inside
