"""JSON Lines: one object per line, compressed or not; large plain files are read in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cluster.files import File
from tasks.sources.base import Document, Piece, ReadOptions, Source, Tally, byte_ranges, place
from tasks.sources.fields import Fields
from tasks.sources.lines import Lines


class JsonLines(Source):
    """`{"text": …, "id": …, …}` per line; other scalar fields become meta."""

    def ranges(self, file: File, options: ReadOptions) -> list[tuple[int, int]]:
        return byte_ranges(file)

    def read_piece(self, piece: Piece, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        fields = Fields(options)
        decoder: Any = json.JSONDecoder()
        scan = decoder.scan_once  # `json.loads` without its look for white space
        with Lines(piece, options, tally) as lines:
            for number, line in lines.until(piece.end if piece.end >= 0 else None):
                try:
                    record, end = scan(line, 0)
                except (StopIteration, ValueError, RecursionError):
                    end = -1
                if end != len(line):  # white space around it, or an error, for which `loads` has the words
                    try:
                        record = json.loads(line)
                    except (ValueError, RecursionError) as error:  # ValueError also for numbers of thousands of digits
                        if line.strip():
                            at = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                            said = getattr(error, "msg", "nested too deeply or a number too long")
                            tally.bad(f"not valid JSON ({said}{at})", place(piece, number), _remedy(line, number))
                        continue
                if type(record) is not dict:
                    found = type(record).__name__
                    tally.bad(f"expected a JSON object, found {found}", place(piece, number), _remedy(line, number))
                    continue
                if (document := fields.document(record, piece, number, tally)) is not None:
                    yield document


def _remedy(line: str, number: int) -> str:
    """What to do where the file seems to be one JSON value over many lines, or a list."""
    if number == 1 and line.strip() in ("[", "{") or (number == 1 and line.lstrip().startswith("[{")):
        return "the file is one JSON value; write an object per line, as `jq -c '.[]'` does"
    return ""
