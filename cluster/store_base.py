"""A store, opened: its URL, its back end, and the small objects that the engine keeps in it."""

from __future__ import annotations

import builtins
import functools
import json
import os
from pathlib import Path
from typing import Any

from cluster import store_errors
from cluster.errors import BadConfig, Unreachable, UserError
from cluster.store_errors import told
from cluster.store_files import checked_path, encode
from cluster.store_local import LocalFiles


@functools.cache
def _temporary_base() -> Path:
    """This user's folder for files on their way to or from remote stores."""
    import tempfile

    base = Path(tempfile.gettempdir()) / f"triptych-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.is_symlink() or base.stat().st_uid != os.getuid():
        raise UserError(f"{base} belongs to another user", "set TMPDIR to a folder of your own")
    return base


def cache_bound() -> int:
    """Bytes that this machine's copies of remote artifacts may take: TRIPTYCH_CACHE_GB (10⁹ bytes), 50 by default.

    Raises:
        BadConfig: the variable is no positive number.
    """
    text = os.environ.get("TRIPTYCH_CACHE_GB") or "50"
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e9:
        raise BadConfig(f"TRIPTYCH_CACHE_GB is {text!r}, expected a positive number", "give gigabytes, as 50")
    return int(found * 1e9)


class OpenStore:
    """A store, opened.

    Args:
        url: a local path, `file://`, `s3://bucket/prefix`, `gs://bucket/prefix`, `memory://name`, … S3
            takes credentials and endpoint from the usual variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …).
        lease_ttl_seconds: a lease whose heartbeat stands still for so long is expired; beat four times as often.
        cache_bytes: bound of this machine's copies of remote artifacts; `cache_bound()` where it is not given.

    Raises:
        Unreachable: bad URL, no permission, no answer.
    """

    def __init__(
        self, url: str | os.PathLike[str], *, lease_ttl_seconds: float = 20, cache_bytes: int | None = None
    ) -> None:
        url = os.fspath(url)
        scheme, found, rest = url.partition("://")
        if "::" in url or not url.strip() or "\0" in url:
            raise Unreachable(
                f"{url!r} is no URL of a store", "use a local path, s3://bucket/prefix, gs://… or memory://name"
            )
        self.in_process = found == "://" and scheme == "memory"
        """The store is this process's own: other processes do not see it."""
        self.local_root: Path | None = None
        """The store's folder where it lies on this machine's file system, else None."""
        self._files: Any
        if not found or scheme in ("file", "local"):
            self.url = os.path.abspath(os.path.expanduser(rest if found else url))
            self._files = LocalFiles(self.url)
            self.local_root = Path(self.url)
        else:
            from cluster.store_remote import open_remote

            self.url = f"{scheme}://{rest.strip('/') or ('store' if self.in_process else '')}"
            self._files = open_remote(self.url)
        self.lease_ttl_seconds = lease_ttl_seconds
        self.cache_bytes = cache_bound() if cache_bytes is None else cache_bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.url, self.lease_ttl_seconds, self.cache_bytes)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def explain(self, error: BaseException) -> UserError | None:
        """What to tell the user about an error met while reading or writing the store's files; None for a bug."""
        free = self._files.free_bytes() if getattr(error, "errno", None) in store_errors.NO_SPACE else None
        return store_errors.explain(error, self.url, free)

    def _temporary(self, kind: str) -> Path:
        import hashlib

        return _temporary_base() / hashlib.blake2b(self.url.encode(), digest_size=8).hexdigest() / kind

    # -- small objects: runs/, accepted/

    def read_text(self, path: str) -> str | None:
        """The file's text, or None where it is absent."""
        data = self.read_bytes(path)
        return None if data is None else data.decode()

    @told
    def read_bytes(self, path: str) -> bytes | None:
        """The file's bytes, or None where it is absent."""
        try:
            return self._files.read(checked_path(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            if store_errors.provider_code(error) == "NoSuchBucket":
                raise
            return None

    def write_text(self, path: str, text: str, *, create: bool = False) -> bool:
        """`write_bytes` of a text."""
        return self.write_bytes(path, text.encode(), create=create)

    @told
    def write_bytes(self, path: str, data: bytes, *, create: bool = False) -> bool:
        """Make or replace the file, at once. With `create`, only if it is absent: else False, and nothing changed."""
        if checked_path(path).split("/")[0] in ("artifacts", "store.json"):
            raise ValueError(f"{path} is the store's own")
        if create:
            return self._files.create(path, data)
        self._files.write(path, data)
        return True

    def read_json(self, path: str) -> Any:
        """The file's JSON value, or None where it is absent. Raises UserError where it is damaged."""
        text = self.read_text(path)
        if text is None:
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise UserError(f"{path} in the store {self.url} is damaged: {error}", "delete the file") from error

    def write_json(self, path: str, value: Any, *, create: bool = False) -> bool:
        """`write_text` of a JSON value, keys sorted."""
        return self.write_text(path, encode(value).decode(), create=create)

    @told
    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        return self._files.exists(checked_path(path))

    @told
    def list(self, path: str) -> builtins.list[str]:
        """Sorted names directly below the folder; none where it is absent."""
        return sorted(name for name in self._files.children(checked_path(path)) if not name.startswith("."))

    @told
    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all it holds; nothing where it is absent."""
        if checked_path(path).split("/")[0] in ("artifacts", "store.json"):
            raise ValueError(f"{path} is the store's own: use delete_artifact")
        self._files.delete_tree(path)
        if self.local_root is None:
            self._files.delete(path)


def _reopen(kind: type[OpenStore], url: str, lease_ttl_seconds: float, cache_bytes: int) -> OpenStore:
    return kind(url, lease_ttl_seconds=lease_ttl_seconds, cache_bytes=cache_bytes)
