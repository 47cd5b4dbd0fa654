"""What a reader is: it names its parts and reads each part as a stream of documents.

Parts are read in parallel and their documents joined in order, so a reader must be a pure function of
its part. Bad records go to the `Tally`, which raises where the reader's policy says so.

A part is a bundle of small files, one file, or a piece of a large one. Who reads a piece does not know how many lines
lie before it, so documents carry the line within their piece, and messages mark such numbers; who joins the parts
adds what went before (`located`). Thus ids and messages are those of a file that was read as a whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cluster.errors import BadData
from cluster.files import COMPRESSION_SUFFIXES, File, fingerprint, listing, names, open_plain
from cluster.streams import LONGEST_MAGIC, codec_of

PART_BYTES = 16 << 20  # of a file per part: a quarter of a second of reading, so that all workers have some
_PART_FILES = 256  # in one bundle
_EXPANDED = 4  # text is about so many times what it is compressed to
_LINES_SHOWN = 5
_MARK = "\x1e"


class Document(NamedTuple):
    """One document as a reader gives it."""

    id: str
    """Empty: the file and the line where it begins."""
    text: str
    source: str
    """Which of the corpus's sources it is from: a file's base name, or a library."""
    meta: str = "{}"
    """A JSON object of further facts."""
    group: str = ""
    """What the split is drawn by; documents of one group are never on both sides. The text by default."""
    same_as: str = ""
    """What makes two documents duplicates; the text by default."""
    line: int = 0
    """Where it begins: line or row in its piece, from 1."""


class Piece(NamedTuple):
    """A file, or a range of it."""

    name: str
    """The file's base name, unique in the source, for ids and messages."""
    url: str
    start: int = 0
    """First byte (formats of lines), row group (Parquet) or record batch (Arrow)."""
    end: int = -1
    """The one behind the last; -1: to the end of the file."""


class Part(NamedTuple):
    """A piece of a source that one worker reads: files, a piece of a file, or a bundle of modules."""

    name: str
    """For messages."""
    at: Any
    """A list of `Piece`, or whatever the reader needs."""
    size: int = 1
    """For the progress: bytes of files, or 1."""
    continues: bool = False
    """It goes on in the file of the part before."""


@dataclass(frozen=True)
class ReadOptions:
    """How records become documents; fields as `tasks.ingest.Ingest` describes them."""

    text_field: str = "text"
    id_field: str = "id"
    documents: str = "auto"
    invalid_utf8: str = "error"
    max_bad_records: int = 0
    min_document_chars: int = 1
    max_document_chars: int = 5_000_000

    @property
    def longest_line(self) -> int:
        """Bytes of the longest line that can hold a document: its characters escaped one by one, and other fields."""
        return 6 * self.max_document_chars + (1 << 20)


@dataclass
class Tally:
    """Bad records of one part: counted, with the first places, and refused beyond the limit."""

    part: str
    options: ReadOptions
    skipped: Counter[str] = field(default_factory=Counter)
    """Bad records, by reason."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Records that are sound and no documents: images in an archive of pages, texts that are too short."""
    repaired: Counter[str] = field(default_factory=Counter)
    bad_at: list[str] = field(default_factory=list)
    """`file:line: reason` of the part's first bad records; numbers may be marked, see `located`."""
    total: int = 0
    taken: int = 0
    lines: int = 0
    """Lines or rows read so far of a piece that is not a whole file."""

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

    def take(self) -> tuple[dict[str, int], dict[str, int], dict[str, int], list[str]]:
        """(left out, skipped, repaired, new places) since the last call."""
        counts = (self.left_out, self.skipped, self.repaired)
        left_out, skipped, repaired = ({reason: n for reason, n in count.items() if n} for count in counts)
        found = left_out, skipped, repaired, self.bad_at[self.taken :]
        for count in counts:
            count.clear()
        self.taken = len(self.bad_at)
        return found


def place(piece: Piece, number: int) -> str:
    """`file:line` for messages; marked where the piece does not begin its file."""
    return f"{piece.name}:{_MARK}{number}{_MARK}" if piece.start else f"{piece.name}:{number}"


def located(message: str, lines_before: int) -> str:
    """A message with its marked lines counted from the file's beginning."""
    return re.sub(f"{_MARK}(\\d+){_MARK}", lambda found: str(int(found[1]) + lines_before), message)


def check_bad(count: int, bad_at: list[str], limit: int, remedy: str = "") -> None:
    """Raise BadData where `count` bad records are more than `limit`."""
    if count > limit:
        shown = "\n  ".join(bad_at[:_LINES_SHOWN])
        if limit:
            shown = f"more than {limit} bad records (max_bad_records); the first:\n  {shown}"
        raise BadData(shown, remedy or "repair the data, or allow some with max_bad_records=N")


class Source:
    """Base of the readers: files through fsspec, small ones bundled, large ones in pieces where the format allows."""

    def fingerprint(self, source: str | tuple[str, ...]) -> Mapping[str, Any]:
        """What the data are, as JSON, for the stage's key; raises BadConfig where they are missing."""
        return {"files": fingerprint(source, "source")}

    def files(self, source: str | tuple[str, ...]) -> list[File]:
        """The files behind a source, in the order of the documents."""
        return listing(source, "source")

    def parts(self, files: Sequence[File], options: ReadOptions) -> Iterator[Part]:
        """The parts of `files`, in the order of the documents: what they are follows from names and sizes alone.

        Large files are opened when their turn comes, so use it lazily.
        """
        held: list[Piece] = []
        weight = size = 0

        def bundle() -> Part:
            return Part(held[0].name, list(held), size)

        for name, file in zip(names([file.url for file in files]), files, strict=True):
            packed = file.url.lower().endswith(tuple(COMPRESSION_SUFFIXES))
            own = max(0, file.size) * (_EXPANDED if packed else 1)
            if held and (weight + own > PART_BYTES or len(held) == _PART_FILES):
                yield bundle()
                held, weight, size = [], 0, 0
            ranges = self.ranges(file, options) if file.size > PART_BYTES and not packed else []
            if len(ranges) > 1:
                for number, (start, end) in enumerate(ranges):
                    share = file.size * (number + 1) // len(ranges) - file.size * number // len(ranges)
                    yield Part(name, [Piece(name, file.url, start, end)], share, continues=number > 0)
            else:
                held.append(Piece(name, file.url))
                weight, size = weight + own, size + max(0, file.size)
        if held:
            yield bundle()

    def ranges(self, file: File, options: ReadOptions) -> list[tuple[int, int]]:
        """(start, end) of the pieces of a large file; fewer than two where it must be read as a whole."""
        return []

    def read(self, part: Part, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        """The documents of one part, in order."""
        for piece in part.at:
            yield from self.read_piece(piece, options, tally)

    def read_piece(self, piece: Piece, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        """The documents of one piece, in order; `tally.lines` afterwards says how many lines or rows it had."""
        raise NotImplementedError


def byte_ranges(file: File) -> list[tuple[int, int]]:
    """Ranges of `PART_BYTES` of a file that is not compressed, whatever its name says."""
    with open_plain(file.url) as plain:
        if not plain.seekable() or codec_of(plain.peek(LONGEST_MAGIC)):
            return []
    starts = range(0, file.size, PART_BYTES)
    return [(start, min(start + PART_BYTES, file.size)) for start in starts]
