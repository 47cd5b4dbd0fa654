"""Parquet and Arrow IPC (files and streams): documents in string columns, of which only those that are used are read.

Large files are read in pieces of whole row groups or record batches. These are the units of the formats, so a file
that was written as one of them is read by one worker, and an Arrow batch lies in memory as a whole.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from typing import Any

from cluster.errors import BadData
from cluster.files import File, is_remote, local_path, open_plain
from cluster.streams import LONGEST_MAGIC, codec_of, open_stream
from tasks.sources.base import PART_BYTES, Document, Piece, ReadOptions, Source, Tally, place
from tasks.sources.fields import Fields

_ROWS = 1024  # read at a time, fewer where they are long
_SLICE_BYTES = 4 << 20
_SPOOL_BYTES = 32 << 20
_UTF8_REMEDY = "write the column as UTF-8, or set invalid_utf8=replace, or invalid_utf8=skip with max_bad_records=N"


class Parquet(Source):
    """Parquet files, a few MB of rows at a time."""

    def ranges(self, file: File, options: ReadOptions) -> list[tuple[int, int]]:
        with _seekable(file.url) as plain:
            try:
                facts = _parquet(plain).metadata
                sizes = [facts.row_group(i).total_byte_size for i in range(facts.num_row_groups)]
            except _errors() as error:
                raise _broken(file.url, "Parquet", error) from None
        return _grouped(sizes)

    def read_piece(self, piece: Piece, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        with _seekable(piece.url) as plain:
            try:
                file = _parquet(plain)
                facts = file.metadata
                groups = list(range(piece.start, piece.end if piece.end >= 0 else facts.num_row_groups))
                size = sum(facts.row_group(i).total_byte_size for i in groups)
                rows = sum(facts.row_group(i).num_rows for i in groups)
                at_once = max(1, min(_ROWS, _SLICE_BYTES * rows // max(1, size)))
                columns = _columns(file.schema_arrow, piece, options)
                batches = file.iter_batches(at_once, row_groups=groups, columns=columns) if groups else iter(())
                yield from _documents(batches, columns, piece, options, tally)
            except _errors() as error:
                raise _broken(piece.url, "Parquet", error) from None


class ArrowFile(Source):
    """Arrow IPC files (Feather version 2 included) and streams."""

    def ranges(self, file: File, options: ReadOptions) -> list[tuple[int, int]]:
        import pyarrow as pa

        with _seekable(file.url) as plain:
            if not plain.peek(LONGEST_MAGIC).startswith(b"ARROW1"):
                return []
            try:
                count = pa.ipc.open_file(pa.PythonFile(plain, mode="r")).num_record_batches
            except _errors() as error:
                raise _broken(file.url, "Arrow", error) from None
        return _grouped([file.size // max(1, count)] * count)

    def read_piece(self, piece: Piece, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        import pyarrow as pa

        with open_plain(piece.url) as plain:
            packed = codec_of(plain.peek(LONGEST_MAGIC)[:LONGEST_MAGIC])
        with _spooled(open_stream(piece.url)) if packed else _seekable(piece.url) as stream:
            is_file = stream.read(LONGEST_MAGIC) == b"ARROW1"
            stream.seek(0)
            try:
                if is_file:
                    reader = pa.ipc.open_file(pa.PythonFile(stream, mode="r"))
                    last = piece.end if piece.end >= 0 else reader.num_record_batches
                    batches: Iterator[Any] = (reader.get_batch(i) for i in range(piece.start, last))
                else:
                    reader = pa.ipc.open_stream(pa.PythonFile(stream, mode="r"))
                    batches = iter(reader)
                columns = _columns(reader.schema, piece, options)
                yield from _documents(_slices(batches, columns), columns, piece, options, tally)
            except _errors() as error:
                raise _broken(piece.url, "Arrow", error) from None


def _errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises on damaged files; TypeError and ValueError come from schemas that make no sense."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, EOFError, MemoryError, OverflowError, ValueError, TypeError, KeyError)


def _parquet(plain: io.IOBase) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(plain, pre_buffer=False, buffer_size=1 << 20)


def _seekable(url: str) -> Any:
    """The file, or a copy of it where the server only streams."""
    plain = open_plain(url)
    return plain if plain.seekable() else _spooled(plain)


def _spooled(stream: io.BufferedReader) -> Any:
    """A stream's content as a file that can be read anywhere: in memory up to 32 MB, else in a temporary file."""
    copy = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 - the caller closes it
    with stream:
        while block := stream.read(1 << 20):
            copy.write(block)
    copy.seek(0)
    return copy


