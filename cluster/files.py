"""Files wherever they are: listing, opening and fingerprinting local paths and fsspec URLs.

A fingerprint names data by content, never by place: base name, size and checksum. So a corpus keeps
its identity when its folder moves, and loses it when a byte changes.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from cluster.errors import BadConfig, BadData

_BLOCK = 1 << 20
_SETTLED_SECONDS = 0.1  # a file younger than this may change again within one tick of its clock
_REMOTE_HASH_BYTES = 64 << 20  # remote files without a checksum are read up to this size
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz", b"BZh": "bz2"}
COMPRESSION_SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".xz": "xz", ".bz2": "bz2"}


def is_remote(url: str) -> bool:
    """Whether `url` is an fsspec URL other than `file://`."""
    return "://" in url and not url.startswith(("file://", "local://"))


def local_path(url: str) -> Path:
    """The path behind a local URL or plain path, `~` expanded."""
    return Path(url.split("://", 1)[1] if "://" in url else url).expanduser()


def base_name(url: str) -> str:
    """The last part of a path or URL, without query or fragment where it is remote."""
    if is_remote(url):
        url = url.split("?", 1)[0].split("#", 1)[0]
    return url.rstrip("/").rsplit("/", 1)[-1]


def expand(source: str | Iterable[str], field: str = "source") -> list[str]:
    """The files that a path, URL, glob, folder, comma list or list of these stands for.

    Lists keep their order; globs and folders (read with their subfolders, hidden files left out) are sorted.

    Raises:
        BadConfig: nothing is there; names `field`, the path, and the nearest existing name.
    """
    files: list[str] = []
    for url in split_list(source):
        files += _expand_remote(url, field) if is_remote(url) else _expand_local(url, field)
    if not files:
        raise BadConfig(f"{field}: no file named", "give a path, a URL or a glob")
    return files


def split_list(source: str | Iterable[str]) -> list[str]:
    """A comma list as a list; a single name that holds a comma is kept where such a file exists."""
    if not isinstance(source, str):
        return [url for each in source for url in split_list(each)]
    if "," in source and not is_remote(source) and local_path(source).exists():
        return [source]
    return [part.strip() for part in source.split(",") if part.strip()]


def _expand_local(url: str, field: str) -> list[str]:
    path = local_path(url)
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        found = sorted(
            str(p)
            for p in path.rglob("*")
            if p.is_file() and not any(s.startswith(".") for s in p.relative_to(path).parts)
        )
        if not found:
            raise BadConfig(f"{field}: folder {url} holds no files", "name a folder with files, or a file")
        return found
    if any(c in url for c in "*?["):
        import glob

        found = sorted(p for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not found:
            raise BadConfig(f"{field}: no file matches {url}", nearest(path.parent / "x"))
        return found
    raise BadConfig(f"{field}: no such file: {url}", nearest(path))


def nearest(path: Path) -> str:
    """A sentence that names the existing file closest to a path that does not exist."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    try:
        names = sorted(os.listdir(parent))
    except OSError:
        names = []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {parent / near[0]}?"
    shown = ", ".join(names[:5]) + ("…" if len(names) > 5 else "")
    return f"{parent} holds: {shown}" if names else f"{parent} is empty"


def _filesystem(url: str, field: str) -> tuple[Any, str]:
    import fsspec

    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url))
    except (ValueError, ImportError) as error:
        raise BadConfig(
            f"{field}: {url} cannot be opened: {error}", "use a URL that fsspec knows, as s3:// or https://"
        ) from None


def _expand_remote(url: str, field: str) -> list[str]:
    fs, path = _filesystem(url, field)
    try:
        if any(c in path for c in "*[") or ("?" in path and not url.startswith("http")):
            found = sorted(fs.glob(path))
        elif url.startswith("http") or not fs.isdir(path):
            if not fs.exists(path):
                raise FileNotFoundError(url)
            return [url]
        else:
            found = sorted(fs.find(path))
    except FileNotFoundError:
        raise BadConfig(f"{field}: no such file: {url}", _nearest_remote(fs, path)) from None
    except BadConfig:
        raise
    except Exception as error:  # every backend has errors of its own
        raise BadConfig(f"{field}: {url} cannot be read: {error}", "check the URL and the credentials") from None
    if not found:
        raise BadConfig(f"{field}: no file matches {url}", _nearest_remote(fs, path))
    return [fs.unstrip_protocol(p) for p in found]


