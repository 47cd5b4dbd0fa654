"""Lines of UTF-8 files, a block at a time: whole streams, and byte ranges of plain files.

A line belongs to the range that holds its first byte, so ranges that cover a file give each line once. A line longer
than any document may be is left out without being held. Bytes that are not UTF-8 follow `invalid_utf8`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cluster.errors import BadData
from cluster.files import open_plain
from cluster.streams import open_stream
from tasks.sources.base import Piece, ReadOptions, Tally, place

_BLOCK = 1 << 20
_PLACES = 5
_OTHERS = {b"PAR1": ("Parquet", "parquet"), b"ARROW1": ("Arrow", "arrow"), b"WARC/": ("WARC", "warc")}
_UTF8_REMEDY = "convert the file to UTF-8, or set invalid_utf8=replace, or invalid_utf8=skip with max_bad_records=N"


class Lines:
    """The lines of a piece, in order; a context manager.

    Args:
        without_nul: drop NUL bytes, and count them as repaired.

    Raises, when it is opened or read:
        BadData: the file is of another kind; invalid UTF-8 where `invalid_utf8` is `error`, with the count and first
            lines; a broken stream; or more bad records than allowed.
    """

    def __init__(self, piece: Piece, options: ReadOptions, tally: Tally, without_nul: bool = False) -> None:
        self.piece, self.options, self.tally, self.without_nul = piece, options, tally, without_nul
        self.number = 0
        """Lines read so far."""
        self.rest = b""  # read, but not given yet
        self.at = 0  # of the first byte of `rest` in the file's content
        self.begins: Callable[[str], bool] | None = None
        self.stream = open_plain(piece.url) if piece.start else open_stream(piece.url)
        if piece.start:
            self.at = piece.start - 1
            self.stream.seek(self.at)
            if self._seek_newline():
                self.at += 1
        else:
            self._check_kind()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        if self.piece.end >= 0:
            self.tally.lines = self.number

    def head(self, size: int) -> bytes:
        """The first `size` bytes of the content, before any line is read."""
        while len(self.rest) < size and (block := self.stream.read(_BLOCK)):
            self.rest += block
        return self.rest[:size]

    def _check_kind(self) -> None:
        head = self.head(8)
        for magic, (kind, name) in _OTHERS.items():
            if head.startswith(magic):
                raise BadData(f"{self.piece.name} is a {kind} file, not lines of text", f"set format={name}")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise BadData(f"{self.piece.name} is UTF-16, expected UTF-8", "convert it (iconv -f UTF-16 -t UTF-8)")
        if head.startswith(b"\xef\xbb\xbf"):
            self.rest, self.at = self.rest[3:], 3

    def _seek_newline(self) -> bool:
        """Go behind the next newline but one byte: `at` is the newline's place; False at the end of the file."""
        while block := self.rest or self.stream.read(_BLOCK):
            found = block.find(b"\n")
            if found >= 0:
                self.rest, self.at = block[found + 1 :], self.at + found
                return True
            self.rest, self.at = b"", self.at + len(block)
        return False

    # ------------------------------------------------------------ reading

    def until(self, end: int | None = None) -> Iterator[tuple[int, str]]:
        """(line number from 1, text without its line end) of the lines that begin before byte `end`, or of all."""
        while chunk := self._chunk(end):
            try:
                text = chunk.decode()
            except UnicodeDecodeError:
                yield from self._one_by_one(chunk)
                continue
            if self.without_nul and "\0" in text:
                self.tally.repaired["NUL bytes"] += text.count("\0")
                text = text.replace("\0", "")
            lines = text.split("\n")
            if not lines[-1]:
                lines.pop()  # what is behind the last newline
            if "\r" in text:
                lines = [line.rstrip("\r") for line in lines]
            number = self.number
            for line in lines:
                number += 1
                self.number = number
                yield number, line

    def _chunk(self, end: int | None, silent: bool = False) -> bytes:
        """Whole lines that begin before `end`; only the file's last may lack its newline. Empty where there is none."""
        longest = self.options.longest_line
        while True:
            if end is not None and self.at >= end:
                return b""
            cut = self.rest.rfind(b"\n") + 1
            if len(self.rest) > longest and (self.rest.find(b"\n") if cut else len(self.rest)) > longest:
                self._leave_out_line(silent)
                continue
            if cut:
                break
            block = self.stream.read(_BLOCK)
            if not block:
                cut = len(self.rest)
                break
            self.rest += block
        if end is not None and self.at + cut > end:
            first_beyond = self.rest.find(b"\n", max(0, end - 1 - self.at)) + 1
            cut = first_beyond or cut
        chunk, self.rest = self.rest[:cut], self.rest[cut:]
        self.at += cut
        return chunk

    def _leave_out_line(self, silent: bool) -> None:
        if self._seek_newline():
            self.at += 1
        self.number += 1
        if not silent:
            shown = f"a line of more than {self.options.longest_line / (1 << 20):,.0f} MiB"
            self.tally.bad(
                shown, place(self.piece, self.number), "check the format; or allow larger ones: max_document_chars=N"
            )

    def _decoded(self, line: bytes) -> str | None:
        """One line under the policy; None: it must be left out."""
        try:
            text = line.decode()
        except UnicodeDecodeError:
            if self.options.invalid_utf8 != "replace":
                return None
            text = line.decode("utf-8", "replace")
        return (text.replace("\0", "") if self.without_nul else text).rstrip("\r\n")

    def beyond(self, begins: Callable[[str], bool]) -> Iterator[tuple[int, str]]:
        """The lines before the next one that `begins` accepts: those of a document that goes on beyond its piece."""
        while chunk := self._chunk(None):
            for line in _split(chunk):
                text = self._decoded(line)
                if text is not None and begins(text):
                    return
                yield from self._one_by_one(line)

    def _one_by_one(self, chunk: bytes) -> Iterator[tuple[int, str]]:
        for line in _split(chunk):
            self.number += 1
            try:
                line.decode()
            except UnicodeDecodeError:
                if self.options.invalid_utf8 == "error":
                    raise self._invalid() from None
                if self.options.invalid_utf8 == "skip":
                    self.tally.bad("invalid UTF-8", place(self.piece, self.number), _UTF8_REMEDY)
                else:
                    self.tally.repaired["invalid UTF-8"] += 1
            text = self._decoded(line)
            if text is None:
                continue
            if self.without_nul and b"\0" in line:
                self.tally.repaired["NUL bytes"] += line.count(b"\0")
            yield self.number, text

    def _invalid(self) -> BadData:
        """The error for bytes that are not UTF-8, after a look at the piece as a whole."""
        bad, number = [], 0
        end = self.piece.end if self.piece.end >= 0 else None
        with Lines(self.piece, self.options, self.tally) as again:
            if self.begins and end is not None:
                again.seek(self.begins, end)
            while chunk := again._chunk(end, silent=True):
                for line in _split(chunk):
                    number = again.number = again.number + 1
                    try:
                        line.decode()
                    except UnicodeDecodeError:
                        bad.append(number)
        bad = bad or [self.number]  # a document's end beyond the piece
        shown = ", ".join(place(self.piece, n).removeprefix(f"{self.piece.name}:") for n in bad[:_PLACES])
        count = f"{len(bad):,} line{'s are' if len(bad) > 1 else ' is'}"
        return BadData(
            f"{self.piece.name}: {count} not valid UTF-8 (line {shown}{'…' if len(bad) > _PLACES else ''}"
            f"{'; more of the file was not looked at' if end is not None else ''}); policy: invalid_utf8=error",
            _UTF8_REMEDY,
        )

    def seek(self, begins: Callable[[str], bool], end: int) -> bool:
        """Go to the first line before byte `end` that `begins` accepts; it is line 1 then. False: there is none."""
        self.begins = begins
        while chunk := self._chunk(end, silent=True):
            done = 0
            for line in _split(chunk):
                text = self._decoded(line)
                if text is not None and begins(text):
                    self.rest, self.at = chunk[done:] + self.rest, self.at - len(chunk) + done
                    self.number = 0
                    return True
                done += len(line)
        self.number = 0
        return False


def _split(chunk: bytes) -> list[bytes]:
    """Lines with their newlines. `splitlines` would also split at carriage returns."""
    lines = [line + b"\n" for line in chunk.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines
