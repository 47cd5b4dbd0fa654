"""Reads an examples artifact: any sample of any epoch in microseconds, straight from the mapped files.

Position p of a run's endless stream of samples is sample `permutation(p mod n)` of epoch `p div n`. The
permutation is computed, not stored, from (seed, epoch) (`tasks.example_order`), and masks are drawn from (seed, epoch,
index): so a reader has no state, and a run goes on exactly where it stopped, on any number of workers. With a remote
store the shards come as they are needed, and those of the next window in the background.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import BadData
from tasks.example_documents import Documents, documents_name
from tasks.example_files import ShardIndex
from tasks.example_order import WINDOW_SHARDS, Order, permuted
from tasks.example_shards import ExampleShards
from tasks.objectives import OBJECTIVES
from tasks.objectives.base import Objective, documents
from tasks.objectives.settings import Masked, parse
from tasks.vocabulary import read_vocabulary

__all__ = ["ExampleReader", "permuted"]


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
        BadData: the split has no sequences, or a file is missing, damaged or another artifact's.
    """

    def __init__(self, folder: Path, split: str, seed: int, architecture: str = "encoder") -> None:
        self.info: dict[str, Any] = read_info(folder)
        self.length: int = self.info["length_tokens"]
        self.fixed = split != "train"
        self.seed = self.info["seed"] if self.fixed else seed
        self.architecture, self.split = architecture, split
        index = ShardIndex(**self.info["shards"][split])
        self._size = index.rows
        if not self._size:
            raise BadData(f"the {split} split of the examples is empty", "raise validation_share or use more text")
        self.order = Order(index, self.seed, WINDOW_SHARDS)
        self.file = ExampleShards(folder, split, index, 2 * WINDOW_SHARDS + 1, in_order=self.fixed)
        self._near: tuple[tuple[int, int], ...] = ()  # windows of the first and last position asked for
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
        return self.at(np.arange(first, first + count, dtype=np.int64))

    def at(self, positions: np.ndarray) -> np.ndarray:
        """(epoch, index) of ascending positions of the stream, int64 [B]: int64 [B, 2]."""
        epochs, within = np.divmod(positions, self._size)
        if self.fixed:
            return np.stack([np.zeros_like(within), within], axis=1)
        index = np.empty_like(within)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1) if len(epochs) else ():
            chosen = epochs == epoch
            index[chosen] = self.order.rows(within[chosen], epoch)
        if self.file.files.remote and len(epochs):
            self._bring(tuple((int(epochs[i]), self.order.window(int(within[i]), int(epochs[i]))) for i in (0, -1)))
        return np.stack([epochs, index], axis=1)

    def row(self, epoch: int, position: int) -> int:
        """The row at a position of an epoch: `indices` of one, without arrays."""
        if not 0 <= position < self._size:
            raise IndexError(f"an epoch has positions 0 … {self._size - 1}")
        return position if self.fixed else int(self.order.rows(np.array([position]), epoch)[0])

    @cached_property
    def documents(self) -> Documents:
        """Which documents rows come from; `documents.of_row(index)`."""
        path = self.file.files.path(documents_name(self.split))
        return Documents(path, self.info["copies"][self.split])

    def _bring(self, ends: tuple[tuple[int, int], ...]) -> None:
        """Have the shards of these windows, (epoch, number), here, and those of the one after on their way."""
        if self._near == ends:
            return
        epoch, window = ends[-1]
        after = (epoch, window + 1) if window + 1 < self.order.windows else (epoch + 1, 0)
        now = [shard for epoch, window in sorted({*ends}) for shard in self.order.shards(window, epoch)]
        self.file.use(now, self.order.shards(after[1], after[0]))
        self._near = ends

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


def spread(total: int, count: int) -> np.ndarray:
    """Which `count` rows of a split of `total` stand for it: evenly over it, ascending, int64; all if it has no more.

    The first ones would be of a corpus's first file alone.
    """
    count = min(count, total)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)


def read_info(folder: Path) -> dict[str, Any]:
    """`examples.json`. Raises BadData: it is missing, or says no shards."""
    path = folder / "examples.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for index in found["shards"].values():
            ShardIndex(**index)
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadData(
            f"{path.name}: not readable, or without the index of shards ({type(error).__name__}: {error})",
            "run the stage that makes it again",
        ) from None
