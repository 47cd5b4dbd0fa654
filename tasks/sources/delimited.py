"""CSV (quoted, RFC 4180) and TSV (no quoting, as GLUE's files), with a header line."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from cluster.errors import BadData
from cluster.files import open_stream
from tasks.sources.base import Document, Part, ReadOptions, Source, Tally, lines, missing_field, record

_LONGEST_FIELD = 64 << 20


class Csv(Source):
    """Comma-separated values; fields may be quoted and hold line ends."""

    delimiter, quoting = ",", csv.QUOTE_MINIMAL

    def read(self, part: Part, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        at = 0

        def text_lines() -> Iterator[str]:
            nonlocal at
            for number, line in lines(stream, part.name, options, tally):
                at = number
                yield line.replace("\0", "") + "\n"

        before = csv.field_size_limit(_LONGEST_FIELD)
        try:
            with open_stream(part.at) as stream:
                rows = csv.reader(text_lines(), delimiter=self.delimiter, quoting=self.quoting)
                header: list[str] | None = None
                while True:
                    first = at + 1
                    where = f"{part.name}:{first}"
                    try:
                        row = next(rows)
                    except StopIteration:
                        return
                    except csv.Error as error:
                        tally.bad(f"not valid {type(self).__name__.upper()} ({error})", where)
                        continue
                    if not row:
                        continue
                    if header is None:
                        header = row
                        if options.text_field not in header:
                            raise BadData(
                                f"{part.name}: no column {options.text_field!r} in the header line",
                                missing_field(options.text_field, header),
                            )
                        continue
                    if len(row) != len(header):
                        tally.bad(f"{len(row)} fields, expected {len(header)} as in the header", where)
                        continue
                    found = record(dict(zip(header, row, strict=True)), where, part.name, options, tally)
                    if found is not None:
                        yield found
        finally:
            csv.field_size_limit(before)


class Tsv(Csv):
    """Tab-separated values, quote marks taken as they are."""

    delimiter, quoting = "\t", csv.QUOTE_NONE
