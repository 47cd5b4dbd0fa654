"""What a reader is: it names its parts and reads each part as a stream of documents.

Parts are read in parallel and their documents joined in order, so a reader must be a pure function of
its part. Bad records go to the `Tally`, which raises where the reader's policy says so.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from cluster.errors import BadData
from cluster.files import expand, fingerprint, names

_LONGEST_LINE = 256 << 20  # bytes; a longer line means that the file is not what its format says
_LINES_SHOWN = 5


class Document(NamedTuple):
    """One document as a reader gives it."""

    id: str
    text: str
    source: str
    """Which of the corpus's sources it is from: a file's base name, or a library."""
    meta: str = "{}"
    """A JSON object of further facts."""
    group: str = ""
    """What the split is drawn by; documents of one group are never on both sides. The text by default."""
    same_as: str = ""
    """What makes two documents duplicates; the text by default."""


class Part(NamedTuple):
    """A piece of a source that one worker reads: a file, or a bundle of modules."""

    name: str
    """Base name, for ids and messages."""
    at: Any
    """The file's path or URL, or whatever the reader needs."""


@dataclass(frozen=True)
class ReadOptions:
    """How records become documents."""

    text_field: str = "text"
    id_field: str = "id"
    documents: str = "auto"
    invalid_utf8: str = "error"
    max_bad_records: int = 0
    min_document_chars: int = 1
    max_document_chars: int = 5_000_000


@dataclass
class Tally:
    """Bad records of one part: counted, with the first places, and refused beyond the limit."""

    part: str
    options: ReadOptions
    skipped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    bad_at: list[str] = field(default_factory=list)
    """`file:line: reason` of the part's first bad records."""
    total: int = 0
    taken: int = 0

    def bad(self, reason: str, where: str, remedy: str = "") -> None:
        """Count a record that cannot be read.

        Raises:
            BadData: more than `max_bad_records` of this part are bad.
        """
        self.skipped[reason] += 1
        self.total += 1
        if len(self.bad_at) < _LINES_SHOWN:
            self.bad_at.append(f"{where}: {reason}")
        check_bad(self.total, self.bad_at, self.options.max_bad_records, remedy)

    def take(self) -> tuple[dict[str, int], dict[str, int], list[str]]:
        """(skipped, repaired, new places) since the last call."""
        found = dict(self.skipped), dict(self.repaired), self.bad_at[self.taken :]
        self.skipped.clear()
        self.repaired.clear()
        self.taken = len(self.bad_at)
        return found


def check_bad(count: int, bad_at: list[str], limit: int, remedy: str = "") -> None:
    """Raise BadData where `count` bad records are more than `limit`."""
    if count > limit:
        shown = "\n  ".join(bad_at[:_LINES_SHOWN])
        if limit:
            shown = f"more than {limit} bad records (max_bad_records); the first:\n  {shown}"
        raise BadData(shown, remedy or "repair the data, or allow some with max_bad_records=N")


class Source:
    """Base of the readers."""

    def fingerprint(self, source: str | tuple[str, ...]) -> Mapping[str, Any]:
        """What the data are, as JSON, for the stage's key; raises BadConfig where they are missing."""
        return {"files": fingerprint(source, "source")}

    def parts(self, source: str | tuple[str, ...]) -> list[Part]:
        """The pieces to read, in the order of the documents."""
        files = expand(source, "source")
        return [Part(name, url) for name, url in zip(names(files), files, strict=True)]

    def read(self, part: Part, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        """The documents of one part, in order."""
        raise NotImplementedError


def lines(stream: BinaryIO, name: str, options: ReadOptions, tally: Tally) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its line end) of a UTF-8 stream, under the policy for bad bytes.

    Raises:
        BadData: invalid UTF-8 where `invalid_utf8` is `error`, with the count and first lines of the whole
            file; or a line of more than 256 MiB.
    """
    number = 0
    while line := stream.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise BadData(
                f"{name}:{number}: a line of more than {_LONGEST_LINE >> 20} MiB", "check that the format is right"
            )
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            if options.invalid_utf8 == "error":
                raise _invalid(stream, name, number) from None
            if options.invalid_utf8 == "skip":
                tally.bad("invalid UTF-8", f"{name}:{number}", _UTF8_REMEDY)
                continue
            text = line.decode("utf-8", "replace")
            tally.repaired["invalid UTF-8"] += 1
        if number == 1:
            text = text.removeprefix("\ufeff")
        yield number, text.rstrip("\r\n")


_UTF8_REMEDY = "convert the file to UTF-8, or set invalid_utf8=replace, or invalid_utf8=skip with max_bad_records=N"


def _invalid(stream: BinaryIO, name: str, first: int) -> BadData:
    bad, number = [first], first
    while line := stream.readline(_LONGEST_LINE):
        number += 1
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            bad.append(number)
    shown = ", ".join(map(str, bad[:_LINES_SHOWN])) + ("…" if len(bad) > _LINES_SHOWN else "")
    count = f"{len(bad):,} line{'s are' if len(bad) > 1 else ' is'}"
    return BadData(f"{name}: {count} not valid UTF-8 (line {shown}); policy: invalid_utf8=error", _UTF8_REMEDY)


def record(fields: Mapping[str, Any], where: str, name: str, options: ReadOptions, tally: Tally) -> Document | None:
    """The document of a record with named fields, or None where it is counted as bad.

    `text_field` is its text, `id_field` its id (`where` if it has none), other scalar fields its meta.

    Raises:
        BadData: the record has no `text_field`, which is a wrong configuration rather than a bad record
            where `max_bad_records` is 0; names the nearest field.
    """
    text = fields.get(options.text_field)
    if not isinstance(text, str):
        if options.text_field in fields:
            tally.bad(f"field {options.text_field!r} is {_kind(text)}, expected a string", where)
        else:
            tally.bad(f"no field {options.text_field!r}", where, missing_field(options.text_field, fields))
        return None
    other = {
        key: value
        for key, value in fields.items()
        if key not in (options.text_field, options.id_field) and value is not None and _scalar(value)
    }
    own = fields.get(options.id_field)
    identity = str(own) if own is not None and own != "" else where
    return Document(identity, text, name, json.dumps(other, sort_keys=True, ensure_ascii=False) if other else "{}")


def missing_field(wanted: str, fields: Iterable[str]) -> str:
    """The remedy for a missing text field."""
    near = difflib.get_close_matches(wanted, list(fields), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}fields found: {', '.join(map(str, fields))}; set text_field=NAME"


def _scalar(value: Any) -> bool:
    return (
        isinstance(value, bool | int)
        or (isinstance(value, float) and value == value and abs(value) != float("inf"))
        or (isinstance(value, str) and len(value) <= 1000)
    )


def _kind(value: Any) -> str:
    return {
        type(None): "null",
        dict: "an object",
        list: "a list",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }.get(type(value), type(value).__name__)
