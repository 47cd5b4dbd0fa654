"""The store's files on a local disk, by system calls alone: the machinery's cost per stage is in microseconds.

Every back end has the methods of this class; paths are relative, with `/`. Two properties carry
the store's correctness: `create` makes a whole file or none and only one creator wins, `write`
replaces a whole file at once. Nothing is flushed to the platter (`fsync`): a killed process loses
nothing, a power cut may lose the last seconds, and then `verify` finds what is damaged.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator

from cluster.errors import Unreachable, UserError
from cluster.store_errors import NO_SPACE, no_space

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC


def walk(folder: str, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield (relative path, entry) for everything below `folder` that is not a directory, unsorted.

    Symbolic links are yielded, not followed.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, entry


class LocalFiles:
    """Files below one folder of this machine.

    Args:
        root: absolute path of the store's folder; made on the first write.

    Raises:
        Unreachable: when `root` is not a folder, cannot be read, or could not be made.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.url = root
        self._check()

    def _check(self) -> None:
        if os.path.isdir(self.root):
            if not os.access(self.root, os.R_OK | os.X_OK):
                raise Unreachable(
                    f"the store {self.root} cannot be read by this user", "change its permissions or --store"
                )
            return
        above = self.root
        while not os.path.lexists(above):
            above = os.path.dirname(above)
        if not os.path.isdir(above):
            raise Unreachable(
                f"the store {self.root} cannot be made: {above} is not a folder", "choose another --store"
            )
        if not os.access(above, os.W_OK | os.X_OK):
            raise Unreachable(
                f"the store {self.root} does not exist and {above} is not writable",
                "make the folder, or choose another --store",
            )

    def read(self, path: str) -> bytes:
        """The file's bytes. Raises FileNotFoundError."""
        file = os.open(f"{self.root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(file, os.fstat(file).st_size + 1)
            while more := os.read(file, 1 << 20):
                data += more
            return data
        finally:
            os.close(file)

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those files that exist."""
        found = {}
        for path in paths:
            try:
                found[path] = self.read(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found

    def write(self, path: str, data: bytes) -> None:
        """Make or replace the file, at once: readers see the old or the new bytes."""
        full = f"{self.root}/{path}"
        temporary = self._temporary(full, data)
        try:
            os.replace(temporary, full)
        except BaseException:
            _remove(temporary)
            raise

    def create(self, path: str, data: bytes) -> bool:
        """Make the file with all its bytes if it is absent; False, and nothing changed, if it exists."""
        full = f"{self.root}/{path}"
        temporary = self._temporary(full, data)
        try:
            os.link(temporary, full)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._create_without_links(full, data)
        finally:
            _remove(temporary)

    def _create_without_links(self, full: str, data: bytes) -> bool:
        """For file systems without hard links (FAT, some FUSE): exclusive, but a crash can leave it cut short."""
        try:
            file = os.open(full, _NEW, 0o666)
        except FileExistsError:
            return False
        self._fill(file, full, data)
        return True

    def overwrite(self, path: str, data: bytes) -> None:
        """Write over the file's bytes in place (same length each time): needs no new space on a full disk."""
        full = f"{self.root}/{path}"
        try:
            file = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                os.pwrite(file, data, 0)
            finally:
                os.close(file)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise no_space(self.url, full, len(data), self.free_bytes()) from error
            raise

    def overwrite_many(self, files: dict[str, bytes]) -> None:
        """`overwrite` each; all are tried before the first error is raised."""
        failed: Exception | None = None
        for path, data in files.items():
            try:
                self.overwrite(path, data)
            except (OSError, UserError) as error:
                failed = failed or error
        if failed:
            raise failed

    def children(self, path: str) -> list[str]:
        """Names directly below the folder, unsorted; none where it does not exist."""
        try:
            return os.listdir(f"{self.root}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            return []

    def children_many(self, paths: Iterable[str]) -> dict[str, list[str]]:
        """`children` of each path."""
        return {path: self.children(path) for path in paths}

    def sizes(self, path: str) -> dict[str, int]:
        """{path relative to the folder: bytes} of all files below it."""
        try:
            return {name: entry.stat(follow_symlinks=False).st_size for name, entry in walk(f"{self.root}/{path}")}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        return os.path.lexists(f"{self.root}/{path}")

    def delete(self, path: str) -> None:
        """Remove the file; nothing where it is absent."""
        _remove(f"{self.root}/{path}")

    def delete_tree(self, path: str) -> None:
        """Remove the folder with all it holds; nothing where it is absent."""
        import shutil

        full = f"{self.root}/{path}"
        if os.path.isdir(full) and not os.path.islink(full):
            shutil.rmtree(full)
        else:
            _remove(full)

    def free_bytes(self) -> int | None:
        """Bytes that can still be written, or None where that is unknown."""
        try:
            facts = os.statvfs(self.root)
        except OSError:
            return None
        return facts.f_bavail * facts.f_frsize

    def _temporary(self, full: str, data: bytes) -> str:
        folder, _, name = full.rpartition("/")
        temporary = f"{folder}/.{name}.{os.urandom(6).hex()}"
        for _ in range(5):  # a concurrent gc may remove the folder between the two calls
            try:
                file = os.open(temporary, _NEW, 0o666)
                break
            except FileNotFoundError:
                os.makedirs(folder, exist_ok=True)
        else:
            file = os.open(temporary, _NEW, 0o666)
        self._fill(file, temporary, data)
        return temporary

    def _fill(self, file: int, full: str, data: bytes) -> None:
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
            finally:
                os.close(file)
        except BaseException as error:
            _remove(full)
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise no_space(self.url, full, len(data), self.free_bytes()) from error
            raise


def _remove(full: str) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(full)
