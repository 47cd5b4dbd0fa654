"""word2vec (skip-gram, CBOW) and GloVe: one vector per token, learnt from the words around.

Each has two tables of vectors, `tokens` and `contexts`. Downstream word2vec keeps the first (Mikolov et al. 2013),
GloVe their sum (Pennington et al. 2014, section 4.2): see `FeatureTrunk`.

The gradients of the tables are dense, as DeepSpeed's optimizers take them. Weight decay would pull the vectors of
words that do not occur in a batch towards zero: train with weight_decay 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.baseline_configs import WordVectorsConfig
from modeling.errors import ConfigError
from modeling.heads.base import LossSum


class WordVectors(nn.Module):
    """What skip-gram and CBOW share: two tables, and the choice between them.

    Batch (`tasks.objectives.word_windows`): input_ids [B, L], window bool [B, L, 2W + 1] (offset −W … W holds a
    context word of the centre), negatives [B, L, K].
    """

    def __init__(self, config: WordVectorsConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens, self.contexts = _tables(config)
        nn.init.zeros_(self.contexts.weight)  # as in the authors' code: every σ begins at 1/2

    @staticmethod
    def for_objective(config: WordVectorsConfig, settings: Mapping[str, Any]) -> WordVectors:
        """The model of an objective's settings: their `kind` is skip-gram or cbow."""
        return {"skip-gram": SkipGram, "cbow": ContinuousBagOfWords}[settings["kind"]](config)

    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """The vectors of input_ids, [B, L, D]."""
        return self.tokens(batch["input_ids"])


class SkipGram(WordVectors):
    """Skip-gram with negative sampling (Mikolov et al. 2013, arXiv:1310.4546, equation 4).

    The loss of a pair is −log σ(u·v) − Σ_k log σ(−u_k·v), summed over the pairs of a window. As in the authors'
    code v is the vector (`tokens`) of the word in the window, u the one (`contexts`) of the centre, and u_k of its
    noise words; over a text it is the same as the other way round, since windows are symmetric. The count is
    that of the pairs.
    """

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        centres_BL, window_BLO, negatives_BLK = batch["input_ids"], batch["window"], batch["negatives"]
        B, L, offsets = window_BLO.shape
        S = _block_size(offsets)
        targets_BLTD = self.contexts(torch.cat([centres_BL[..., None], negatives_BLK], -1))
        T, D = targets_BLTD.shape[2:]
        around_NCD = _blocks(self.hidden(batch), S, offsets)
        N, C, _ = around_NCD.shape
        targets_NXD = F.pad(targets_BLTD, (0, 0, 0, 0, 0, -L % S)).reshape(N, S * T, D)
        # Every target of a block with every word around the block, of which the windows are a band.
        scores_NXC = torch.bmm(targets_NXD, around_NCD.transpose(1, 2)).contiguous()
        scores_NSTO = scores_NXC.as_strided((N, S, T, offsets), (S * T * C, T * C + 1, C, 1))
        scores_BLTO = scores_NSTO.reshape(B, -1, T, offsets)[:, :L].float()
        loss_BLO = F.softplus(-scores_BLTO[:, :, 0])
        counted_BLK = _counted(centres_BL, negatives_BLK)
        loss_BLO = loss_BLO + (F.softplus(scores_BLTO[:, :, 1:]) * counted_BLK[..., None]).sum(2)
        return LossSum((loss_BLO * window_BLO).sum(), self.count(batch))

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["window"].sum()


class ContinuousBagOfWords(WordVectors):
    """CBOW with negative sampling: the mean of the window's vectors predicts the centre (arXiv:1301.3781, 3.1).

    The authors' code gives each word of a window the whole gradient of their mean, where each is due its share;
    here it gets its share (İrsoy et al. 2020, arXiv:2012.15332: as good as skip-gram then).

    The count is that of the centres with a word around.
    """

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        centres_BL, window_BLO, negatives_BLK = batch["input_ids"], batch["window"], batch["negatives"]
        B, L, offsets = window_BLO.shape
        S = _block_size(offsets)
        around_NCD = _blocks(self.hidden(batch), S, offsets)
        N, C, D = around_NCD.shape
        share_BLO = window_BLO.to(around_NCD.dtype)
        share_BLO = share_BLO / share_BLO.sum(-1, keepdim=True).clamp(min=1)
        share_NSO = F.pad(share_BLO, (0, 0, 0, -L % S)).view(N, S, offsets)
        share_NSC = share_NSO.new_zeros(N, S, C)
        share_NSC.as_strided((N, S, offsets), (S * C, C + 1, 1)).copy_(share_NSO)
        mean_BLD = torch.bmm(share_NSC, around_NCD).reshape(B, -1, D)[:, :L]

        targets_BLTD = self.contexts(torch.cat([centres_BL[..., None], negatives_BLK], -1))
        scores_BLT = torch.matmul(targets_BLTD, mean_BLD.to(targets_BLTD.dtype)[..., None])[..., 0].float()
        loss_BL = F.softplus(-scores_BLT[..., 0])
        loss_BL = loss_BL + (F.softplus(scores_BLT[..., 1:]) * _counted(centres_BL, negatives_BLK)).sum(-1)
        return LossSum((loss_BL * window_BLO.any(-1)).sum(), self.count(batch))

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["window"].any(-1).sum()


