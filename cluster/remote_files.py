"""Files behind fsspec URLs: listing them, what names their content, and reading that survives a cut connection."""

from __future__ import annotations

import difflib
import hashlib
import io
import time
from contextlib import suppress
from typing import Any, cast

from cluster.errors import BadConfig, BadData, Unreachable

_BLOCK = 1 << 20
_HASHED_BYTES = 64 << 20  # files of a server that gives no checksum are read up to this size
_CHECKSUMS = ("ETag", "etag", "md5Hash", "crc32c", "sha256", "checksum", "blob_id", "Content-MD5", "Digest")
_TIMES = ("LastModified", "updated", "mtime", "Last-Modified", "created")  # where there is no checksum
_PAUSES_SECONDS = (0.2, 1.0, 3.0)  # before a broken connection is opened again
_REMEDY = "check the URL, the network and the credentials"
_FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotImplementedError,
)  # asking again helps none of these


def filesystem(url: str, field: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it.

    Raises:
        BadConfig: no file system is known by that protocol, or it refuses the URL.
    """
    import fsspec

    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url))
    except Exception as error:  # every backend has errors of its own, hf:// one for each kind of wrong path
        raise BadConfig(
            f"{field}: {url} cannot be opened: {_said(error)}",
            "use a URL that fsspec knows, as s3://, gs://, https:// or hf://datasets/OWNER/NAME/FILE",
        ) from None


def expand_remote(url: str, field: str) -> list[tuple[str, dict[str, Any]]]:
    """(URL, what the server says of it) of the files that a URL, glob or folder stands for, sorted.

    Raises:
        BadConfig: nothing is there, or the server does not answer.
    """
    fs, path = filesystem(url, field)
    try:
        fs.invalidate_cache()  # a listing that is remembered would hide what changed since
        if any(c in path for c in "*[") or ("?" in path and not url.startswith("http")):
            found = {p: i for p, i in fs.glob(path, detail=True).items() if i.get("type") != "directory"}
        elif url.startswith("http") or not fs.isdir(path):
            return [(url, fs.info(path))]
        else:
            found = fs.find(path, detail=True)
            found = {p: i for p, i in found.items() if not _hidden(p[len(path.rstrip("/")) :])}
    except FileNotFoundError:
        raise BadConfig(f"{field}: no such file: {url}", _nearest(fs, path)) from None
    except BadConfig:
        raise
    except Exception as error:
        raise BadConfig(f"{field}: {url} cannot be read: {_said(error)}", _REMEDY) from None
    if not found:
        raise BadConfig(f"{field}: no file matches {url}", _nearest(fs, path))
    return [(fs.unstrip_protocol(p), found[p]) for p in sorted(found)]


def _hidden(inside: str) -> bool:
    return any(part[:1] in (".", "_") for part in inside.split("/"))


def _nearest(fs: Any, path: str) -> str:
    try:
        names = [str(p).rsplit("/", 1)[-1] for p in fs.ls(path.rsplit("/", 1)[0], detail=False)]
    except Exception:  # the folder may not exist or not be listable; the message stands without the hint
        return "check the URL"
    near = difflib.get_close_matches(path.rsplit("/", 1)[-1], names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "check the URL"


def _said(error: Exception) -> str:
    """The first line of what a backend says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def size_and_stamp(url: str, info: dict[str, Any] | None, field: str) -> tuple[int, str]:
    """(bytes, -1 if unknown; what changes when the file does) of a remote file; asks where `info` does not say.

    Raises:
        BadConfig: it is gone, or the server does not answer.
    """
    if info is None or info.get("size") is None:
        fs, path = filesystem(url, field)
        try:
            fs.invalidate_cache()
            info = dict(fs.info(path))
        except Exception as error:
            raise BadConfig(f"{field}: {url} cannot be read: {_said(error)}", _REMEDY) from None
    size = info.get("size")
    return (-1 if size is None else int(size)), _first(info, _CHECKSUMS) or _first(info, _TIMES)


def _first(info: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((f"{name.lower()}:{str(info[name]).strip(chr(34))}" for name in names if info.get(name)), "")


def remote_print(url: str, info: dict[str, Any], name: str, field: str) -> dict[str, Any]:
    """`{name, size, checksum}` of a remote file: the server's own checksum or ETag where it has one.

    Otherwise files of up to 64 MiB are read, and larger ones go by size and time of change.

    Raises:
        BadConfig: it cannot be read.
    """
    fs, path = filesystem(url, field)
    try:
        if "size" not in info:
            info = dict(fs.info(path))
        size = info.get("size")
        checksum = _first(info, _CHECKSUMS)
        if not checksum and size is not None and size <= _HASHED_BYTES:
            digest = hashlib.blake2b(digest_size=20)
            with open_remote(url, field) as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
            checksum = "blake2b:" + digest.hexdigest()
    except Exception as error:
        raise BadConfig(f"{field}: {url} cannot be read: {_said(error)}", _REMEDY) from None
    return {"name": name, "size": size, "checksum": checksum or _first(info, _TIMES)}


def open_remote(url: str, field: str = "source") -> io.BufferedReader:
    """The file's bytes, read ahead block by block; seekable where the server can read from the middle.

    A connection that breaks is opened again, three times in a row, and read on from where it broke.

    Raises:
        BadData: the file is not there, now or on a later read.
        Unreachable: the server gives no answer any more; a stage is tried again for that.
    """
    return io.BufferedReader(_Remote(url, field), buffer_size=_BLOCK)


class _Remote(io.RawIOBase):
    """A remote file that is opened again at the same place when its connection breaks."""

    def __init__(self, url: str, field: str) -> None:
        self.url, self.at = url, 0
        self.file: Any = None
        self.fs, self.path = filesystem(url, field)
        self._again(self._open)
        self.size: int | None = getattr(self.file, "size", None)
        self.seeks = self.size is not None and not type(self.file).__name__.endswith("StreamFile")
        if self.size is None:  # a stream: its end is told from a cut by the length that the server announced
            self.size = self._again(lambda: self.fs.info(self.path).get("size"))

    def _open(self) -> None:
        self._drop()
        self.file = self.fs.open(self.path, "rb")
        if self.at:
            try:
                self.file.seek(self.at)
            except (ValueError, OSError):  # it only streams: read up to the place again
                left = self.at
                while left and (block := self.file.read(min(left, _BLOCK))):
                    left -= len(block)

    def _drop(self) -> None:
        if self.file is not None:
            with suppress(Exception):  # it is broken; nothing can be done with it
                self.file.close()
            self.file = None

    def _again(self, act: Any) -> Any:
        last: Exception | None = None
        for pause in (*_PAUSES_SECONDS, None):
            try:
                if self.file is None and act != self._open:
                    self._open()
                return act()
            except FileNotFoundError:
                raise BadData(f"{self.url} cannot be read: no such file", "check that it exists") from None
            except _FINAL as error:
                raise BadData(f"{self.url} cannot be read: {_said(error)}", _REMEDY) from None
            except Exception as error:
                last = error
                self._drop()
                if pause is not None:
                    time.sleep(pause)
        assert last is not None
        raise Unreachable(f"{self.url}: the connection broke at byte {self.at:,}: {_said(last)}", _REMEDY) from None

    def _read(self, count: int) -> bytes:
        data = cast(bytes, self.file.read(count))
        if not data and self.size is not None and self.at < self.size:
            raise ConnectionError(f"{self.at:,} of {self.size:,} bytes came")
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.seeks

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if not self.seeks:
            raise io.UnsupportedOperation("this server cannot read from the middle of a file")
        self.at = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size or 0}[whence] + offset
        self._again(lambda: self.file.seek(self.at))
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        count = len(buffer)
        if self.seeks:
            count = min(count, max(0, (self.size or 0) - self.at))
        data = self._again(lambda: self._read(count)) if count else b""
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()
