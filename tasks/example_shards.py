"""All shards of a split as one table of rows, opened when they are needed, from a local folder or a remote store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import BadData
from cluster.store import ArtifactFiles
from tasks.example_files import ExampleFile, ShardIndex, shard_name


class ExampleShards:
    """Rows of a split by their number.

    Shards are mapped at their first use and stay so, at most `most_open` of them where they are fetched from a remote
    store (least recently used ones are given back to the cache).

    Args:
        in_order: shards will be read one after another: the next is fetched meanwhile.

    Raises:
        BadData: on the first use of a shard that is missing, damaged, or another artifact's; or there are more.
    """

    def __init__(self, folder: Path, split: str, index: ShardIndex, most_open: int, *, in_order: bool) -> None:
        self.split, self.index, self.most_open, self.in_order = split, index, most_open, in_order
        self.files = ArtifactFiles(folder)
        self._open: OrderedDict[int, ExampleFile] = OrderedDict()
        self._first = self._shard(0)
        if not self.files.remote and (beyond := Path(folder) / self._name(index.shards)).exists():
            raise BadData(
                f"{beyond.name}: not in the index of examples.json, which has {index.shards} shards of {split}",
                "run the stage that makes it again",
            )
        self.columns = self._first.columns

    def __len__(self) -> int:
        """Rows."""
        return self.index.rows

    def rows(self, column: str, indices: np.ndarray) -> np.ndarray:
        """Rows of a column, copied: [count, …] in the files' type. Raises IndexError."""
        if self.index.shards == 1 or not len(indices):
            return self._first.rows(column, indices)
        shard, row = np.divmod(indices, self.index.rows_per_shard)
        if len(indices) == 1 or (shard == shard[0]).all():
            return self._shard(int(shard[0])).rows(column, row)
        numbers = np.unique(shard).tolist()
        self._fetch(numbers)
        view = self._first.views[column]
        out = np.empty((len(indices), *view.shape[2:]), dtype=view.dtype)
        for each in numbers:
            chosen = np.flatnonzero(shard == each)
            out[chosen] = self._shard(each).rows(column, row[chosen])
        return out

    def dtype(self, column: str) -> np.dtype[Any]:
        """The type that the column had when it was written."""
        return self._first.dtype(column)

    def use(self, now: Sequence[int], then: Iterable[int] = ()) -> None:
        """These shards are needed now, those next: with a remote store, fetch them, and let go of the others."""
        if not self.files.remote:
            return
        then = [number for number in then if number not in now]
        keep = {*now, *then, 0}
        for number in [n for n in self._open if n not in keep]:
            del self._open[number]
        held = self.files.held
        self.files.release(held - {self._name(number) for number in keep})
        self._fetch(now)
        self.files.ahead(self._name(number) for number in then)

    def _name(self, number: int) -> str:
        return shard_name(self.split, number)

    def _fetch(self, numbers: Sequence[int]) -> None:
        if self.files.remote:
            self.files.paths(self._name(number) for number in numbers if number not in self._open)

    def _shard(self, number: int) -> ExampleFile:
        found = self._open.get(number)
        if found is None:
            if not 0 <= number < self.index.shards:
                raise IndexError(f"the {self.split} split has rows 0 … {self.index.rows - 1}")
            path = self.files.path(self._name(number))
            found = self._open[number] = ExampleFile(path, self.split, number, self.index)
            if self.in_order and number + 1 < self.index.shards:
                self.files.ahead([self._name(number + 1)])
            while self.files.remote and len(self._open) > self.most_open:
                self._let_go()
        elif self.files.remote:
            self._open.move_to_end(number)
        return found

    def _let_go(self) -> None:
        """Close the least recently used shard but the first, whose schema stands for all."""
        number = next(n for n in self._open if n)
        del self._open[number]
        self.files.release([self._name(number)])
