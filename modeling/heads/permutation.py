"""Permutation language modelling (Yang et al. 2019, arXiv:1906.08237, sections 2.2 and 2.3).

A row's targets have an order of their own, drawn with the sample; each is predicted from the tokens that are no
targets and from the targets before it in that order, by the query stream, which does not see the token itself.

    tokens        the   cat   sat   on    mats
    ranks         −1     1    −1     0    −1       targets: "on" first, then "cat"
    "on" from     the         sat         mats
    "cat" from    the         sat   on    mats
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from modeling.architecture import TransformerConfig
from modeling.errors import ConfigError
from modeling.heads.base import IGNORE, LossSum
from modeling.heads.language import OutputLayer
from modeling.masks import Visibility, key_mask
from modeling.transformer import Transformer
from modeling.transformer_xl import QueryStream


class PermutationLanguageModel(nn.Module):
    """A two-stream trunk with logits at the targets.

    Batch: input_ids [B, L], the true tokens, also at the targets; labels [B, L], the originals at the targets,
    −100 elsewhere; ranks [B, L] int64, −1 for what all may see, else the place in the row's order; optionally
    attention_mask [B, L] (False: padding), segment_ids [B, L] (documents apart), token_type_ids [B, L].
    A token of rank 0 or more without a label is seen by those after it, as in the authors' code [SEP] and [CLS].

    Raises ConfigError where the config's positions are not transformer-xl: no other trunk has a query stream.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.positions != "transformer-xl":
            raise ConfigError(
                f"the permutation objective needs model.positions transformer-xl, found {config.positions}",
                "use a preset such as xlnet-base, or another objective",
            )
        self.config = config
        self.transformer = Transformer(config)
        self.head = OutputLayer(config)

    @classmethod
    def for_objective(cls, config: TransformerConfig, settings: Mapping[str, Any]) -> PermutationLanguageModel:
        return cls(config)

    def hidden(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The query stream's states [N, D] at the N positions with a label, and the labels [N], in order."""
        labels_BL = batch["labels"]
        targets_BL = labels_BL != IGNORE
        # What a device is asked, it is asked before the trunk runs, while it has nothing else to do.
        most = max(int(targets_BL.sum(1).max()), 1)
        where = targets_BL.flatten().nonzero().squeeze(1)
        own_N = (targets_BL.cumsum(1) - 1).flatten().index_select(0, where)  # the how many-th of its row
        own_N = where // labels_BL.shape[1] * most + own_N
        # Places of the targets, in order; rows with fewer go on with places whose states are left out below.
        places_BT = targets_BL.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        content, query = visibilities(batch)
        rows = places_BT[:, None, :, None].expand(-1, -1, -1, labels_BL.shape[1])
        states_BTD = self.transformer.encoder(
            self.transformer.tokens(batch["input_ids"]),
            Visibility(content),
            token_type_ids_BL=batch.get("token_type_ids"),
            query_stream=QueryStream(places_BT, Visibility(query.gather(2, rows))),
        )
        return states_BTD.flatten(0, 1).index_select(0, own_N), labels_BL.flatten().index_select(0, where)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., padded_vocab_size] of hidden states [..., D]."""
        return self.head(hidden, self.transformer.tokens)

    def labelled_logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [N, V] and labels [N] of the N positions with a label, in order."""
        hidden_ND, labels_N = self.hidden(batch)
        return self.logits(hidden_ND), labels_N

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        hidden_ND, labels_N = self.hidden(batch)
        return LossSum(self.head.loss(hidden_ND, self.transformer.tokens, labels_N), self.count(batch))

    def evaluate(self, batch: dict[str, Tensor], text_BL: Tensor | None = None) -> tuple[LossSum, Tensor, Tensor]:
        """`forward`, how many labelled tokens are the most probable ones, and 0: it does not predict all text."""
        hidden_ND, labels_N = self.hidden(batch)
        correct = (self.logits(hidden_ND).argmax(-1) == labels_N).sum()
        losses = LossSum(self.head.loss(hidden_ND, self.transformer.tokens, labels_N), self.count(batch))
        return losses, correct, hidden_ND.new_zeros(())

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["labels"] != IGNORE).sum()

    def predict(self, batch: dict[str, Tensor]) -> Tensor:
        """Most probable id at each labelled position, [N] int64, in order."""
        return self.labelled_logits(batch)[0].argmax(-1)


def visibilities(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Bool [B, 1, L, L] of the content stream, and of the query stream, which must not see its own token."""
    ranks_BL = batch["ranks"]
    of_query, of_key = ranks_BL[:, None, :, None], ranks_BL[:, None, None, :]
    content, query = of_key <= of_query, of_key < of_query
    hidden = key_mask(batch.get("attention_mask"))
    if hidden is not None:
        content, query = content & hidden, query & hidden
    if "segment_ids" in batch:
        document = batch["segment_ids"]
        same = document[:, None, :, None] == document[:, None, None, :]
        content, query = content & same, query & same
    return content, query
