"""The systems before the transformer, as data: `WordVectorsConfig` (word2vec, GloVe) and `ElmoConfig`.

Apart from the modules that build them (`modeling.word_vectors`, `modeling.elmo`), so that planning a run does
not import torch. Heads read the same fields from these as from a `TransformerConfig`.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modeling.architecture import VOCABULARY_MULTIPLE
from modeling.config import Config
from modeling.errors import ConfigError


class BaselineConfig(Config):
    """What every model of a tokenizer's ids has, whatever its architecture."""

    token_types: ClassVar[int] = 0

    vocab_size: int = Field(0, ge=0, description="tokens of the tokenizer; 0 until the tokenizer is known")
    max_length: int = Field(1 << 17, ge=1, description="longest sequence, in tokens; nothing in the model limits it")
    init_std: float = Field(0.02, gt=0, description="of the layers that a downstream head adds")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding matrix: vocab_size rounded up to `VOCABULARY_MULTIPLE`."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    def with_vocabulary(self, vocab_size: int) -> Self:
        """This config for a tokenizer of `vocab_size` tokens.

        Raises ConfigError where the config names another size.
        """
        if self.vocab_size not in (0, vocab_size):
            raise ConfigError(
                f"model.vocab_size is {self.vocab_size}, but the tokenizer has {vocab_size} tokens",
                "leave model.vocab_size at 0: it is taken from the tokenizer",
            )
        return self.model_copy(update={"vocab_size": vocab_size})

    def known_vocabulary(self) -> int:
        """Rows of the embedding matrix. Raises ConfigError where the tokenizer's size is not known yet."""
        if self.vocab_size < 1:
            raise ConfigError(
                "model.vocab_size is 0: expected the tokenizer's size",
                "use config.with_vocabulary(size) before building the model",
            )
        return self.padded_vocab_size


class WordVectorsConfig(BaselineConfig):
    """One vector per token as centre and one as context: word2vec (both kinds) and GloVe.

    Published vectors have 300 dimensions. Each table is vocabulary × width numbers, with dense gradients: a
    vocabulary of 30,000 and width 300 is 18 M parameters for the two.
    """

    architecture: Literal["word-vectors"] = "word-vectors"
    width: int = Field(300, ge=1, description="D: size of a vector")


class ElmoConfig(BaselineConfig):
    """A forward and a backward LSTM language model over the same tokens (Peters et al. 2018, section 3).

    The defaults are the published model: two layers, 4,096 LSTM cells, 512-dimensional projections in each
    direction, a residual connection into the second layer, dropout 0.1. The published input layer is a character
    CNN (2,048 filters, two highway layers, projected to 512); here tokens are sub-words, which spell unknown
    words as the characters did, so a table of token embeddings of the same 512 dimensions stands for it.
    """

    architecture: Literal["bilstm"] = "bilstm"
    width: int = Field(1024, ge=2, description="D: size of a hidden state, both directions together")
    hidden: int = Field(4096, ge=1, description="cells of an LSTM, per direction")
    layers: int = Field(2, ge=1)
    residual: bool = Field(True, description="a layer's input is added to its output, from the second layer on")
    dropout: float = Field(0.1, ge=0, lt=1, description="on the inputs of the layers and before the softmax")

    @model_validator(mode="after")
    def _possible(self) -> ElmoConfig:
        if self.width % 2:
            raise ConfigError(
                f"model.width is {self.width}: expected an even number",
                f"each direction has half of it; use {self.width + 1}",
            )
        if self.hidden <= self.projection:
            raise ConfigError(
                f"model.hidden is {self.hidden}, not more than the projection of {self.projection} (half of width)",
                "an LSTM with projections has more cells than outputs: raise model.hidden or lower model.width",
            )
        return self

    @property
    def projection(self) -> int:
        """Size of a token embedding, and of one direction's output."""
        return self.width // 2

    def forward_flops_per_token(self, length_tokens: int, label_share: float) -> float:
        """Multiply-adds × 2 of one token's forward pass; the length plays no part.

        Args:
            label_share: labels / positions of one direction; the other has as many.
        """
        P, H = self.projection, self.hidden
        cell = 4 * H * 2 * P + H * P
        return 2 * 2 * (self.layers * cell + label_share * P * self.padded_vocab_size)
