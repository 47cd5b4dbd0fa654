"""JSON Lines: one object per line, compressed or not."""

from __future__ import annotations

import json
from collections.abc import Iterator

from cluster.files import open_stream
from tasks.sources.base import Document, Part, ReadOptions, Source, Tally, lines, record


class JsonLines(Source):
    """`{"text": …, "id": …, …}` per line; other scalar fields become meta."""

    def read(self, part: Part, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        with open_stream(part.at) as stream:
            for number, line in lines(stream, part.name, options, tally):
                if not line.strip():
                    continue
                where = f"{part.name}:{number}"
                try:
                    fields = json.loads(line)
                except (ValueError, RecursionError) as error:
                    at = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                    tally.bad(f"not valid JSON ({getattr(error, 'msg', 'nested too deeply')}{at})", where)
                    continue
                if not isinstance(fields, dict):
                    tally.bad(f"expected a JSON object, found {type(fields).__name__}", where)
                    continue
                if (found := record(fields, where, part.name, options, tally)) is not None:
                    yield found
