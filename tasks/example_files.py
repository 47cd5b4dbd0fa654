"""Arrow IPC files of examples: columns of numbers, the same shape in every row, memory-mapped when read.

A column of rows is a fixed-size list, a column of single numbers is one. The stored type is the smallest that holds
what a column is for: ids in 16 bits where the vocabulary allows, labels and other numbers that may be negative in 32,
floats in 32. The field's metadata say what the reader gives: its type (`int64`, `bool`, `float32`) and shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.errors import BadData

Columns = Mapping[str, np.ndarray]


class ExampleWriter:
    """Writes columns of rows in record batches of `rows_per_batch`; the first columns given set the types.

    Args:
        id_dtype: of ids: uint16 or uint32.
    """

    def __init__(self, path: Path, rows_per_batch: int, vocab_size: int, id_dtype: Any) -> None:
        self.path, self.rows_per_batch, self.vocab_size, self.id_dtype = path, rows_per_batch, vocab_size, id_dtype
        self.rows = 0
        self._held: list[Columns] = []
        self._held_rows = 0
        self._schema: pa.Schema | None = None
        self._file: Any = None

    def add(self, columns: Columns) -> None:
        """Append rows: {name: [N, …]}; the same names, types and widths each time."""
        count = len(next(iter(columns.values())))
        if not count:
            return
        if self._schema is None:
            self._open(columns)
        self._held.append(columns)
        self._held_rows += count
        self.rows += count
        while self._held_rows >= self.rows_per_batch:
            self._flush(self.rows_per_batch)

    def close(self) -> None:
        """Write what is held and finish the file."""
        if self._held_rows:
            self._flush(self._held_rows)
        if self._file is None:
            self._open({"tokens": np.empty((0, 1), dtype=self.id_dtype)})
        self._file.close()

    def _open(self, columns: Columns) -> None:
        fields = []
        for name, column in columns.items():
            kind = pa.from_numpy_dtype(self._stored(name, column))
            width = int(np.prod(column.shape[1:]))
            facts = {"dtype": column.dtype.name, "shape": ",".join(map(str, column.shape[1:]))}
            fields.append(pa.field(name, pa.list_(kind, width) if column.ndim > 1 else kind, metadata=facts))
        self._schema = pa.schema(fields)
        self._file = pa.ipc.new_file(str(self.path), self._schema)

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

    def _flush(self, count: int) -> None:
        assert self._schema is not None
        joined = {name: np.concatenate([held[name] for held in self._held]) for name in self._schema.names}
        arrays = []
        for field in self._schema:
            listed = pa.types.is_fixed_size_list(field.type)
            dtype = np.dtype((field.type.value_type if listed else field.type).to_pandas_dtype())
            values = joined[field.name][:count].reshape(-1)
            if dtype.kind in "iu" and values.dtype != bool and values.size:
                bounds = np.iinfo(dtype)
                if values.min() < bounds.min or values.max() > bounds.max:
                    raise OverflowError(f"column {field.name} has {values.min()} … {values.max()}, stored as {dtype}")
            flat = pa.array(values.astype(dtype, copy=False))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type) if listed else flat)
        self._file.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._held = [{name: column[count:] for name, column in joined.items()}]
        self._held_rows -= count


class ExampleFile:
    """A written file: any rows of any column without reading the others.

    Raises:
        BadData: the file is not there, or not an Arrow file.
    """

    def __init__(self, path: Path, rows_per_batch: int) -> None:
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        except (OSError, pa.ArrowInvalid) as error:
            raise BadData(f"{path.name}: not readable ({error})", "run the stage that makes it again") from None
        self.rows_per_batch = rows_per_batch
        batches = [self._file.get_batch(i) for i in range(self._file.num_record_batches)]
        self._size = sum(batch.num_rows for batch in batches)
        self.columns: tuple[str, ...] = tuple(self._file.schema.names)
        self.views = [{field.name: _view(batch, field) for field in self._file.schema} for batch in batches]

    def __len__(self) -> int:
        """Rows."""
        return self._size

    def rows(self, column: str, indices: np.ndarray) -> np.ndarray:
        """Rows of a column, copied: [count, …] in the file's type."""
        if len(self.views) == 1:
            return self.views[0][column][indices]
        chunk, row = np.divmod(indices, self.rows_per_batch)
        first = self.views[0][column]
        out = np.empty((len(indices), *first.shape[1:]), dtype=first.dtype)
        for each in np.unique(chunk):
            chosen = chunk == each
            out[chosen] = self.views[each][column][row[chosen]]
        return out

    def dtype(self, column: str) -> np.dtype[Any]:
        """The type that the column had when it was written."""
        field = self._file.schema.field(column)
        if field.metadata and b"dtype" in field.metadata:
            return np.dtype(field.metadata[b"dtype"].decode())
        return self.views[0][column].dtype


def _view(batch: Any, field: Any) -> np.ndarray:
    """A column of a record batch as a zero-copy array [N, …]."""
    column = batch.column(field.name)
    if not pa.types.is_fixed_size_list(field.type):
        return column.to_numpy(zero_copy_only=True)
    shape = (field.metadata or {}).get(b"shape", str(field.type.list_size).encode()).decode()
    return column.flatten().to_numpy(zero_copy_only=True).reshape(-1, *map(int, shape.split(",")))
