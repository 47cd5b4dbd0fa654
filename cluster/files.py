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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.errors import BadConfig, BadData
from cluster.remote_files import expand_remote, open_remote, remote_print, size_and_stamp

_BLOCK = 1 << 20
_SETTLED_SECONDS = 0.1  # a file younger than this may change again within one tick of its clock
_DATA_SUFFIXES = (".jsonl", ".json", ".txt", ".csv", ".tsv", ".parquet", ".arrow", ".warc", ".wet")
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


class File(NamedTuple):
    """A file as a listing shows it."""

    url: str
    size: int
    """Bytes; -1 where the server does not say."""
    stamp: str
    """Changes when the file does: time of change and inode here, ETag or time of change on a server."""


def expand(source: str | Iterable[str], field: str = "source") -> list[str]:
    """The files that a path, URL, glob, folder, comma list or list of these stands for.

    Lists keep their order; globs and folders are sorted. Folders are read with their subfolders, linked ones too; names
    there that begin with a dot or an underscore (`_SUCCESS`, `.part.crc`) are left out.

    Raises:
        BadConfig: nothing is there; names `field`, the path, and the nearest existing name. Or a file or folder that
            cannot be read is among them.
    """
    return [url for url, _ in _expanded(source, field)]


def listing(source: str | Iterable[str], field: str = "source") -> list[File]:
    """The files of `expand` with their sizes and stamps: what tells whether they changed while they were read.

    Raises:
        BadConfig: as `expand`, or a file that cannot be asked.
    """
    files = []
    for url, info in _expanded(source, field):
        if is_remote(url):
            files.append(File(url, *size_and_stamp(url, info, field)))
            continue
        try:
            stat = local_path(url).stat()
        except OSError as error:
            raise BadConfig(f"{field}: {url} cannot be read: {error.strerror or error}", "check the file") from None
        files.append(File(url, stat.st_size, f"{stat.st_mtime_ns}-{stat.st_ino}"))
    return files


def _expanded(source: str | Iterable[str], field: str) -> list[tuple[str, dict[str, Any] | None]]:
    files: list[tuple[str, dict[str, Any] | None]] = []
    for url in split_list(source):
        files += expand_remote(url, field) if is_remote(url) else [(path, None) for path in _expand_local(url, field)]
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
        found = sorted(p for p in _below(path, field) if _is_there(p, field))
        if not found:
            raise BadConfig(f"{field}: folder {url} holds no files", "name a folder with files, or a file")
        return found
    if any(c in url for c in "*?["):
        import glob

        matched = sorted(glob.glob(str(path), recursive=True))
        found = [p for p in matched if _is_there(p, field)]
        for folder in set(matched).difference(found):
            if folder.lower().endswith((*_DATA_SUFFIXES, *COMPRESSION_SUFFIXES)):
                raise BadConfig(
                    f"{field}: {folder} is a folder, though its name is that of a file; it matches {url}",
                    f"for the files inside, name {folder}/* as well; or rename it",
                )
        if not found:
            raise BadConfig(f"{field}: no file matches {url}", nearest(path.parent / "x"))
        return found
    if path.exists():  # a device, a pipe
        raise BadConfig(f"{field}: {url} is neither a file nor a folder", "name a file, or a folder with files")
    raise BadConfig(f"{field}: no such file: {url}", nearest(path))


def _below(folder: Path, field: str) -> Iterator[str]:
    """What is in a folder and its subfolders, those behind links too, but for names that begin with `.` or `_`.

    Raises:
        BadConfig: a folder that may not be read, or that holds itself by a link.
    """

    def unreadable(error: OSError) -> None:
        raise BadConfig(f"{field}: {error.filename} cannot be read: {error.strerror}", "check the folder's permissions")

    for place, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        folders[:] = [name for name in folders if name[0] not in "._"]
        for inner in (os.path.join(place, name) for name in folders):
            if os.path.islink(inner) and any(os.path.samefile(inner, above) for above in _above(inner, folder)):
                raise BadConfig(f"{field}: {inner} is a link to a folder that it is in", "take the link away")
        yield from (os.path.join(place, name) for name in files if name[0] not in "._")


def _above(path: str, folder: Path) -> list[Path]:
    """The folders that a path below `folder` goes through, `folder` included."""
    return [above for above in Path(path).parents if above.is_relative_to(folder)]


def _is_there(path: str, field: str) -> bool:
    """Whether it is a file.

    Raises:
        BadConfig: it is a link to what is not there, so that a file is missing.
    """
    if os.path.islink(path) and not os.path.exists(path):
        raise BadConfig(
            f"{field}: {path} is a link to {os.readlink(path)}, which is not there", "fetch it, or take the link away"
        )
    return os.path.isfile(path)


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


# ---------------------------------------------------------------- fingerprints


def fingerprint(source: str | Iterable[str], field: str = "source") -> list[dict[str, Any]]:
    """`[{name, size, checksum}]` of the files behind `source`, in order: JSON, free of places and times.

    Local files are hashed (BLAKE2b) once; the checksum is kept in the user's cache under path, size, inode and times
    of modification and of change (the first can be set back), so asking again costs a stat. Remote files answer with
    the store's own checksum or ETag; where a store has none, small files are read and large ones go by size.

    Raises:
        BadConfig: a file is missing or unreadable.
    """
    return [
        remote_print(url, info or {}, base_name(url), field) if is_remote(url) else _local_print(url, field)
        for url, info in _expanded(source, field)
    ]


def cache_folder() -> Path:
    """The user's cache folder of the project: $TRIPTYCH_CACHE, or `triptych` below the system's."""
    if own := os.environ.get("TRIPTYCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych"


def _local_print(url: str, field: str) -> dict[str, Any]:
    path = local_path(url).absolute()
    try:
        stat = path.stat()
        seal = _seal(stat)
        # One small file per path: processes never rewrite each other's entries.
        entry = (
            cache_folder() / "checksums" / (hashlib.blake2b(str(path).encode(), digest_size=16).hexdigest() + ".json")
        )
        checksum = _cached(entry, seal)
        if checksum is None:
            checksum = _hash(path)
            if _seal(path.stat()) != seal:
                raise BadConfig(f"{field}: {url} changed while it was read", "wait until its writer is done")
            if time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_SECONDS:
                _remember(entry, seal, checksum)
    except OSError as error:
        raise BadConfig(
            f"{field}: {url} cannot be read: {error.strerror or error}", "check the file's permissions"
        ) from None
    return {"name": path.name, "size": stat.st_size, "checksum": checksum}


def _seal(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


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


# ---------------------------------------------------------------- opening


def open_plain(url: str) -> io.BufferedReader:
    """The file's bytes as they lie; seekable, but for servers that only stream.

    Raises:
        BadData: it is not there or may not be read.
        Unreachable: a server that does not answer.
    """
    if is_remote(url):
        return open_remote(url)
    try:
        return io.BufferedReader(io.FileIO(local_path(url)), buffer_size=_BLOCK)
    except OSError as error:
        raise BadData(
            f"{url} cannot be read: {error.strerror or error}", "check that it exists and may be read"
        ) from None


def names(urls: Sequence[str]) -> list[str]:
    """Base names, made unique by `~2`, `~3` where files of several folders share one."""
    seen: dict[str, int] = {}
    result = []
    for url in urls:
        name = base_name(url)
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}~{seen[name]}")
    return result
