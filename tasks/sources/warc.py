"""WARC and WET archives of web crawls (ISO 28500): pages as text, one document per record.

`response` records of HTML pages give the page's readable text (`tasks.sources.html_text`), `conversion` records of
plain text (WET) their content; records of other types, other content types and failed requests are counted as
skipped. Records and HTTP bodies are parsed by warcio, from a stream that any compression of ours gives, so gzip's
members are checked on the way. A damaged record is counted as bad, and reading goes on at the next one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from cluster.errors import BadData, UserError
from cluster.streams import open_stream
from tasks.sources.base import Document, Piece, ReadOptions, Source, Tally, place
from tasks.sources.fields import encode_meta
from tasks.sources.html_text import decode_page, read_page

_VERSIONS = (b"WARC/1.", b"WARC/0.")
_HTML = ("text/html", "application/xhtml+xml")
_LONGEST_HEADER = 1 << 16
_PAGE_BYTES = 16 << 20  # of a response's content; what is larger is no page to read


class Warc(Source):
    """WARC files; a document's id is the page's URL, else the record's id."""

    def read_piece(self, piece: Piece, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        from warcio.recordloader import ArcWarcRecordLoader

        loader = ArcWarcRecordLoader()
        with open_stream(piece.url) as stream:
            number = 0
            while (version := _next_version(stream, piece, number, tally)) is not None:
                number += 1
                record = _Record(stream, version)
                try:
                    document = _document(loader, record, piece, number, options, tally)
                except UserError:
                    raise
                except Exception as error:  # warcio and zlib raise many kinds on headers and bodies that make no sense
                    said = " ".join(str(error).split())[:120]
                    tally.bad(f"not a readable WARC record ({type(error).__name__}: {said})", place(piece, number))
                    document = None
                record.finish(piece, number)
                if document is not None:
                    yield document


def _next_version(stream: io.BufferedReader, piece: Piece, number: int, tally: Tally) -> bytes | None:
    """The line a record begins with, blank lines before it passed; None at the end.

    Other lines are passed, and counted as one bad record.
    """
    lost = False
    while line := stream.readline(_LONGEST_HEADER):
        if line.startswith(_VERSIONS):
            return line
        if line.strip() and not lost:
            lost = True
            if number == 0:
                raise BadData(
                    f"{piece.name}: not a WARC file: it begins with {line[:40]!r}, expected WARC/1.0",
                    "give the file's true format=NAME",
                )
            tally.bad("no WARC record where one should begin", f"{place(piece, number)} (the record before)")
    return None


class _Record(io.RawIOBase):
    """The header and then the block of one record, read from the archive's stream; it never reads beyond its block."""

    def __init__(self, stream: io.BufferedReader, version: bytes) -> None:
        self.stream = stream
        lines, size = [version], len(version)
        while True:
            line = stream.readline(_LONGEST_HEADER)
            lines.append(line)
            size += len(line)
            if not line.strip() or size > _LONGEST_HEADER:
                break
        self.header = b"".join(lines)
        self.complete = bool(lines[-1])
        length = self._length()
        self.valid = length is not None
        self.left = length or 0

    def _length(self) -> int | None:
        for line in self.header.split(b"\n"):
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                value = value.strip()
                return int(value) if value.isdigit() and len(value) < 16 else None
        return None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(min(len(buffer), self.left))
        buffer[: len(data)] = data
        self.left -= len(data)
        return len(data)

    def finish(self, piece: Piece, number: int) -> None:
        """Pass what was not read of the block.

        Raises:
            BadData: the file ends inside it.
        """
        while self.left and (data := self.stream.read(min(self.left, 1 << 20))):
            self.left -= len(data)
        if self.left or not self.complete:
            raise BadData(
                f"{piece.name}: the file ends inside its record {number}, {self.left:,} bytes before the record's end",
                "fetch or write the file again, or leave it out",
            )


def _document(
    loader: Any, record: _Record, piece: Piece, number: int, options: ReadOptions, tally: Tally
) -> Document | None:
    if not record.valid:
        tally.bad("WARC record without a valid Content-Length", place(piece, number))
        return None
    if record.left == 0:
        tally.left_out["empty"] += 1
        return None
    found = loader.parse_record_stream(_Joined(record), known_format="warc")
    kind = found.rec_type
    if kind == "conversion":
        raw = found.content_stream().read(_limit(options) + 1)
        if len(raw) > _limit(options):
            tally.left_out["longer than max_document_chars"] += 1
            return None
        text, title = _plain(raw, piece, number, options, tally), ""
        if text is None:
            return None
    elif kind == "response":
        page = _page(found, tally)
        if page is None:
            return None
        title, text = page.title, page.text
        if not text:
            tally.left_out["page without text"] += 1
            return None
    else:
        tally.left_out[f"WARC record of type {kind}"[:60]] += 1
        return None
    headers = found.rec_headers
    url = headers.get_header("WARC-Target-URI") or ""
    meta = {
        name: value
        for name, value in (
            ("title", title),
            ("date", headers.get_header("WARC-Date")),
            ("languages", headers.get_header("WARC-Identified-Content-Language")),
        )
        if value
    }
    identity = url.strip("<> ") or headers.get_header("WARC-Record-ID") or ""
    return Document(identity, text, piece.name, encode_meta(meta) if meta else "{}", line=number)


def _limit(options: ReadOptions) -> int:
    return 4 * options.max_document_chars  # UTF-8 has at most four bytes for a character


def _plain(raw: bytes, piece: Piece, number: int, options: ReadOptions, tally: Tally) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        if options.invalid_utf8 == "replace":
            tally.repaired["invalid UTF-8"] += 1
            return raw.decode("utf-8", "replace")
        tally.bad(
            "invalid UTF-8",
            place(piece, number),
            "set invalid_utf8=replace, or allow some to be left out with max_bad_records=N",
        )
        return None


def _page(found: Any, tally: Tally) -> Any:
    """The page of a response, or None where it is counted as skipped."""
    http = found.http_headers
    if http is None:
        tally.left_out["WARC response that is not HTTP"] += 1
        return None
    if not http.get_statuscode().startswith("2"):
        tally.left_out["HTTP status other than 2xx"] += 1
        return None
    kind = http.get_header("content-type") or ""
    if kind and not kind.lower().startswith(_HTML):
        tally.left_out["page that is not HTML"] += 1
        return None
    encoding = (http.get_header("content-encoding") or "").strip().lower()
    if encoding not in ("", "identity", "gzip", "deflate"):
        tally.left_out["page in an encoding other than gzip and deflate"] += 1
        return None
    raw = _read(found.content_stream(), _PAGE_BYTES + 1)
    if len(raw) > _PAGE_BYTES:
        tally.left_out["page of more than 16 MiB"] += 1
        return None
    html, replaced = decode_page(raw, kind)
    tally.repaired["page with bytes that are not in its charset"] += replaced
    return read_page(html)


def _read(stream: Any, size: int) -> bytes:
    """Up to `size` bytes; warcio's readers give what they have at hand."""
    blocks, left = [], size
    while left and (block := stream.read(min(left, 1 << 16))):
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


class _Joined:
    """A record's header, then its block, as the stream that warcio parses: `read`, `readline` and `tell`."""

    def __init__(self, record: _Record) -> None:
        self.header = io.BytesIO(record.header)
        self.block = io.BufferedReader(record, 1 << 14)
        self.at = 0

    def read(self, size: int = -1) -> bytes:
        data = self.header.read(size) or self.block.read(size)
        self.at += len(data)
        return data

    def readline(self, size: int = -1) -> bytes:
        limit = size if size is not None and 0 <= size < _LONGEST_HEADER else _LONGEST_HEADER
        data = self.header.readline(limit) or self.block.readline(limit)
        self.at += len(data)
        return data

    def tell(self) -> int:
        return self.at
