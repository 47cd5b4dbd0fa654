"""Reads an examples artifact: any sample of any epoch in microseconds, straight from the mapped file.

Position p of a run's endless stream of samples is sample `permutation(p mod n)` of epoch `p div n`. The
permutation is computed, not stored, from (seed, epoch), and masks are drawn from (seed, epoch, index): so a
reader has no state, and a run goes on exactly where it stopped, on any number of workers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import BadData
from tasks.example_files import ExampleFile
from tasks.objectives import OBJECTIVES
from tasks.objectives.base import Objective, documents
from tasks.objectives.settings import Masked, parse
from tasks.vocabulary import read_vocabulary


class ExampleReader:
    """One split of an examples artifact.

    Args:
        folder: the artifact.
        split: `train` or `validation`. Validation samples come in the file's order with the masks of epoch 0
            and the artifact's own seed: the same ones whenever and wherever they are read.
        seed: of the run: order and dynamic masks of the training split.
        architecture: of the model; arranges inputs and targets of objectives that have both.

    Attributes:
        info: `examples.json`. settings: the objective's. length: tokens of a model input.
        vocabulary: with the counts of the training split.

    Raises:
        BadData: the split has no sequences.
    """

    def __init__(self, folder: Path, split: str, seed: int, architecture: str = "encoder") -> None:
        self.info: dict[str, Any] = json.loads((folder / "examples.json").read_text())
        self.length: int = self.info["length_tokens"]
        self.fixed = split != "train"
        self.seed = self.info["seed"] if self.fixed else seed
        self.architecture = architecture
        self.file = ExampleFile(folder / f"{split}.arrow", self.info["rows_per_batch"])
        self._size = len(self.file)
        if not self._size:
            raise BadData(f"the {split} split of the examples is empty", "raise validation_share or use more text")
        self.static = self.info["masking"] == "static"
        self.vocabulary = read_vocabulary(folder, self.info["special_tokens"])
        self.settings = parse(self.info["objective"])
        self._layout = self.settings.layout(self.length)
        self._objective: Objective = OBJECTIVES.load(self.settings.kind)(self.vocabulary, self.settings, self.length)

    def __len__(self) -> int:
        """Samples in an epoch."""
        return self._size

    def indices(self, first: int, count: int) -> np.ndarray:
        """(epoch, index) of the stream's positions first … first + count - 1: int64 [count, 2]."""
        positions = np.arange(first, first + count, dtype=np.int64)
        epochs, within = np.divmod(positions, self._size)
        if self.fixed:
            return np.stack([np.zeros_like(within), within], axis=1)
        index = np.empty_like(within)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1) if count else ():
            chosen = epochs == epoch
            index[chosen] = permuted(within[chosen], self._size, self.seed, epoch)
        return np.stack([epochs, index], axis=1)

    def rows(self, column: str, indices: np.ndarray) -> np.ndarray:
        """Rows of a stored column, copied: [count, …] in the file's type.

        With dynamic masking `tokens` are the raw rows, with static masking there are the objective's columns.
        """
        return self.file.rows(column, indices)

    def batch(self, pairs: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of (epoch, index) pairs [B, 2], for the architecture.

        Returns:
            input_ids, labels int64 [B, L] (-100 where no loss), attention_mask bool [B, L], and what the objective
            and the architecture have besides: see `Objective.draw` and `tasks.objectives.convert`.

        Raises:
            BadConfig: the objective draws inputs and targets, which the architecture does not take.
        """
        pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        drawn = self._written(pairs[:, 1]) if self.static else self._drawn(pairs[:, 0], pairs[:, 1])
        if not self.settings.paired:
            return drawn
        from tasks.objectives.convert import convert

        width = self.settings.joint_length(self.length)
        return convert(drawn, self.architecture, self.vocabulary, self.settings.documents_apart, width)

    def _drawn(self, epochs: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        facts = {name: self.rows(name, indices) for name in self.file.columns if name not in ("tokens", "copy")}
        return self._objective.draw(self.rows("tokens", indices), self.seed, epochs, indices, facts or None)

    def _written(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Examples as they were drawn, with what need not be stored."""
        found = {
            name: self.rows(name, indices).astype(self.file.dtype(name)) for name in self.file.columns if name != "copy"
        }
        if self.settings.paired:
            return found
        input_ids, labels = found["input_ids"], found["labels"]
        # Padding is never a label, but with random_token=any it may stand for a token.
        found["attention_mask"] = (input_ids != self.vocabulary.pad) | (labels >= 0)
        if self.settings.documents_apart:
            # Separators are never masked, but may stand for a token as padding may.
            tokens = np.where(labels >= 0, labels, input_ids) if isinstance(self.settings, Masked) else input_ids
            separator = self.vocabulary.special_tokens[self._layout.separator]
            found["segment_ids"], found["position_ids"] = documents(tokens, separator, self._layout.separator_first)
        return found


_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # splitmix64's multipliers
_ROUNDS = 6


def permuted(positions: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where each position goes in a pseudo-random permutation of range(size), without storing it.

    A balanced Feistel network over the smallest even number of bits that holds `size`; what falls outside
    walks on until it is inside (cycle walking, Black and Rogaway 2002): fewer than four steps on average.

    Args:
        positions: integers in [0, size), any shape.
        size: at least 1.
    """
    half = max(1, -(-(size - 1).bit_length() // 2))
    half_bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8")
    result = positions.astype(np.uint64).ravel()
    outside = np.arange(result.size)
    while outside.size:
        value = result[outside]
        left, right = value >> half_bits, value & mask
        for key in keys:
            mixed = right + key
            mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX[0]
            mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX[1]
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
        result[outside] = (left << half_bits) | right
        outside = outside[result[outside] >= size]
    return result.astype(np.int64).reshape(positions.shape)
