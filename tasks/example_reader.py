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
import pyarrow as pa

from cluster.errors import BadData
from tasks.objectives import OBJECTIVES
from tasks.objectives.base import Objective, Vocabulary


class ExampleReader:
    """One split of an examples artifact.

    Args:
        folder: the artifact.
        split: `train` or `validation`. Validation samples come in the file's order with the masks of epoch 0
            and the artifact's own seed: the same ones whenever and wherever they are read.
        seed: of the run: order and dynamic masks of the training split.

    Raises:
        BadData: the split has no sequences.
    """

    def __init__(self, folder: Path, split: str, seed: int) -> None:
        self.info: dict[str, Any] = json.loads((folder / "examples.json").read_text())
        self.length: int = self.info["length_tokens"]
        self.fixed = split != "train"
        self.seed = self.info["seed"] if self.fixed else seed
        self.rows_per_batch: int = self.info["rows_per_batch"]
        self._file = pa.ipc.open_file(pa.memory_map(str(folder / f"{split}.arrow")))
        self._views = [
            {name: _view(batch.column(name), self.length) for name in batch.schema.names}
            for batch in map(self._file.get_batch, range(self._file.num_record_batches))
        ]
        self._size = sum(len(next(iter(view.values()))) for view in self._views)
        if not self._size:
            raise BadData(f"the {split} split of the examples is empty", "raise validation_share or use more text")
        self.static = self.info["masking"] == "static"
        self.vocabulary = read_vocabulary(folder, self.info["special_tokens"])
        self._objective: Objective = OBJECTIVES.load(self.info["objective"])(self.vocabulary, self.info["settings"])

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
        """Rows of a stored column, copied: [count, length] in the file's type."""
        chunk, row = np.divmod(indices, self.rows_per_batch)
        if len(self._views) == 1:
            return self._views[0][column][row]
        out = np.empty((len(indices), self.length), dtype=self._views[0][column].dtype)
        for each in np.unique(chunk):
            chosen = chunk == each
            out[chosen] = self._views[each][column][row[chosen]]
        return out

    def batch(self, pairs: np.ndarray) -> dict[str, np.ndarray]:
        """The examples of (epoch, index) pairs [B, 2].

        Returns:
            input_ids, labels int64 [B, L] (-100 where no loss), attention_mask bool [B, L], and
            token_type_ids int64 [B, L] where the objective has them.
        """
        pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        if not self.static:
            return self._objective.draw(self.rows("tokens", pairs[:, 1]), self.seed, pairs[:, 0], pairs[:, 1])
        found = {name: self.rows(name, pairs[:, 1]).astype(np.int64) for name in self._views[0]}
        # [PAD] is never masked and never a label, so the written inputs still show where padding is.
        found["attention_mask"] = found["input_ids"] != self.vocabulary.pad
        return found


def read_vocabulary(folder: Path, special_tokens: dict[str, int]) -> Vocabulary:
    """The `Vocabulary` of an examples artifact."""
    with pa.memory_map(str(folder / "vocabulary.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
        special, starts = (table.column(c).to_numpy(zero_copy_only=False) for c in ("special", "starts_word"))
    return Vocabulary(len(special), special_tokens, special.astype(bool), starts.astype(bool))


def _view(column: Any, length: int) -> np.ndarray:
    return column.flatten().to_numpy(zero_copy_only=True).reshape(-1, length)


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
