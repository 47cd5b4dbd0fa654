"""Shards of examples: Arrow IPC files of number columns, the same shape in every row, memory-mapped when read.

    train-00000.arrow train-00001.arrow …      rows_per_shard rows each, the last one what is left

A shard has at most `SHARD_BYTES`; `examples.json` has the index (`ShardIndex`), so row i lies in shard
i div rows_per_shard. Each shard's own metadata say which split, number and artifact it belongs to.

A column of rows is a fixed-size list, a column of single numbers is one. The stored type is the smallest that holds
what a column is for: ids in 16 bits where the vocabulary allows, labels and other numbers that may be negative in 32,
floats in 32. The field's metadata say what the reader gives: its type (`int64`, `bool`, `float32`) and shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cluster.errors import BadData

SHARD_BYTES = 256 << 20  # of a shard's rows, at most
PATTERN = "*-[0-9][0-9][0-9][0-9][0-9].arrow"

Columns = Mapping[str, np.ndarray]

_REMEDY = "run the stage that makes it again: `triptych run … --force STAGE`"


def shard_name(split: str, number: int) -> str:
    """The file name of a split's shard."""
    return f"{split}-{number:05d}.arrow"


class ShardIndex(NamedTuple):
    """Where a split's rows lie: `examples.json` has it under `shards`.

    rows: of the split. rows_per_shard: of every shard but the last. origin: names the artifact, as its shards do.
    """

    rows: int
    rows_per_shard: int
    origin: str

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.rows // self.rows_per_shard)

    def rows_of(self, shard: int) -> int:
        """Rows of a shard."""
        return min(self.rows_per_shard, self.rows - shard * self.rows_per_shard)


class ExampleWriter:
    """Writes a split's rows in shards; the first columns given set the types.

    Args:
        folder: where the shards go, as `shard_name` says.
        rows_per_batch: of every record batch, at most.
        id_dtype: of ids: uint16 or uint32.
        origin: names the artifact in each shard, so that another one's is noticed.
    """

    def __init__(
        self, folder: Path, split: str, rows_per_batch: int, vocab_size: int, id_dtype: Any, origin: str = ""
    ) -> None:
        self.folder, self.split, self.origin = folder, split, origin
        self.vocab_size, self.id_dtype = vocab_size, id_dtype
        self.rows_per_batch, self.rows_per_shard = rows_per_batch, rows_per_batch
        self.rows = 0
        self._held: list[Columns] = []
        self._held_rows = 0
        self._written = 0
        self._schema: pa.Schema | None = None
        self._file: Any = None

    def add(self, columns: Columns) -> None:
        """Append rows: {name: [N, …]}; the same names, types and widths each time."""
        count = len(next(iter(columns.values())))
        if not count:
            return
        if self._schema is None:
            self._plan(columns)
        self._held.append(columns)
        self._held_rows += count
        self.rows += count
        if self._held_rows >= self.rows_per_batch:
            self._flush(whole_batches=True)

    def close(self) -> ShardIndex:
        """Write what is held, finish the last file; what `examples.json` needs to know."""
        if self._held_rows:
            self._flush(whole_batches=False)
        if self._file is not None:
            self._file.close()
        return ShardIndex(self.rows, self.rows_per_shard, self.origin)

    def _plan(self, columns: Columns) -> None:
        """The schema, and how many rows a batch and a shard have."""
        fields, row_bytes = [], 0
        for name, column in columns.items():
            dtype = np.dtype(self._stored(name, column))
            kind, width = pa.from_numpy_dtype(dtype), int(np.prod(column.shape[1:]))
            facts = {"dtype": column.dtype.name, "shape": ",".join(map(str, column.shape[1:]))}
            fields.append(pa.field(name, pa.list_(kind, width) if column.ndim > 1 else kind, metadata=facts))
            row_bytes += dtype.itemsize * width
        self._schema = pa.schema(fields)
        most = max(1, SHARD_BYTES // row_bytes)
        self.rows_per_batch = min(self.rows_per_batch, most)
        self.rows_per_shard = most // self.rows_per_batch * self.rows_per_batch

    def _stored(self, name: str, column: np.ndarray) -> Any:
        """The type of a column in the file."""
        if column.dtype == bool:
            return np.uint8
        if column.dtype.kind == "f":
            return np.float32
        if column.dtype.itemsize <= 4:
            return column.dtype
        # A label needs a value for "no loss"; with 65,536 tokens there would be none left in 16 bits.
        is_id = "label" not in name and column.size and column.min() >= 0 and column.max() < self.vocab_size
        return self.id_dtype if is_id else np.int32

    def _flush(self, whole_batches: bool) -> None:
        """Write the batches that are full, or all that is held."""
        assert self._schema is not None
        held = self._held
        joined = held[0] if len(held) == 1 else {n: np.concatenate([h[n] for h in held]) for n in self._schema.names}
        step, first = self.rows_per_batch, 0
        while self._held_rows - first >= (step if whole_batches else 1):
            count = min(step, self._held_rows - first)
            self._write({name: column[first : first + count] for name, column in joined.items()}, count)
            first += count
        # Copied, so that a few rows do not keep the whole piece that they came with.
        self._held = [{name: column[first:].copy() for name, column in joined.items()}] if whole_batches else []
        self._held_rows -= first

    def _write(self, columns: Columns, count: int) -> None:
        """A record batch, into the shard where its rows belong."""
        assert self._schema is not None
        number, within = divmod(self._written, self.rows_per_shard)
        if not within:
            if self._file is not None:
                self._file.close()
            facts = {"origin": self.origin, "split": self.split, "shard": str(number)}
            path = self.folder / shard_name(self.split, number)
            self._file = pa.ipc.new_file(str(path), self._schema.with_metadata(facts))
        arrays = []
        for field in self._schema:
            listed = pa.types.is_fixed_size_list(field.type)
            dtype = np.dtype((field.type.value_type if listed else field.type).to_pandas_dtype())
            values = columns[field.name].reshape(-1)
            if dtype.kind in "iu" and values.dtype not in (dtype, bool) and values.size:
                bounds = np.iinfo(dtype)
                if values.min() < bounds.min or values.max() > bounds.max:
                    raise OverflowError(f"column {field.name} has {values.min()} … {values.max()}, stored as {dtype}")
            flat = pa.array(values.astype(dtype, copy=False))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type) if listed else flat)
        self._file.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._written += count


