"""What an objective is: a pure function from packed tokens and (seed, epoch, index) to a training example.

The same code draws when examples are written (static masks) and when they are read (dynamic masks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tasks.objectives.settings import ObjectiveSettings

IGNORED = -100  # the label of a position without loss


@dataclass(frozen=True)
class Vocabulary:
    """What an objective needs to know of the tokenizer.

    Attributes:
        special_tokens: {role: id}; `bos` and `eos` are there for every tokenizer (where it has none of its own,
            [CLS] and [SEP], or <|endoftext|>, stand for them).
        special: bool [V], not ordinary text: never masked, never drawn.
        starts_word: bool [V], a piece that begins a word.
        tokens: [V] strings as the tokenizer spells them; empty where no objective needs them.
        sentinels: ids of <extra_id_0>, <extra_id_1>, … in this order; empty for tokenizers without.
        counts: int64 [V], how often each token stands in the training split; empty where unknown.
    """

    size: int
    special_tokens: Mapping[str, int]
    special: np.ndarray
    starts_word: np.ndarray
    tokens: tuple[str, ...] = ()
    sentinels: tuple[int, ...] = ()
    counts: np.ndarray | None = None

    @property
    def pad(self) -> int:
        """The id of padding."""
        return self.special_tokens["pad"]

    @property
    def eos(self) -> int:
        """The id that ends a text."""
        return self.special_tokens["eos"]

    @cached_property
    def ordinary(self) -> np.ndarray:
        """Ids of the ordinary tokens, ascending."""
        return np.flatnonzero(~self.special)


class Objective:
    """Base of the objectives.

    Args:
        vocabulary: of the tokenizer that made the tokens.
        settings: its section of the config.
        length_tokens: of a model input; `settings.layout(length_tokens)` says what a raw row is.

    Raises:
        BadConfig: the tokenizer lacks a special token that the objective needs.
    """

    columns: tuple[str, ...] = ("input_ids", "labels")
    """What static masking writes: keys of `draw`'s result, without attention_mask, segment_ids, position_ids."""
    shares_padding = False
    """Whether it can do with one token for padding and the end of a text, as GPT-2's release has it (`is_token`)."""

    def __init__(self, vocabulary: Vocabulary, settings: ObjectiveSettings, length_tokens: int) -> None:
        from cluster.errors import BadConfig

        self.vocabulary, self.settings, self.length_tokens = vocabulary, settings, length_tokens
        known = {**vocabulary.special_tokens, **({"sentinels": 0} if vocabulary.sentinels else {})}
        for role in settings.needs:
            if role not in known:
                raise BadConfig(
                    f"objective {settings.kind!r} needs {role if role == 'sentinels' else f'a {role} token'}, "
                    "the tokenizer has "
                    f"{', '.join(known) or 'no special tokens'}",
                    "train the tokenizer with another kind",
                )
        if not self.shares_padding and vocabulary.special_tokens.get("eos") == vocabulary.pad:
            raise BadConfig(
                f"objective {settings.kind!r}: the tokenizer has one token, {vocabulary.pad}, for padding and the end "
                "of a text, and this objective must tell them apart",
                "take a tokenizer that has a token for padding alone, or objective causal",
            )

    def is_token(self, tokens_BR: np.ndarray) -> np.ndarray:
        """bool [B, R]: not padding; where the end of a text has the same id, only those at a row's end are padding."""
        is_token = tokens_BR != self.vocabulary.pad
        if self.vocabulary.special_tokens.get("eos") == self.vocabulary.pad:
            is_token = np.logical_or.accumulate(is_token[:, ::-1], axis=1)[:, ::-1]
        return is_token

    def draw(
        self,
        tokens_BR: np.ndarray,
        seed: int,
        epochs_B: np.ndarray,
        indices_B: np.ndarray,
        facts: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Examples from raw rows.

        Args:
            tokens_BR: token ids of `settings.layout(length_tokens).tokens` each, padded at the end; any integer
                type, not changed.
            seed: of the run.
            epochs_B, indices_B: which sample each row is. With the seed they determine every random choice,
                so a row's example is the same in any batch.
            facts: for sentence pairs: `boundary` int [B], tokens of the first segment with its [CLS] and [SEP];
                `pair_label` int [B].

        Returns:
            A batch for the model: input_ids int64 [B, L], labels int64 [B, L] (−100 without loss),
            attention_mask bool [B, L], and by objective token_type_ids, pair_labels, segment_ids, position_ids …;
            or, where `settings.paired`, what `tasks.objectives.convert` takes: `inputs` int64 [B, Li] and
            `targets` int64 [B, Lt], padded at the end, with `input_segments`, `target_segments` [B, …] where
            documents are kept apart.
        """
        raise NotImplementedError


def documents(tokens_BL: np.ndarray, separator: int, separator_first: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(segment_ids, position_ids) int64 [B, L] of rows that hold several documents.

    A separator ends the document before it, or with `separator_first` begins the one after it; positions
    count from 0 in each document. The tokens of a row before its first separator are its document 0.
    """
    is_separator = tokens_BL == separator
    begins = np.zeros(tokens_BL.shape, dtype=bool)
    if separator_first:
        begins[:, 1:] = is_separator[:, 1:]
    else:
        begins[:, 1:] = is_separator[:, :-1]
    places = np.arange(tokens_BL.shape[1])
    first = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    return np.cumsum(begins, axis=1), places - first
