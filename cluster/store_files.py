"""The files of an artifact as data: relative path, size and BLAKE2b of each, and one digest of all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from cluster.errors import BadData, UserError
from cluster.store_local import walk

_DIGEST_BYTES = 32
_BLOCK = 1 << 20
_PARALLEL_BYTES = 32 << 20
_KEY = re.compile(r"^[0-9a-f]{32,64}$")
_FOLDER = re.compile(r"^artifacts/([0-9a-f]{2})/(\1[0-9a-f]{30,62})/a[0-9]{6}$")


def encode(value: Any) -> bytes:
    """JSON bytes on one line, keys sorted (indenting costs ten times as much)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def checked_key(key: str) -> str:
    """`key` if it is 32 to 64 lower-case hexadecimal digits. Raises ValueError: keys are made by the engine."""
    if not isinstance(key, str) or not _KEY.match(key):
        raise ValueError(f"not a key of an artifact: {key!r} (expected 32 to 64 hexadecimal digits)")
    return key


def checked_path(path: str) -> str:
    """`path` if it stays inside the folder that it is relative to.

    Raises:
        UserError: absolute, with `..`, an empty part, a backslash, a control character, or not UTF-8.
    """
    try:
        path.encode()
        bad = path.startswith("/") or "\\" in path or any(ord(letter) < 32 for letter in path)
        bad = bad or any(part in ("", ".", "..") for part in path.split("/"))
    except UnicodeEncodeError:
        bad = True
    if bad:
        raise UserError(
            f"{path!r} is no name for a file in a store", "use a relative path of plain names, without '..'"
        )
    return path


def checked_folder(manifest: Mapping[str, Any]) -> str:
    """The manifest's attempt folder, relative to the store.

    Raises:
        UserError: it is missing, or points elsewhere than to an artifact's attempt.
    """
    folder = manifest.get("folder")
    if not isinstance(folder, str) or not _FOLDER.match(folder):
        raise UserError(
            f"the manifest of {manifest.get('key', '?')} names the folder {folder!r}, "
            "expected artifacts/<2>/<key>/a<number>",
            "the manifest is damaged: run the stage again with --force",
        )
    return folder


def checksum(path: str | os.PathLike[str]) -> str:
    """BLAKE2b of a local file's bytes, 64 hexadecimal digits."""
    with open(path, "rb", buffering=0) as file:
        return checksum_of(file)


def checksum_of(file: Any) -> str:
    """BLAKE2b of an open binary file, read to its end."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def content_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One BLAKE2b over the sorted paths and checksums: equal for byte-identical artifacts."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name in sorted(files):
        digest.update(f"{name}\0{files[name]['blake2b']}\n".encode())
    return digest.hexdigest()


def describe(
    folder: str | os.PathLike[str], known: MutableMapping[tuple[int, int, int], str] | None = None
) -> dict[str, dict[str, Any]]:
    """{relative path: {"size": bytes, "blake2b": hex}} of a folder's files, sorted by path.

    Args:
        known: checksums by (inode, size, time of change in ns) of files that are not written again: looked up, and
            added to.

    Raises:
        BadData: a symbolic link, pipe or socket (an artifact must stand alone), or a name that is not UTF-8.
        FileNotFoundError: no such folder.
    """
    found: list[tuple[str, str, int]] = []
    identity: dict[str, tuple[int, int, int]] = {}
    for name, entry in walk(os.fspath(folder)):
        facts = entry.stat(follow_symlinks=False)
        identity[entry.path] = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if not stat.S_ISREG(facts.st_mode):
            raise BadData(
                f"{entry.path} is a link or special file; an artifact holds plain files", "write a copy instead"
            )
        try:
            checked_path(name)
        except UserError as error:
            raise BadData(error.message, "rename the file") from error
        found.append((name, entry.path, facts.st_size))
    found.sort()

    def summed(path: str) -> str:
        return (known or {}).get(identity[path]) or checksum(path)

    if len(found) > 1 and sum(size for _, _, size in found) > _PARALLEL_BYTES:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing runs without the interpreter's lock
            sums = list(pool.map(summed, [path for _, path, _ in found]))
    else:
        sums = [summed(path) for _, path, _ in found]
    if known is not None:
        known.update((identity[path], digest) for (_, path, _), digest in zip(found, sums, strict=True))
    return {name: {"size": size, "blake2b": digest} for (name, _, size), digest in zip(found, sums, strict=True)}


def compare(
    expected: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int], read_checksum: Any, *, deep: bool = True
) -> list[str]:
    """Differences between a manifest's files and what is there, as sentences.

    Args:
        expected: the manifest's `files`.
        sizes: {relative path: bytes} of the files found.
        read_checksum: function of a relative path, giving the BLAKE2b of the file found.
        deep: also compare checksums, where the sizes agree.
    """
    problems = [f"{name}: missing" for name in expected if name not in sizes]
    for name, size in sizes.items():
        facts = expected.get(name)
        if facts is None:
            problems.append(f"{name}: unexpected file")
        elif size != facts["size"]:
            problems.append(f"{name}: {size} bytes, expected {facts['size']}")
        elif deep and (found := read_checksum(name)) != facts["blake2b"]:
            problems.append(f"{name}: checksum {found[:12]}…, expected {facts['blake2b'][:12]}…")
    return sorted(problems)


def local_differences(files: Mapping[str, Mapping[str, Any]], folder: Path, *, deep: bool = True) -> list[str]:
    """`compare` with a local folder."""
    sizes = {name: entry.stat(follow_symlinks=False).st_size for name, entry in walk(str(folder))}
    return compare(files, sizes, lambda name: checksum(folder / name), deep=deep)
