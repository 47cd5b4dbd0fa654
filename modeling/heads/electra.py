"""ELECTRA: a small generator fills masked places, the model tells which tokens it replaced (Clark et al. 2020).

Loss = generator's MLM + 50 · discriminator, each over its own count: the masked places, and all tokens but
padding. A sampled token that equals the original counts as original. Generator and discriminator share all
embeddings; no gradient passes through the sampling. Only the discriminator is kept after training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.architecture import TransformerConfig, generator_config
from modeling.heads.base import IGNORE, LossSum, Parts
from modeling.heads.language import OutputLayer
from modeling.kernels import running_sum
from modeling.nonlinearities import activate
from modeling.transformer import Transformer, hidden_states, init_weights

DISCRIMINATOR_WEIGHT = 50.0


class Discriminator(nn.Module):
    """A trunk and, for every token, the logit of having been replaced: dense, activation, linear."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.dense, self.classifier = nn.Linear(config.width, config.width), nn.Linear(config.width, 1)
        for layer in (self.dense, self.classifier):
            init_weights(layer, config.init_std)

    @classmethod
    def for_objective(cls, config: TransformerConfig, settings: Mapping[str, Any]) -> Discriminator:
        return cls(config)

    def replaced_logits(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, L] float32; above 0: more probably replaced than not."""
        hidden_BLD = hidden_states(self.transformer, batch)
        gate = self.config.activation.replace("geglu", "gelu").replace("swiglu", "gelu")
        return self.classifier(activate(self.dense(hidden_BLD), gate)).squeeze(-1).float()


class ReplacedTokenDetection(nn.Module):
    """Generator and discriminator together.

    Batch: original_ids, input_ids (masked), labels [B, L] (originals at the masked places, −100 elsewhere),
    attention_mask [B, L], uniforms [B, L] in [0, 1): the draw of each masked place, so that what the generator
    samples is a function of the sample and the weights alone.
    """

    parts: Parts = (("generator", 1.0), ("discriminator", DISCRIMINATOR_WEIGHT))

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminator = Discriminator(config)
        self.generator = Transformer(generator_config(config))
        self.generator_head = OutputLayer(self.generator.config)
        own, shared = self.generator.encoder, self.discriminator.transformer.encoder
        self.generator.tokens = self.discriminator.transformer.tokens
        own.positions, own.token_types = shared.positions, shared.token_types

    @classmethod
    def for_objective(cls, config: TransformerConfig, settings: Mapping[str, Any]) -> ReplacedTokenDetection:
        return cls(config)

    kept_head, kept_prefix = "discriminator", "discriminator."

    @property
    def kept(self) -> Discriminator:
        """What is left after training."""
        return self.discriminator

    def generate(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(generator's loss sum, ids [B, L] with the masked places filled by its samples)."""
        labels = batch["labels"].flatten()
        where = (labels != IGNORE).nonzero().squeeze(1)
        hidden_ND = hidden_states(self.generator, batch, where)
        states_NE = self.generator_head.states(hidden_ND)
        tokens = self.generator.tokens
        loss = self.generator_head.loss_of_states(states_NE, tokens, labels.index_select(0, where))
        with torch.no_grad():
            logits_NV = F.linear(states_NE, self.generator_head.weight(tokens), self.generator_head.bias)
            cumulative_NV = running_sum(logits_NV.float().softmax(-1))
            draws_N = batch["uniforms"].flatten().index_select(0, where) * cumulative_NV[:, -1]
            sampled_N = torch.searchsorted(cumulative_NV, draws_N[:, None], right=True).squeeze(1)
            sampled_N = sampled_N.clamp(max=self.config.vocab_size - 1)
            filled = batch["original_ids"].flatten().index_copy(0, where, sampled_N)
        return loss, filled.view_as(batch["labels"])

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        generator_loss, filled_BL = self.generate(batch)
        seen = {name: batch[name] for name in ("attention_mask", "segment_ids", "position_ids") if name in batch}
        logits_BL = self.discriminator.replaced_logits({**seen, "input_ids": filled_BL})
        replaced_BL = (filled_BL != batch["original_ids"]).float()
        mask = batch.get("attention_mask")
        loss_BL = F.binary_cross_entropy_with_logits(logits_BL, replaced_BL, reduction="none")
        loss = loss_BL.sum() if mask is None else (loss_BL * mask).sum()
        return LossSum(torch.stack([generator_loss, loss]), self.count(batch))

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        labels, mask = batch["labels"], batch.get("attention_mask")
        tokens = mask.sum() if mask is not None else torch.tensor(labels.numel(), device=labels.device)
        return torch.stack([(labels != IGNORE).sum(), tokens])