class ExampleFile:
    """A shard: any rows of any column without reading the others.

    Args:
        path: of the file. split, number, index: what it must be; not compared where no index is given.

    Attributes:
        columns: their names. views: {column: zero-copy array [full record batches, rows of a batch, …]}.
        tails: {column: zero-copy array [N, …]}, the rows after these.

    Raises:
        BadData: the file is missing, cut off, no Arrow file, of another artifact or place, or not as the index says.
    """

    def __init__(self, path: Path, split: str = "", number: int = 0, index: ShardIndex | None = None) -> None:
        self.name = path.name
        if not path.is_file():
            raise BadData(f"{path.name}: missing from the examples", _REMEDY)
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
            self._batches = [self._file.get_batch(i) for i in range(self._file.num_record_batches)]
        except (OSError, pa.ArrowInvalid) as error:
            raise BadData(f"{path.name}: not readable, cut off or no Arrow file ({error})", _REMEDY) from None
        sizes = [batch.num_rows for batch in self._batches]
        self._size = sum(sizes)
        if index is not None:
            self._check(split, number, index)
        self.rows_per_batch = sizes[0] if sizes else 1
        if any(size != self.rows_per_batch for size in sizes[:-1]) or (sizes and sizes[-1] > self.rows_per_batch):
            raise BadData(f"{path.name}: record batches of {sizes} rows, expected equal ones", _REMEDY)
        self.columns: tuple[str, ...] = tuple(self._file.schema.names)
        self._full = self._size // self.rows_per_batch
        parts = {field.name: [_values(batch, field) for batch in self._batches] for field in self._file.schema}
        self.views = {name: self._joined(found[: self._full], found) for name, found in parts.items() if sizes}
        self.tails = {name: found[-1][: self._size % self.rows_per_batch] for name, found in parts.items() if sizes}

    def __len__(self) -> int:
        """Rows."""
        return self._size

    def rows(self, column: str, indices: np.ndarray) -> np.ndarray:
        """Rows of a column, copied: [count, …] in the file's type. Raises IndexError."""
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= self._size):
            raise IndexError(f"{self.name} has rows 0 … {self._size - 1}")
        view = self.views[column]
        batch, row = np.divmod(indices, self.rows_per_batch)
        if self._size == self._full * self.rows_per_batch:
            return view[batch, row]
        in_tail = batch == self._full
        if not in_tail.any():
            return view[batch, row]
        out = np.empty((len(indices), *view.shape[2:]), dtype=view.dtype)
        out[in_tail] = self.tails[column][row[in_tail]]
        np.logical_not(in_tail, out=in_tail)
        out[in_tail] = view[batch[in_tail], row[in_tail]]
        return out

    def dtype(self, column: str) -> np.dtype[Any]:
        """The type that the column had when it was written."""
        field = self._file.schema.field(column)
        if field.metadata and b"dtype" in field.metadata:
            return np.dtype(field.metadata[b"dtype"].decode())
        return self.views[column].dtype

    def _check(self, split: str, number: int, index: ShardIndex) -> None:
        found = {name.decode(): value.decode() for name, value in (self._file.schema.metadata or {}).items()}
        expected = {"origin": index.origin, "split": split, "shard": str(number)}
        if {name: found.get(name) for name in expected} != expected:
            place = f"shard {found.get('shard', '?')} of {found.get('split', '?')}"
            other = "" if found.get("origin") == index.origin else " of another artifact"
            raise BadData(f"{self.name}: is {place}{other}, expected shard {number} of {split}", _REMEDY)
        if self._size != index.rows_of(number):
            raise BadData(
                f"{self.name}: {self._size:,} rows, examples.json says {index.rows_of(number):,}",
                _REMEDY,
            )

    def _joined(self, full: list[np.ndarray], parts: list[np.ndarray]) -> np.ndarray:
        """A column of all full record batches as one array; they stand at equal distances in a file."""
        first = parts[0]
        if len(full) < 2:
            return first[: self.rows_per_batch * len(full)].reshape(len(full), self.rows_per_batch, *first.shape[1:])
        places = [part.__array_interface__["data"][0] for part in full]
        step = places[1] - places[0]
        if any(b - a != step for a, b in zip(places, places[1:], strict=False)):
            raise BadData(f"{self.name}: record batches at unequal distances, expected equal ones", _REMEDY)
        shape, strides = (len(full), *first.shape), (step, *first.strides)
        return np.lib.stride_tricks.as_strided(first, shape, strides, writeable=False)


def _values(batch: Any, field: Any) -> np.ndarray:
    """A column of a record batch as a zero-copy array [N, …]."""
    column = batch.column(field.name)
    if not pa.types.is_fixed_size_list(field.type):
        return column.to_numpy(zero_copy_only=True)
    shape = (field.metadata or {}).get(b"shape", str(field.type.list_size).encode()).decode()
    return column.flatten().to_numpy(zero_copy_only=True).reshape(-1, *map(int, shape.split(",")))
