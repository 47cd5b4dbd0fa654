"""A machine's copies of artifacts that lie in a remote store: whole folders, named by content, bounded in bytes.

`<cache>/<content digest>/` appears by one rename, so it is complete or absent. A process that uses
a copy holds a shared lock on `<content digest>.lock`; the system drops it when the process ends,
however it ends. Eviction, least recently used first, takes only what it can lock alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_NAME = re.compile(r"^[0-9a-f]{64}$")


class FolderCache:
    """Folders by content digest.

    Args:
        folder: where they lie; made when needed.
        limit_bytes: eviction starts above this total; what is in use stays, even beyond it.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = Path(folder).absolute()
        self.limit_bytes = limit_bytes
        self._pins: dict[str, int] = {}
        self._lock = threading.Lock()

    def get(self, name: str, size_bytes: int, fill: Callable[[Path], None]) -> Path:
        """The folder `name`, filled by `fill(empty folder)` if it is absent; kept until `unpin` or the process ends.

        Args:
            name: content digest, 64 hexadecimal digits.
            size_bytes: what it will hold; older folders make room first.
        """
        if not _NAME.match(name):
            raise ValueError(f"not a content digest: {name!r}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pin(name)
        target = self.folder / name
        try:
            os.utime(target)  # the time of last use orders eviction
            return target
        except FileNotFoundError:
            pass
        with self._filling(name):
            if not target.exists():
                self._fill(target, size_bytes, fill)
                self._make_room(0)  # others may have filled theirs meanwhile
        return target

    def _fill(self, target: Path, size_bytes: int, fill: Callable[[Path], None]) -> None:
        name = target.name
        self._make_room(size_bytes)
        temporary = self.folder / f".{name}.{os.urandom(6).hex()}"
        temporary.mkdir()
        try:
            fill(temporary)
            try:
                os.rename(temporary, target)
            except OSError:
                if not target.is_dir():
                    raise
                shutil.rmtree(temporary)  # another process was faster; the content is the same by name
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    @contextlib.contextmanager
    def _filling(self, name: str) -> Iterator[None]:
        """One filler at a time, so that the ranks of a machine download a file once; the others wait here.

        The file is removed at the end. One who still waits on it, and one who makes it anew, find the folder there.
        """
        path = self.folder / f"{name}.fill"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(lock)

    def unpin(self, name: str) -> None:
        """This process uses the folder no longer."""
        with self._lock:
            lock = self._pins.pop(name, None)
        if lock is not None:
            os.close(lock)

    def _pin(self, name: str) -> None:
        with self._lock:
            if name in self._pins:
                return
            lock = os.open(self.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(lock, fcntl.LOCK_SH)
            self._pins[name] = lock

    def _make_room(self, wanted_bytes: int) -> None:
        entries = []
        for path in self.folder.iterdir():
            try:
                if _NAME.match(path.name):
                    size = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
                    entries.append((path.stat().st_mtime_ns, size, path))
                elif path.name.startswith(".") and path.is_dir():
                    self._evict(path)  # what a killed download left; one that is at work holds its lock
            except FileNotFoundError:
                continue  # another process evicts as well
        total = wanted_bytes + sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit_bytes:
                return
            if self._evict(path):
                total -= size

    def _evict(self, path: Path) -> bool:
        name = path.name.lstrip(".").partition(".")[0]
        lock = os.open(self.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            trash = self.folder / f".{name}.{os.urandom(6).hex()}"
            try:
                os.rename(path, trash)  # at once: nobody may find half a folder
            except FileNotFoundError:
                return True
            shutil.rmtree(trash, ignore_errors=True)
            return True
        finally:
            os.close(lock)
