"""Parquet and Arrow IPC (files and streams): documents in a string column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.errors import BadData
from cluster.files import open_plain, open_stream
from tasks.sources.base import Document, Part, ReadOptions, Source, Tally, missing_field, record

_ROWS = 1024  # read at a time


class Parquet(Source):
    """Parquet files, read a thousand rows at a time."""

    def read(self, part: Part, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        import pyarrow.parquet as pq
        from pyarrow.lib import ArrowException

        with open_plain(part.at) as plain:
            try:
                file = pq.ParquetFile(plain)
                yield from _documents(file.iter_batches(_ROWS), file.schema_arrow, part, options, tally)
            except (ArrowException, OSError) as error:
                raise _broken(part, "Parquet", error) from None


class ArrowFile(Source):
    """Arrow IPC files (Feather version 2 included) and streams."""

    def read(self, part: Part, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        import pyarrow as pa

        with open_stream(part.at) as stream:
            is_file = stream.peek(6)[:6] == b"ARROW1"
            try:
                if is_file:
                    reader = pa.ipc.open_file(pa.PythonFile(open_plain(part.at), mode="r"))
                    batches: Iterator[Any] = (reader.get_batch(i) for i in range(reader.num_record_batches))
                else:
                    reader = pa.ipc.open_stream(stream)
                    batches = iter(reader)
                yield from _documents(batches, reader.schema, part, options, tally)
            except (pa.ArrowException, OSError) as error:
                raise _broken(part, "Arrow", error) from None


def _documents(batches: Any, schema: Any, part: Part, options: ReadOptions, tally: Tally) -> Iterator[Document]:
    if options.text_field not in schema.names:
        raise BadData(f"{part.name}: no column {options.text_field!r}", missing_field(options.text_field, schema.names))
    row = 0
    for batch in batches:
        for fields in batch.to_pylist():
            row += 1
            if (found := record(fields, f"{part.name}:{row}", part.name, options, tally)) is not None:
                yield found


def _broken(part: Part, kind: str, error: Exception) -> BadData:
    return BadData(
        f"{part.at}: not a readable {kind} file: {error}", "write the file again, or give its true format=NAME"
    )
