"""Documents of a part as Arrow batches of a few MB, with digest, split and counts: what a reading worker sends."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

from cluster.errors import BadData
from tasks.sources import SOURCES
from tasks.sources.base import Part, ReadOptions, Tally

BATCH_BYTES = 4 << 20  # of text


class Batch(NamedTuple):
    """Documents from a reading worker, and what it left out since its last batch."""

    table: Any
    """Arrow: id (null: file and line), text, source, meta, line (int64), same (16 bytes), validation (bool),
    chars (int32), words (int32)."""
    skipped: dict[str, int]
    """Records left out by choice: too short, too long, no text by their kind."""
    bad: dict[str, int]
    repaired: dict[str, int]
    bad_at: list[str]
    last: bool
    """The part's last batch."""
    lines: int
    """Of the last batch of a piece of a file: how many lines or rows the piece has."""
    failure: tuple[str, str] | None
    """Of a last batch: (message, remedy) of the BadData that ended the reading."""


def read_part(format_name: str, options: ReadOptions, validation_share: float, part: Part) -> Iterator[Batch]:
    """The documents of one part, in order. A part that cannot be read ends in a batch that says so."""
    tally = Tally(part.name, options)
    skipped = tally.left_out
    rows: list[tuple[Any, ...]] = []
    size = 0
    least, most = options.min_document_chars, options.max_document_chars
    # The split depends on the group's digest alone: it stays when documents are added.
    threshold = int(validation_share * 2**64)

    def batch(last: bool, failure: tuple[str, str] | None = None) -> Batch:
        made = Batch(_table(rows), *tally.take(), last, tally.lines if last else 0, failure)
        rows.clear()
        return made

    try:
        for document in SOURCES.load(format_name)().read(part, options, tally):
            text = document.text
            chars = len(text)
            if not text or text.isspace():
                skipped["empty"] += 1
                continue
            if chars < least:
                skipped["shorter than min_document_chars"] += 1
                continue
            if chars > most:
                skipped["longer than max_document_chars"] += 1
                continue
            try:
                raw = text.encode()
            except UnicodeEncodeError:  # JSON may hold half of a surrogate pair, which is no character
                raw = text.encode("utf-8", "replace")
                text = raw.decode()
            same = document.same_as.encode("utf-8", "replace") if document.same_as else raw
            group = document.group.encode("utf-8", "replace") if document.group else raw
            rows.append(
                (
                    document.id or None,
                    text,
                    document.source,
                    document.meta,
                    document.line,
                    blake2b(same, digest_size=16).digest(),
                    threshold > 0 and split_draw(group) < threshold,
                    chars,
                )
            )
            size += len(raw)
            if size >= BATCH_BYTES:
                yield batch(last=False)
                size = 0
    except BadData as error:
        yield batch(last=True, failure=(error.message, error.remedy))
        return
    yield batch(last=True)


def split_draw(group: bytes) -> int:
    """What the split is drawn by: the share it is below is held out, of 2**64.

    Other choices among documents must not go by this number, or they would choose by split: give theirs a `person`.
    """
    return int.from_bytes(blake2b(group, digest_size=8).digest(), "big")


def _table(rows: list[tuple[Any, ...]]) -> Any:
    import pyarrow as pa

    from tasks.word_counts import word_counts

    names = ["id", "text", "source", "meta", "line", "same", "validation", "chars"]
    types = [pa.string()] * 4 + [pa.int64(), pa.binary(16), pa.bool_(), pa.int32()]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    arrays = [_array(c, t) for c, t in zip(columns, types, strict=True)]
    return pa.table([*arrays, pa.array(word_counts(arrays[1]), pa.int32())], names=[*names, "words"])


def _array(values: Any, kind: Any) -> Any:
    import pyarrow as pa

    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # half of a surrogate pair in an id or in meta
        return pa.array([v if v is None else v.encode("utf-8", "replace").decode() for v in values], kind)


def with_ids(table: Any, lines_before: int) -> Any:
    """The table with `file:line` where a document has no id of its own."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = table.column("id")
    if not ids.null_count:
        return table
    lines = pc.cast(pc.add(table.column("line"), lines_before), pa.string())
    places = pc.binary_join_element_wise(table.column("source"), lines, ":")
    return table.set_column(0, "id", pc.coalesce(ids, places))
