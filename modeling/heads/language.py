"""Language modelling on any trunk: token logits where there is a label, and what some objectives add.

One head for masked, causal, prefix and sequence-to-sequence language models: they differ in who may look at
whom, which is the trunk's matter, and in where labels stand, which is the batch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.blocks import activate, norm_layer
from modeling.cross_entropy import linear_cross_entropy
from modeling.heads.base import IGNORE, NEVER, LossSum, Parts
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
        self.bias: Tensor
        if config.head_bias:
            self.bias = nn.Parameter(bias)
        else:
            self.register_buffer("bias", bias, persistent=False)
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
        return F.linear(self.states(hidden), self.weight(tokens), self.bias)


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

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Logits [B, 2]."""
        return self.classifier(torch.tanh(self.pooler(hidden_BLD[:, 0])))


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
        hidden_ND, labels_N = _labelled(self.hidden(batch), batch["labels"])
        return self.logits(hidden_ND), labels_N

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        return LossSum(self._losses(self.hidden(batch), batch), self.count(batch))

    def evaluate(self, batch: dict[str, Tensor]) -> tuple[LossSum, Tensor]:
        """`forward`, and how many labelled tokens are the most probable ones."""
        hidden_BLD = self.hidden(batch)
        hidden_ND, labels_N = _labelled(hidden_BLD, batch["labels"])
        correct = (self.logits(hidden_ND).argmax(-1) == labels_N).sum()
        return LossSum(self._losses(hidden_BLD, batch), self.count(batch)), correct

    def _losses(self, hidden_BLD: Tensor, batch: dict[str, Tensor]) -> Tensor:
        hidden_ND, labels_N = _labelled(hidden_BLD, batch["labels"])
        weight_VE = self.head.weight(self.transformer.tokens)
        losses = [linear_cross_entropy(self.head.states(hidden_ND), weight_VE, self.head.bias, labels_N)]
        if self.boundary is not None:
            places_N = batch["boundary_offset"].flatten()
            where = places_N.nonzero().squeeze(1)
            flat_ND, L = hidden_BLD.flatten(0, 1), hidden_BLD.shape[1]
            first = where // L * L
            left = flat_ND.index_select(0, first + batch["boundary_left"].flatten()[where])
            right = flat_ND.index_select(0, first + batch["boundary_right"].flatten()[where])
            states_NE = self.boundary(left, right, places_N[where])
            labels = batch["labels"].flatten()[where]
            losses.append(linear_cross_entropy(states_NE, weight_VE, self.head.bias, labels))
        if self.pair is not None:
            logits_B2 = self.pair(hidden_BLD).float()
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


def _labelled(hidden_BLD: Tensor, labels_BL: Tensor) -> tuple[Tensor, Tensor]:
    """States [N, D] and labels [N] of the positions with a label."""
    labels = labels_BL.flatten()
    where = (labels != IGNORE).nonzero().squeeze(1)
    hidden_ND = hidden_BLD.flatten(0, 1)
    if len(where) == len(labels):
        return hidden_ND, labels
    return hidden_ND.index_select(0, where), labels.index_select(0, where)
