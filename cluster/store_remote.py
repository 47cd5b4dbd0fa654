"""The store's files on any other fsspec file system: S3, Google Cloud Storage, memory.

Same methods as `cluster.store_local.LocalFiles`. fsspec and the provider's library are imported
when a store with such a URL is opened. A file system is made anew in each process, and outside
fsspec's instance cache: its event loop and connections do not survive a fork.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from cluster.errors import Unreachable
from cluster.store_errors import explain, provider_code

T = TypeVar("T")

CONNECT_SECONDS = 4
ANSWER_SECONDS = 10
_CONNECTIONS = 32
_UPLOADS = 8
_ONE_PIECE_BYTES = 8 << 20
_MEMORY = threading.RLock()  # fsspec's memory files share one position between readers: one at a time


_SYSTEMS: dict[tuple[Any, ...], Any] = {}
_OPENING = threading.Lock()


def _kind(protocol: str, url: str) -> Any:
    """fsspec's class for a protocol. Raises Unreachable: unknown, or its library is not installed."""
    import fsspec

    try:
        return fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise Unreachable(
            f"the store {url} needs a library that is not installed: {error}", "pip install it"
        ) from error
    except ValueError as error:
        raise Unreachable(
            f"the store {url} cannot be opened: {error}",
            "use a local path, s3://bucket/prefix, gs://… or memory://name",
        ) from error


def _file_system(protocol: str, url: str) -> Any:
    """This process's file system of a protocol and environment: a client costs half a second to make.

    Raises:
        Unreachable: its library is not installed, or wants arguments that the URL does not give.
    """
    kind = _kind(protocol, url)
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol in ("s3", "s3a"):
        # s3fs repeats failed calls itself; botocore's own repeats on top of them would add minutes
        options["config_kwargs"] = {"connect_timeout": CONNECT_SECONDS, "retries": {"total_max_attempts": 1}}
    options |= kind._get_kwargs_from_urls(url)
    environment = sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "GOOGLE_", "AZURE_")))
    identity = (os.getpid(), protocol, str(options), *environment)
    try:
        with _OPENING:
            if identity not in _SYSTEMS:
                _SYSTEMS[identity] = kind(**options)
            return _SYSTEMS[identity]
    except ImportError as error:
        raise Unreachable(
            f"the store {url} needs a library that is not installed: {error}", "pip install it"
        ) from error
    except (ValueError, TypeError) as error:
        raise Unreachable(f"the store {url} cannot be opened: {error}", "use a local path, s3:// or gs://") from error


def _new_lock() -> None:
    global _OPENING
    _OPENING = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)  # another thread of the parent may have held it


