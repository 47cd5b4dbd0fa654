"""What an objective is: a pure function from packed tokens and (seed, epoch, index) to a training example.

The same code draws when examples are written (static masks) and when they are read (dynamic masks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

IGNORED = -100  # the label of a position without loss


@dataclass(frozen=True)
class Vocabulary:
    """What an objective needs to know of the tokenizer.

    `special` [V] bool: not ordinary text, never masked; `starts_word` [V] bool: a piece that begins a word.
    """

    size: int
    special_tokens: Mapping[str, int]
    special: np.ndarray
    starts_word: np.ndarray

    @property
    def pad(self) -> int:
        """The id of padding."""
        return self.special_tokens["pad"]

    @property
    def ordinary(self) -> np.ndarray:
        """Ids of the ordinary tokens, ascending."""
        return np.flatnonzero(~self.special)


class Objective:
    """Base of the objectives.

    Args:
        vocabulary: of the tokenizer that made the tokens.
        settings: the objective's part of `examples.json`.

    Raises:
        BadConfig: the tokenizer lacks a special token that the objective needs.
    """

    needs: tuple[str, ...] = ("pad", "cls", "sep")
    """Special tokens without which it cannot work, by role."""
    columns: tuple[str, ...] = ("input_ids", "labels")
    """What `draw` gives besides attention_mask."""

    def __init__(self, vocabulary: Vocabulary, settings: Mapping[str, Any]) -> None:
        from cluster.errors import BadConfig

        self.vocabulary = vocabulary
        for role in self.needs:
            if role not in vocabulary.special_tokens:
                raise BadConfig(
                    f"objective: {type(self).__name__} needs a {role} token, the tokenizer has "
                    f"{', '.join(vocabulary.special_tokens) or 'no special tokens'}",
                    "train the tokenizer with another kind",
                )

    def draw(
        self, tokens_BL: np.ndarray, seed: int, epochs_B: np.ndarray, indices_B: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Examples from packed sequences.

        Args:
            tokens_BL: token ids, padded at the end; any integer type, not changed.
            seed: of the run.
            epochs_B, indices_B: which sample each row is. With the seed they determine every random choice,
                so a row's example is the same in any batch.

        Returns:
            input_ids int64 [B, L], labels int64 [B, L] (-100 without loss), and what else the model takes.
        """
        raise NotImplementedError