def _grouped(sizes: list[int]) -> list[tuple[int, int]]:
    """Ranges of neighbouring units of about `PART_BYTES` together."""
    ranges, first, held = [], 0, 0
    for number, size in enumerate(sizes):
        if held and held + size > PART_BYTES:
            ranges.append((first, number))
            first, held = number, 0
        held += size
    return [*ranges, (first, len(sizes))] if sizes else []


def _columns(schema: Any, piece: Piece, options: ReadOptions) -> list[str]:
    """The columns to read: what text and id are in, and scalar ones, which become meta.

    Raises:
        BadData: no such column, with the nearest; or two of one name.
    """
    import pyarrow.types as t

    fields = Fields(options)
    fields.check(schema.names, piece.name)
    used = fields.used(schema.names)

    def scalar(kind: Any) -> bool:
        if t.is_dictionary(kind):
            kind = kind.value_type
        return _is_text(kind) or t.is_boolean(kind) or t.is_integer(kind) or t.is_floating(kind)

    return [field.name for field in schema if field.name in used or scalar(field.type)]


def _is_text(kind: Any) -> bool:
    import pyarrow.types as t

    return t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind)


def _slices(batches: Iterator[Any], columns: list[str]) -> Iterator[Any]:
    """Record batches checked and cut to a few MB of rows: offsets in a damaged file may point anywhere."""
    import pyarrow as pa

    for whole in batches:
        batch = whole.select(columns)
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid:
            batch = _as_bytes(batch)  # if it is only that text is not UTF-8, the policy for that applies
            batch.validate(full=True)
        rows = max(1, min(_ROWS, _SLICE_BYTES * len(batch) // max(1, batch.nbytes)))
        for first in range(0, len(batch), rows):
            yield batch.slice(first, rows)


def _as_bytes(batch: Any) -> Any:
    """The batch with its text columns as bytes."""
    import pyarrow as pa
    import pyarrow.types as t

    columns = []
    for column in batch.columns:
        if t.is_string(column.type):
            column = column.view(pa.binary())
        elif t.is_large_string(column.type):
            column = column.view(pa.large_binary())
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _documents(
    batches: Any, columns: list[str], piece: Piece, options: ReadOptions, tally: Tally
) -> Iterator[Document]:
    fields = Fields(options)
    used = fields.used(columns)
    row = 0
    for batch in batches:
        try:
            records = batch.to_pylist()
        except UnicodeDecodeError:
            records = _as_bytes(batch).to_pylist()
        for record in records:
            row += 1
            if _readable(record, used, piece, row, options, tally):
                found = fields.document(record, piece, row, tally)
                if found is not None:
                    yield found
    if piece.end >= 0:
        tally.lines = row


def _readable(
    record: dict[str, Any], used: set[str], piece: Piece, row: int, options: ReadOptions, tally: Tally
) -> bool:
    """Turn bytes into text under the policy, in place; False: the record is counted as bad."""
    for name, value in record.items():
        if type(value) is not bytes:
            continue
        try:
            record[name] = value.decode()
        except UnicodeDecodeError:
            if name in used and options.invalid_utf8 == "error":
                raise BadData(
                    f"{place(piece, row)}: column {name!r} is not valid UTF-8; policy: invalid_utf8=error", _UTF8_REMEDY
                ) from None
            if name in used and options.invalid_utf8 == "skip":
                tally.bad("invalid UTF-8", place(piece, row), _UTF8_REMEDY)
                return False
            record[name] = value.decode("utf-8", "replace")
            tally.repaired["invalid UTF-8"] += 1
    return True


def _broken(url: str, kind: str, error: Exception) -> BadData:
    shown = local_path(url).name if not is_remote(url) else url
    return BadData(
        f"{shown}: not a readable {kind} file: {error}", "write the file again, or give its true format=NAME"
    )