class RemoteFiles:
    """Files below one prefix of an fsspec file system.

    Args:
        url: `s3://bucket/prefix`, `gs://bucket/prefix`, `memory://name` or any other fsspec URL.

    Raises:
        Unreachable: unknown scheme, library not installed, no credentials, no bucket, no answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.protocol = url.partition("://")[0]
        self._fs: Any = None
        self._pool: Any = None
        self._pid = 0
        self._conditional = self.protocol == "memory"
        self.root = _kind(self.protocol, url)._strip_protocol(url).rstrip("/")
        if not self.root.strip("/"):
            raise Unreachable(
                f"the store {url} names no bucket or folder", f"write it as {self.protocol}://bucket/prefix"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFiles, (self.url,)

    @property
    def fs(self) -> Any:
        """This process's file system."""
        if self._pid != os.getpid():
            self._fs, self._pool, self._pid = _file_system(self.protocol, self.url), None, os.getpid()
        return self._fs

    def check(self, path: str) -> None:
        """Read a small file to learn whether the store answers; whether the file exists does not matter.

        Raises:
            TimeoutError: no answer within ANSWER_SECONDS, however often the provider's library tries again.
        """
        errors: list[BaseException] = []

        def look() -> None:
            try:
                self.read(path)
            except FileNotFoundError as error:
                if provider_code(error) == "NoSuchBucket":
                    errors.append(error)
            except BaseException as error:  # handed to the caller below
                errors.append(error)

        thread = threading.Thread(target=look, daemon=True)  # left behind after a time-out: nothing can stop it
        thread.start()
        thread.join(ANSWER_SECONDS)
        if thread.is_alive():
            raise TimeoutError(f"nothing heard within {ANSWER_SECONDS} s")
        if errors:
            raise errors[0]

    def _call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """One call of the file system."""
        return getattr(self.fs, operation)(*args, **kwargs)

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def for_each(self, function: Callable[[Any], T], items: Iterable[Any], workers: int = _CONNECTIONS) -> list[T]:
        """`[function(item) for item in items]`, several at a time."""
        items = list(items)
        if len(items) < 2 or self.protocol == "memory":
            return [function(item) for item in items]
        if self.fs and self._pool is None:  # the file system is made here, once, not by the threads
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="store")
        gate = threading.Semaphore(workers)

        def one(item: Any) -> T:
            with gate:
                return function(item)

        return list(self._pool.map(one, items))

    def read(self, path: str) -> bytes:
        """The file's bytes. Raises FileNotFoundError."""
        # one request: by default s3fs first asks for the size, to fetch large files in pieces
        whole = {"max_concurrency": 1} if self.protocol in ("s3", "s3a") else {}
        return self._call("cat_file", self._full(path), **whole)

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those files that exist, read concurrently."""

        def one(path: str) -> tuple[str, bytes | None]:
            try:
                return path, self.read(path)
            except FileNotFoundError as error:
                if provider_code(error) == "NoSuchBucket":
                    raise
                return path, None

        return {path: data for path, data in self.for_each(one, paths) if data is not None}

    def write(self, path: str, data: bytes) -> None:
        """Make or replace the file, at once: readers see the old or the new bytes."""
        self._call("pipe_file", self._full(path), data)

    def overwrite_many(self, files: dict[str, bytes]) -> None:
        """Write each, several at a time; all are tried before the first error is raised."""

        def one(item: tuple[str, bytes]) -> Exception | None:
            try:
                self.write(*item)
                return None
            except Exception as error:
                return error

        for failed in self.for_each(one, files.items()):
            if failed:
                raise failed

    def create(self, path: str, data: bytes) -> bool:
        """Make the file if it is absent; False, and nothing changed, if it exists.

        A repeated request whose first answer was lost also gives False: callers compare the bytes.

        Raises:
            Unreachable: where the server ignores the condition, so that leases would not hold.
        """
        if not self._conditional:
            self._prove_conditional()
        return self._create(path, data)

    def _create(self, path: str, data: bytes) -> bool:
        import time

        for attempt in range(6):
            try:
                self._call("pipe_file", self._full(path), data, mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as error:
                code = provider_code(error)
                if code in ("PreconditionFailed", "412"):
                    return False
                if code not in ("ConditionalRequestConflict", "409") and error.errno != errno.EBUSY:
                    raise
                if attempt == 5:
                    raise
                time.sleep(0.05 * 2**attempt)  # S3 asks for a repeat when two creators meet
        raise AssertionError("unreachable")

    def _prove_conditional(self) -> None:
        """Some S3 look-alikes accept the condition and ignore it; the store's marker file shows which."""
        marker = b'{"format":1}'
        try:
            ignored = self._create("store.json", marker) and self._create("store.json", marker)
        except (NotImplementedError, ValueError, TypeError) as error:
            raise Unreachable(
                f"the store {self.url} cannot be written: {error or type(error).__name__}", "choose another --store"
            ) from error
        if ignored:
            raise Unreachable(
                f"the store {self.url} cannot create a file only if it is absent (If-None-Match is ignored)",
                "use a server that has conditional writes; without them two drivers could publish the same stage",
            )
        self._conditional = True

    def children(self, path: str) -> list[str]:
        """Names directly below the folder, unsorted; none where it does not exist."""
        full = self._full(path)
        try:
            found = self._call("ls", full, detail=False)
        except (FileNotFoundError, NotADirectoryError) as error:
            if provider_code(error) == "NoSuchBucket":
                raise
            return []
        names = (name.rstrip("/")[len(full) :].lstrip("/") for name in found)
        return [name for name in names if name and "/" not in name]

    def children_many(self, paths: Iterable[str]) -> dict[str, list[str]]:
        """`children` of each path, listed concurrently."""
        paths = list(paths)
        return dict(zip(paths, self.for_each(self.children, paths), strict=True))

    def sizes(self, path: str) -> dict[str, int]:
        """{path relative to the folder: bytes} of all files below it."""
        full = self._full(path)
        try:
            found = self._call("find", full, detail=True)
        except FileNotFoundError:
            return {}
        return {name[len(full) + 1 :]: facts["size"] for name, facts in found.items() if name != full}

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        return self._call("exists", self._full(path))

    def delete(self, path: str) -> None:
        """Remove the file; nothing where it is absent."""
        with contextlib.suppress(FileNotFoundError, KeyError):
            self._call("rm_file", self._full(path))

    def delete_tree(self, path: str) -> None:
        """Remove all files below the folder; nothing where it is absent."""
        self.for_each(self.delete, [f"{path}/{name}" for name in self.sizes(path)])

    def upload(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Copy (local file, path in the store) pairs, several at a time."""

        def one(pair: tuple[str, str]) -> None:
            local, path = pair
            if self.protocol == "memory" or os.path.getsize(local) < _ONE_PIECE_BYTES:
                with open(local, "rb") as file:
                    self.write(path, file.read())
            else:
                self._call("put_file", local, self._full(path))

        self.for_each(one, pairs, _UPLOADS)

    def download(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Copy (path in the store, local file) pairs, several at a time. Raises FileNotFoundError."""

        def one(pair: tuple[str, str]) -> None:
            path, local = pair
            os.makedirs(os.path.dirname(local), exist_ok=True)
            try:
                if self.protocol == "memory":
                    with open(local, "wb") as file:
                        file.write(self.read(path))
                else:
                    self._call("get_file", self._full(path), local)
            except FileNotFoundError as error:
                raise FileNotFoundError(errno.ENOENT, "not in the store", path) from error

        self.for_each(one, pairs, _UPLOADS)

    def open(self, path: str) -> Any:
        """The file, open for reading bytes in order."""
        if self.protocol == "memory":
            import io

            return io.BytesIO(self.read(path))
        return self.fs.open(self._full(path), "rb", block_size=_ONE_PIECE_BYTES, cache_type="readahead")

    def free_bytes(self) -> int | None:
        """Unknown for object stores."""
        return None


class MemoryFiles(RemoteFiles):
    """`memory://`: this process's own store, for tests and notebooks; one caller at a time."""

    def __reduce__(self) -> tuple[Any, ...]:
        return MemoryFiles, (self.url,)

    def _call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        with _MEMORY:
            return super()._call(operation, *args, **kwargs)


def open_remote(url: str) -> RemoteFiles:
    """The back end for `url`, checked to answer. Raises Unreachable."""
    files = MemoryFiles(url) if url.startswith("memory://") else RemoteFiles(url)
    try:
        files.check("store.json")
    except Exception as error:
        explained = explain(error, url)
        if explained is None:
            raise
        if not isinstance(explained, Unreachable):
            explained = Unreachable(explained.message, explained.remedy)
        raise explained from error
    return files
