"""CSV (quoted, RFC 4180) and TSV (no quoting, as GLUE's files), with a header line.

A quoted field may hold line ends, so where a row of a CSV file begins is only known from the file's start: CSV is
read as a whole, TSV in pieces.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from cluster.errors import BadData
from cluster.files import File
from tasks.sources.base import Document, Piece, ReadOptions, Source, Tally, byte_ranges, place
from tasks.sources.fields import Fields
from tasks.sources.lines import Lines


class Csv(Source):
    """Comma-separated values; fields may be quoted and hold line ends."""

    def read_piece(self, piece: Piece, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        before = csv.field_size_limit(options.longest_line)
        try:
            with Lines(piece, options, tally, without_nul=True) as lines:
                yield from _documents(_quoted_rows(lines, piece, tally), piece, options, tally)
        finally:
            csv.field_size_limit(before)


class Tsv(Source):
    """Tab-separated values, quote marks taken as they are."""

    def ranges(self, file: File, options: ReadOptions) -> list[tuple[int, int]]:
        return byte_ranges(file)

    def read_piece(self, piece: Piece, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        header: list[str] | None = None
        if piece.start:
            with Lines(Piece(piece.name, piece.url), options, Tally(piece.name, options), without_nul=True) as lines:
                header = next((line.split("\t") for _, line in lines.until() if line), None)
        with Lines(piece, options, tally, without_nul=True) as lines:
            until = lines.until(piece.end if piece.end >= 0 else None)
            rows = ((number, line.split("\t")) for number, line in until if line)
            yield from _documents(rows, piece, options, tally, header)


def _quoted_rows(lines: Lines, piece: Piece, tally: Tally) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of each row."""
    at, ended = 0, False

    def text_lines() -> Iterator[str]:
        nonlocal at, ended
        for at, line in lines.until():  # noqa: B007 - the row's first line is told by it
            yield line + "\n"
        ended = True

    rows = csv.reader(text_lines())
    while True:
        first = at + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if "limit" in str(error):
                raise _unclosed(piece, first) from None
            tally.bad(f"not valid CSV ({error})", place(piece, first))
            continue
        if ended:  # it asked for a further line, which it does only inside quotes
            raise _unclosed(piece, first)
        if row:
            yield first, row


def _unclosed(piece: Piece, first: int) -> BadData:
    return BadData(
        f"{place(piece, first)}: a quote that is opened in this row is never closed, so the rest cannot be told apart",
        'close it, or double quote marks inside fields (""); a file without quoting is format=tsv',
    )


def _documents(
    rows: Iterator[tuple[int, list[str]]],
    piece: Piece,
    options: ReadOptions,
    tally: Tally,
    header: list[str] | None = None,
) -> Iterator[Document]:
    fields = Fields(options)
    for number, row in rows:
        if header is None:
            header = row
            fields.check(header, piece.name, " in the header line")
            continue
        if len(row) != len(header):
            tally.bad(f"{len(row)} fields, expected {len(header)} as in the header", place(piece, number))
            continue
        if (found := fields.document(dict(zip(header, row, strict=True)), piece, number, tally)) is not None:
            yield found