def _nearest_remote(fs: Any, path: str) -> str:
    try:
        names = [str(p).rsplit("/", 1)[-1] for p in fs.ls(path.rsplit("/", 1)[0], detail=False)]
    except Exception:  # the folder may not exist or not be listable; the message stands without the hint
        return "check the URL"
    near = difflib.get_close_matches(path.rsplit("/", 1)[-1], names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "check the URL"


# ---------------------------------------------------------------- fingerprints


def fingerprint(source: str | Iterable[str], field: str = "source") -> list[dict[str, Any]]:
    """`[{name, size, checksum}]` of the files behind `source`, in order: JSON, free of places and times.

    Local files are hashed (BLAKE2b) once; the checksum is kept in the user's cache under path, size,
    modification time and inode, so asking again costs a stat. Remote files answer with the store's own
    checksum or ETag; where a store has none, small files are read and large ones go by size.

    Raises:
        BadConfig: a file is missing or unreadable.
    """
    return [_remote_print(url, field) if is_remote(url) else _local_print(url, field) for url in expand(source, field)]


def cache_folder() -> Path:
    """The user's cache folder of the project: $TRIPTYCH_CACHE, or `triptych` below the system's."""
    if own := os.environ.get("TRIPTYCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych"


def _local_print(url: str, field: str) -> dict[str, Any]:
    path = local_path(url).absolute()
    try:
        stat = path.stat()
        seal = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        # One small file per path: processes never rewrite each other's entries.
        entry = (
            cache_folder() / "checksums" / (hashlib.blake2b(str(path).encode(), digest_size=16).hexdigest() + ".json")
        )
        checksum = _cached(entry, seal)
        if checksum is None:
            checksum = _hash(path)
            after = path.stat()
            if [after.st_size, after.st_mtime_ns, after.st_ino] != seal:
                raise BadConfig(f"{field}: {url} changed while it was read", "wait until its writer is done")
            if time.time() - stat.st_mtime > _SETTLED_SECONDS:
                _remember(entry, seal, checksum)
    except OSError as error:
        raise BadConfig(
            f"{field}: {url} cannot be read: {error.strerror or error}", "check the file's permissions"
        ) from None
    return {"name": path.name, "size": stat.st_size, "checksum": checksum}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return "blake2b:" + hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).hexdigest()


def _cached(entry: Path, seal: list[int]) -> str | None:
    try:
        found = json.loads(entry.read_text())
        return str(found["checksum"]) if found["seal"] == seal else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(entry: Path, seal: list[int], checksum: str) -> None:
    """Store a checksum atomically; a cache that cannot be written only costs time."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=entry.parent, prefix=entry.name)
        with os.fdopen(handle, "w") as file:
            json.dump({"seal": seal, "checksum": checksum}, file)
        os.replace(temporary, entry)
    except OSError:
        pass


def _remote_print(url: str, field: str) -> dict[str, Any]:
    fs, path = _filesystem(url, field)
    try:
        info = fs.info(path)
        size = info.get("size")
        checksum = ""
        for name in ("ETag", "etag", "md5Hash", "crc32c", "sha256", "checksum", "blob_id"):
            if info.get(name):
                checksum = f"{name.lower()}:{str(info[name]).strip(chr(34))}"
                break
        if not checksum and size is not None and size <= _REMOTE_HASH_BYTES:
            digest = hashlib.blake2b(digest_size=20)
            with fs.open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
            checksum = "blake2b:" + digest.hexdigest()
    except Exception as error:  # every backend has errors of its own
        raise BadConfig(f"{field}: {url} cannot be read: {error}", "check the URL and the credentials") from None
    return {"name": base_name(url), "size": size, "checksum": checksum}


# ---------------------------------------------------------------- opening


def open_plain(url: str) -> BinaryIO:
    """The file's bytes as they lie (seekable)."""
    try:
        if not is_remote(url):
            return cast(BinaryIO, local_path(url).open("rb"))
        fs, path = _filesystem(url, "source")
        return cast(BinaryIO, fs.open(path, "rb"))
    except OSError as error:
        raise BadData(
            f"{url} cannot be read: {error.strerror or error}", "check that it exists and may be read"
        ) from None


def open_stream(url: str) -> io.BufferedReader:
    """The file's bytes, decompressed by its magic number (gzip, zstd, xz, bz2), not by its suffix.

    A damaged or cut-off stream raises BadData on the read that meets the damage, naming file and position.
    """
    plain = open_plain(url)
    head = plain.read(6)
    plain.seek(0)
    codec = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")
    return io.BufferedReader(_Checked(plain, codec, url), buffer_size=_BLOCK)


class _Checked(io.RawIOBase):
    """A decompressing stream whose errors name the file and how far it could be read."""

    def __init__(self, plain: BinaryIO, codec: str, url: str) -> None:
        self.plain, self.codec, self.url, self.position = plain, codec, url, 0
        self.inner = self._inner()

    def _inner(self) -> Any:
        if self.codec == "gzip":
            import gzip

            return gzip.GzipFile(fileobj=self.plain, mode="rb")
        if self.codec == "xz":
            import lzma

            return lzma.LZMAFile(self.plain)
        if self.codec == "bz2":
            import bz2

            return bz2.BZ2File(self.plain)
        if self.codec == "zstd":
            import pyarrow

            return pyarrow.CompressedInputStream(pyarrow.PythonFile(self.plain, mode="r"), "zstd")
        return self.plain

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import lzma
        import zlib

        try:
            data = self.inner.read(len(buffer))
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
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


def names(urls: Sequence[str]) -> list[str]:
    """Base names, made unique by `~2`, `~3` where files of several folders share one."""
    seen: dict[str, int] = {}
    result = []
    for url in urls:
        name = base_name(url)
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}~{seen[name]}")
    return result
