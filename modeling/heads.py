"""What stands on the transformer: masked-LM, sequence classification or regression, answer spans.

Every head is a `Trainable`: `forward(batch)` returns the *sum* of the losses and how many labels it
is over, so that the loop can normalise by the count of the global batch, whatever its split into
ranks and micro-batches (docs: loss normalisation). `count(batch)` is that number without a forward pass.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.errors import ConfigError
from modeling.transformer import Transformer, TransformerConfig, init_weights, norm_layer

IGNORE = -100
"""Label of a position without loss."""
NEVER = -1e4
"""Output bias of padded vocabulary rows: their probability is exactly zero, and so is their gradient."""


class LossSum(NamedTuple):
    """Summed loss in nats and the number of labels it is over, both scalars."""

    loss_sum: Tensor
    count: Tensor


@runtime_checkable
class Trainable(Protocol):
    """What `modeling.loop.fit` trains: an nn.Module with these two methods."""

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        """Summed loss and its number of labels."""

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        """Number of labels in the batch, as forward would count it."""


class MaskedLM(nn.Module):
    """Masked language model; logits only where there is a label.

    Batch: input_ids [B, L], labels [B, L] (−100: no loss), optionally attention_mask, token_type_ids,
    position_ids. BERT's head is dense, activation, norm, then the (tied) output matrix with a bias;
    without `head_transform` it is the output matrix and the bias alone.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.transform: nn.Sequential | None = None
        if config.head_transform:
            self.transform = nn.Sequential(nn.Linear(config.width, config.width), nn.GELU(), norm_layer(config))
            init_weights(self.transform[0], config.init_std)
        self.output = None if config.tie_embeddings else nn.Linear(config.width, config.padded_vocab_size, bias=False)
        if self.output is not None:
            init_weights(self.output, config.init_std)
        bias = torch.zeros(config.padded_vocab_size)
        bias[config.vocab_size :] = NEVER
        self.output_bias = nn.Parameter(bias)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [..., padded_vocab_size] of hidden states [..., D]."""
        if self.transform is not None:
            hidden_ND = self.transform(hidden_ND)
        weight = self.transformer.tokens.weight if self.output is None else self.output.weight
        return F.linear(hidden_ND, weight, self.output_bias)

    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        return encode(self.transformer, batch)

    def masked_logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [N, V] and labels [N] of the N positions with a label, in order."""
        labels = batch["labels"].flatten()
        where = (labels != IGNORE).nonzero().squeeze(1)
        hidden_ND = self.hidden(batch).flatten(0, 1).index_select(0, where)
        return self.logits(hidden_ND), labels.index_select(0, where)

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        logits_NV, labels_N = self.masked_logits(batch)
        loss = F.cross_entropy(logits_NV.float(), labels_N, reduction="sum")
        return LossSum(loss, torch.tensor(labels_N.numel(), device=labels_N.device))

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["labels"] != IGNORE).sum()

    def predict(self, batch: dict[str, Tensor]) -> Tensor:
        """Most probable id at each labelled position, [N] int64, in order."""
        return self.masked_logits(batch)[0].argmax(-1)


class SequenceClassifier(nn.Module):
    """A label, or with num_labels=1 a number, for a whole sequence.

    Batch: as for the transformer, and labels [B]: int64 class ids (−100: no loss) or, for regression,
    floats. Pooling `mean` averages the hidden states of the attended tokens; `cls` takes the first
    token through a dense tanh layer, as BERT does.
    """

    def __init__(
        self,
        config: TransformerConfig,
        num_labels: int,
        pooling: Literal["mean", "cls"] = "mean",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_labels < 1:
            raise ConfigError(f"num_labels is {num_labels}: expected at least 1")
        self.config, self.num_labels, self.pooling = config, num_labels, pooling
        self.transformer = Transformer(config)
        self.pooler = nn.Linear(config.width, config.width) if pooling == "cls" else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.width, num_labels)
        for layer in (self.pooler, self.classifier):
            if layer is not None:
                init_weights(layer, config.init_std)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, num_labels], float32."""
        hidden_BLD = encode(self.transformer, batch)
        if self.pooler is not None:
            pooled_BD = torch.tanh(self.pooler(hidden_BLD[:, 0]))
        else:
            pooled_BD = mean_pool(hidden_BLD, batch.get("attention_mask"))
        return self.classifier(self.dropout(pooled_BD)).float()

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        logits = self.logits(batch)
        if self.num_labels == 1:
            loss = F.mse_loss(logits[:, 0], batch["labels"].float(), reduction="sum")
        else:
            loss = F.cross_entropy(logits, batch["labels"], ignore_index=IGNORE, reduction="sum")
        return LossSum(loss, self.count(batch))

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        labels = batch["labels"]
        return torch.tensor(labels.numel()) if self.num_labels == 1 else (labels != IGNORE).sum()

    def predict(self, batch: dict[str, Tensor]) -> Tensor:
        """Class ids [B] int64, or for regression numbers [B] float32."""
        logits = self.logits(batch)
        return logits[:, 0] if self.num_labels == 1 else logits.argmax(-1)


class SpanExtractor(nn.Module):
    """Start and end of the answer inside the sequence (BERT, section 4.2).

    Batch: as for the transformer, and start_positions, end_positions [B] int64 (−100: no loss);
    optionally `answer_mask` [B, L], True where an answer may start or end (the passage). The loss of a
    sequence is the mean of the two cross-entropies; a question without answer points at token 0.
    """

    def __init__(self, config: TransformerConfig, max_answer_tokens: int = 30) -> None:
        super().__init__()
        self.config, self.max_answer_tokens = config, max_answer_tokens
        self.transformer = Transformer(config)
        self.span = nn.Linear(config.width, 2)
        init_weights(self.span, config.init_std)

    def logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Start and end logits, [B, L] each, float32; −inf where no answer may be."""
        start_BL, end_BL = self.span(encode(self.transformer, batch)).float().unbind(-1)
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


def encode(transformer: Transformer, batch: dict[str, Tensor]) -> Tensor:
    """Hidden states [B, L, D] of a batch's inputs."""
    return transformer(
        batch["input_ids"], batch.get("attention_mask"), batch.get("token_type_ids"), batch.get("position_ids")
    )


def mean_pool(hidden_BLD: Tensor, attention_mask_BL: Tensor | None) -> Tensor:
    """Mean over the attended tokens, [B, D]; padding does not count."""
    if attention_mask_BL is None:
        return hidden_BLD.mean(1)
    weight_BL = attention_mask_BL.to(hidden_BLD.dtype)
    return torch.einsum("bld,bl->bd", hidden_BLD, weight_BL) / weight_BL.sum(1, keepdim=True).clamp(min=1)