class GloVe(nn.Module):
    """Global vectors (Pennington et al. 2014, equation 8): Σ f(X_ij) (w_i·w̃_j + b_i + b̃_j − log X_ij)².

    Batch (`tasks.objectives.cooccurrence`): input_ids, context_ids int64 [B, L], log_counts and weights float
    [B, L] (log X and f(X); 0 at padding), attention_mask [B, L]. The count is that of the pairs with a count.
    """

    def __init__(self, config: WordVectorsConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens, self.contexts = _tables(config)
        self.token_bias = nn.Parameter(torch.zeros(config.padded_vocab_size))
        self.context_bias = nn.Parameter(torch.zeros(config.padded_vocab_size))

    @classmethod
    def for_objective(cls, config: WordVectorsConfig, settings: Mapping[str, Any]) -> GloVe:
        return cls(config)

    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """w + w̃ of input_ids, [B, L, D]."""
        return self.tokens(batch["input_ids"]) + self.contexts(batch["input_ids"])

    def forward(self, batch: dict[str, Tensor]) -> LossSum:
        centres_BL, contexts_BL = batch["input_ids"], batch["context_ids"]
        # Products of few numbers each: nothing for tensor cores, and 16 bits are too few for a log count.
        with torch.autocast(centres_BL.device.type, enabled=False):
            scores_BL = (self.tokens(centres_BL) * self.contexts(contexts_BL)).sum(-1)
            biases_BL = _look_up(self.token_bias, centres_BL) + _look_up(self.context_bias, contexts_BL)
            error_BL = scores_BL + biases_BL - batch["log_counts"]
            return LossSum((batch["weights"] * error_BL.square()).sum(), self.count(batch))

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["attention_mask"].sum()


class FeatureTrunk(nn.Module):
    """Trained word vectors in the transformer's place, for a head to stand on; they do not train further.

    Called as `modeling.transformer.Transformer` is; only the ids matter.
    """

    def __init__(self, config: WordVectorsConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.known_vocabulary(), config.width)
        self.tokens.weight.requires_grad_(False)

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Take the vectors out of the state dict of a `SkipGram`, `ContinuousBagOfWords` or `GloVe`.

        Raises ConfigError where it is none of these, or of another shape.
        """
        vectors = weights.get("tokens.weight")
        if vectors is not None and "token_bias" in weights:  # GloVe's
            vectors = vectors + weights["contexts.weight"]
        expected = tuple(self.tokens.weight.shape)
        if vectors is None or tuple(vectors.shape) != expected:
            found = "nothing" if vectors is None else tuple(vectors.shape)
            raise ConfigError(f"tokens.weight is {found}, the model expects {expected}", "give it a word-vectors model")
        with torch.no_grad():
            self.tokens.weight.copy_(vectors)

    def forward(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        token_type_ids_BL: Tensor | None = None,
        position_ids_BL: Tensor | None = None,
        *,
        segment_ids_BL: Tensor | None = None,
    ) -> Tensor:
        """The tokens' vectors, [B, L, D]."""
        return self.tokens(input_ids_BL)


def _tables(config: WordVectorsConfig) -> tuple[nn.Embedding, nn.Embedding]:
    """Vectors uniform in ±0.5 / width, as in the authors' code of both."""
    rows, half = config.known_vocabulary(), 0.5 / config.width
    tables = nn.Embedding(rows, config.width), nn.Embedding(rows, config.width)
    for table in tables:
        nn.init.uniform_(table.weight, -half, half)
    return tables


def _look_up(vector_V: Tensor, ids: Tensor) -> Tensor:
    """Entries of a vector; by way of an embedding, whose gradient is summed in a fixed order also on a GPU."""
    return F.embedding(ids, vector_V[:, None])[..., 0]


def _counted(centres_BL: Tensor, negatives_BLK: Tensor) -> Tensor:
    """Noise words that differ from their centre, bool [B, L, K]."""
    return negatives_BLK != centres_BL[..., None]


def _block_size(offsets: int) -> int:
    """Centres in a block. With as many as a window has words half of a block's products are used; never few."""
    return max(16, offsets - 1)


def _blocks(vectors_BLD: Tensor, size: int, offsets: int) -> Tensor:
    """Vectors around each block of `size` positions, zeros beyond the row: [B · blocks, size + offsets − 1, D]."""
    L, D = vectors_BLD.shape[1:]
    half = offsets // 2
    padded = F.pad(vectors_BLD, (0, 0, half, half + -L % size))
    return padded.unfold(1, size + offsets - 1, size).transpose(2, 3).reshape(-1, size + offsets - 1, D)
