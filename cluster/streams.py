"""Compressed streams as plain bytes: gzip, zstd, xz and bz2, of any number of members, damage named by its place."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from cluster.errors import BadData
from cluster.files import open_plain

_BLOCK = 1 << 20
_INPUT_BYTES = 1 << 18  # of compressed data taken at a time
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz", b"BZh": "bz2"}
LONGEST_MAGIC = 6


def codec_of(head: bytes) -> str:
    """The compression that a file's first bytes show; empty if none."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), "")


def open_stream(url: str) -> io.BufferedReader:
    """The file's bytes, decompressed by its magic number (gzip, zstd, xz, bz2), not by its suffix.

    A damaged or cut-off stream raises BadData on the read that meets the damage, naming file and position.
    """
    plain = open_plain(url)
    codec = codec_of(plain.peek(LONGEST_MAGIC)[:LONGEST_MAGIC])
    return io.BufferedReader(_Content(plain, codec, url), buffer_size=_BLOCK)


class _Content(io.RawIOBase):
    """A stream of content whose errors name the file and how far it could be read."""

    def __init__(self, plain: io.BufferedReader, codec: str, url: str) -> None:
        self.plain, self.codec, self.url, self.position = plain, codec, url, 0
        self.inner: Any = plain
        if codec == "zstd":
            import pyarrow

            self.inner = pyarrow.CompressedInputStream(pyarrow.PythonFile(plain, mode="r"), "zstd")
        elif codec:
            self.inner = _Members(plain, codec)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import lzma
        import zlib

        try:
            data = self.inner.read(len(buffer))
        except (OSError, EOFError, zlib.error, lzma.LZMAError, MemoryError) as error:
            what = f"{self.codec} stream is broken or cut off" if self.codec else "cannot be read"
            raise BadData(
                f"{self.url}: {what} after {self.position:,} bytes of content: {error}",
                "fetch or write the file again, or leave it out",
            ) from None
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            if self.inner is not self.plain:
                self.inner.close()
            self.plain.close()
        super().close()


class _Members:
    """Gzip, xz or bz2 members one after the other, as one text; memory is bounded whatever they expand to.

    Zero bytes behind a gzip or xz member are padding (RFC 1952 leaves them to the reader; xz's format asks for them);
    anything else there must be a further member. The standard library's file classes do the same, in blocks of 8 KB.
    """

    def __init__(self, plain: BinaryIO, codec: str) -> None:
        self.plain, self.codec = plain, codec
        self.member: Any = self._new()
        self.waiting = b""  # compressed bytes that are not taken yet
        self.fresh = True  # nothing was given to the member

    def _new(self) -> Any:
        if self.codec == "gzip":
            return _Gzip()
        if self.codec == "xz":
            import lzma

            return lzma.LZMADecompressor()
        import bz2

        return bz2.BZ2Decompressor()

    def read(self, count: int) -> bytes:
        while True:
            if self.member.eof:
                rest = self.member.unused_data or self.waiting
                self.member, self.waiting, self.fresh = self._new(), rest, True
            if self.fresh:
                self.waiting = self._unpadded()
                if not self.waiting:
                    return b""
            if self.member.needs_input and not self.waiting:
                self.waiting = self.plain.read(_INPUT_BYTES)
                if not self.waiting:
                    raise EOFError("the file ends before its end-of-stream marker")
            taken, self.waiting, self.fresh = self.waiting, b"", False
            data: bytes = self.member.decompress(taken, count)
            if data:
                return data

    def _unpadded(self) -> bytes:
        """What follows zero padding; empty at the end of the file."""
        while True:
            self.waiting = self.waiting or self.plain.read(_INPUT_BYTES)
            if not self.waiting or self.codec == "bz2":
                return self.waiting
            rest = self.waiting.lstrip(b"\0")
            if rest:
                return rest
            self.waiting = b""

    def close(self) -> None:
        pass


class _Gzip:
    """zlib's decompressor of one gzip member (its check sum verified) with the interface of the others."""

    def __init__(self) -> None:
        import zlib

        self.inner = zlib.decompressobj(31)  # 31: a gzip header, and the largest window
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self.inner.eof

    @property
    def unused_data(self) -> bytes:
        return self.inner.unused_data

    def decompress(self, data: bytes, count: int) -> bytes:
        tail = self.inner.unconsumed_tail
        out = self.inner.decompress(tail + data if tail else data, count)
        # a full buffer may leave more inside, though all input is taken
        self.needs_input = len(out) < count and not self.inner.unconsumed_tail
        return out
