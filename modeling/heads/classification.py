"""Heads for downstream tasks: a label or a number for a sequence, an answer span inside it."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.errors import ConfigError
from modeling.heads.base import IGNORE, LossSum, Parts, last_token, mean_pool
from modeling.heads.language import OutputLayer
from modeling.transformer import hidden_states, init_weights
from modeling.trunks import check_language_model, check_pooling, make_trunk


class SequenceClassifier(nn.Module):
    """A label, or with num_labels=1 a number, for a whole sequence.

    Batch: as for the transformer, and labels [B]: int64 class ids (−100: no loss) or, for regression,
    floats. Pooling `mean` averages the hidden states of the attended tokens; `cls` takes the first
    token through a dense tanh layer, as BERT does; `last` the last attended token, as GPT does.

    A pair may come in its other order as well (`turned_input_ids`, `turned_attention_mask`, `turned_token_type_ids`):
    the vectors of both are added, as GPT does for similarity (section 3.3).

    With `lm_weight` the trunk goes on predicting the sequence's own next tokens beside the task, as GPT does (Radford
    et al. 2018, section 3.2: weight 0.5): a second part of the loss, through the trunk's own embeddings.

    Raises ConfigError where the trunk has no next token, or a language model's head of its own; and where the token
    that pooling takes knows nothing of the others.
    """

    def __init__(
        self,
        config: Any,
        num_labels: int,
        pooling: Literal["mean", "cls", "last"] = "mean",
        dropout: float = 0.0,
        lm_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if lm_weight:
            check_language_model(config)
            self.parts: Parts = (("task", 1.0), ("lm", lm_weight))
        check_pooling(config, pooling)
        self.lm_weight = lm_weight
        if num_labels < 1:
            raise ConfigError(f"num_labels is {num_labels}: expected at least 1")
        self.config, self.num_labels, self.pooling = config, num_labels, pooling
        self.transformer = make_trunk(config)
        self.pooler = nn.Linear(config.width, config.width) if pooling == "cls" else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.width, num_labels)
        for layer in (self.pooler, self.classifier):
            if layer is not None:
                init_weights(layer, config.init_std)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, num_labels], float32."""
        orders = _orders(batch)
        return self._logits([_text_states(self.transformer, order) for order in orders], orders)

    def _logits(self, hidden: list[Tensor], orders: list[dict[str, Tensor]]) -> Tensor:
        pooled = [
            self._pool(hidden_BLD, order.get("attention_mask"))
            for hidden_BLD, order in zip(hidden, orders, strict=True)
        ]
        return self.classifier(self.dropout(sum(pooled[1:], pooled[0]))).float()

    def _pool(self, hidden_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
        if self.pooler is not None:
            return torch.tanh(self.pooler(hidden_BLD[:, 0]))
        return last_token(hidden_BLD, mask_BL) if self.pooling == "last" else mean_pool(hidden_BLD, mask_BL)

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        orders = _orders(batch)
        hidden = [_text_states(self.transformer, order) for order in orders]
        logits = self._logits(hidden, orders)
        if self.num_labels == 1:
            loss = F.mse_loss(logits[:, 0], batch["labels"].float(), reduction="sum")
        else:
            loss = F.cross_entropy(logits, batch["labels"], ignore_index=IGNORE, reduction="sum")
        if self.lm_weight:
            has_next = [_has_next(order) for order in orders]
            states_ND = torch.cat([h[:, :-1][has] for h, has in zip(hidden, has_next, strict=True)])
            next_N = torch.cat([order["input_ids"][:, 1:][has] for order, has in zip(orders, has_next, strict=True)])
            head = OutputLayer(self.config)  # without weights of its own
            loss = torch.stack([loss.float(), head.loss(states_ND, self.transformer.tokens, next_N)])
        return LossSum(loss, self.count(batch))

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        labels = batch["labels"]
        count = torch.tensor(labels.numel()) if self.num_labels == 1 else (labels != IGNORE).sum()
        if not self.lm_weight:
            return count
        return torch.stack([count.to(labels.device), sum(_has_next(order).sum() for order in _orders(batch))])

    def predict(self, batch: dict[str, Tensor]) -> Tensor:
        """Class ids [B] int64, or for regression numbers [B] float32."""
        logits = self.logits(batch)
        return logits[:, 0] if self.num_labels == 1 else logits.argmax(-1)


def _orders(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """What the trunk takes: the batch, and where pairs come in both orders, that of the other."""
    turned = {name.removeprefix("turned_"): value for name, value in batch.items() if name.startswith("turned_")}
    return [batch, turned] if turned else [batch]


def _text_states(trunk: Any, batch: dict[str, Tensor]) -> Tensor:
    """Hidden states [B, L, D] of texts to be labelled.

    To a prefix LM each is a prefix, seen whole as inputs are in pretraining (Raffel et al. 2020, section 3.2.1).
    """
    if trunk.config.architecture == "prefix-lm":
        ids = batch["input_ids"]
        batch = {**batch, "prefix_mask": batch.get("attention_mask", torch.ones_like(ids, dtype=torch.bool))}
    return hidden_states(trunk, batch)


def _has_next(batch: dict[str, Tensor]) -> Tensor:
    """bool [B, L − 1]: places after which the sequence has another token."""
    mask = batch.get("attention_mask")
    ids = batch["input_ids"]
    return torch.ones_like(ids[:, 1:], dtype=torch.bool) if mask is None else mask[:, 1:].bool()


class SpanExtractor(nn.Module):
    """Start and end of the answer inside the sequence (BERT, section 4.2).

    Batch: as for the transformer, and start_positions, end_positions [B] int64 (−100: no loss);
    optionally `answer_mask` [B, L], True where an answer may start or end (the passage). The loss of a
    sequence is the mean of the two cross-entropies; a question without answer points at token 0.
    """

    def __init__(self, config: Any, max_answer_tokens: int = 30) -> None:
        super().__init__()
        self.config, self.max_answer_tokens = config, max_answer_tokens
        self.transformer = make_trunk(config)
        self.span = nn.Linear(config.width, 2)
        init_weights(self.span, config.init_std)

    def logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Start and end logits, [B, L] each, float32; −inf where no answer may be."""
        start_BL, end_BL = self.span(_text_states(self.transformer, batch)).float().unbind(-1)
        allowed = batch.get("answer_mask", batch.get("attention_mask"))
        if allowed is not None:
            start_BL = start_BL.masked_fill(~allowed.bool(), float("-inf"))
            end_BL = end_BL.masked_fill(~allowed.bool(), float("-inf"))
        return start_BL, end_BL

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        start_BL, end_BL = self.logits(batch)
        start = F.cross_entropy(start_BL, batch["start_positions"], ignore_index=IGNORE, reduction="sum")
        end = F.cross_entropy(end_BL, batch["end_positions"], ignore_index=IGNORE, reduction="sum")
        return LossSum((start + end) / 2, self.count(batch))

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["start_positions"] != IGNORE).sum()

    def predict(self, batch: dict[str, Tensor]) -> Tensor:
        """Best span with start ≤ end < start + max_answer_tokens, [B, 2] int64 (start, end), both inclusive."""
        start_BL, end_BL = self.logits(batch)
        L = start_BL.shape[1]
        score_BLL = start_BL[:, :, None] + end_BL[:, None, :]
        allowed = torch.ones(L, L, dtype=torch.bool, device=score_BLL.device).triu().tril(self.max_answer_tokens - 1)
        best = score_BLL.masked_fill(~allowed, float("-inf")).flatten(1).argmax(1)
        return torch.stack([best // L, best % L], 1)
