"""Artifacts whose large files stay in a remote store until somebody reads them.

`Store.fetch(…, lazy=True)` gives a folder with the small files and `later.json`, which says where the others are.
`ArtifactFiles` then gives any file of the folder, one by one: each lies in the machine's copies under its own
checksum, so processes of one machine share it, it is checked when it comes, and it goes, least recently used first,
when the bound of the cache is reached and nobody holds it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cluster.errors import BadData

MARK = "later.json"
_AT_ONCE = 4  # downloads of one reader


def is_later(manifest: Mapping[str, Any], name: str) -> bool:
    """Whether a file of an artifact is left in a remote store until it is read: the manifest's `later` patterns."""
    return any(fnmatch(name, pattern) for pattern in manifest.get("later") or ())


class ArtifactFiles:
    """The files of an artifact's local folder, those that are still in the store included.

    Every file asked for is held (never evicted) until `release`, or until this process ends. Safe to use from
    several threads; an object that was sent to another process opens the store anew there.

    Args:
        folder: what `Store.fetch` or `Context.input` gave.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        mark = self.folder / MARK
        self._manifest: dict[str, Any] | None = json.loads(mark.read_text()) if mark.is_file() else None
        self._lock = threading.Lock()
        self._store: Any = None
        self._cache: Any = None
        self._held: set[str] = set()
        self._wanted: list[str] = []
        self._thread: threading.Thread | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ArtifactFiles, (self.folder,)

    @property
    def remote(self) -> bool:
        """Whether some files are fetched one by one."""
        return self._manifest is not None

    def path(self, name: str) -> Path:
        """The local file, fetched now if it is not there; for a plain folder its path, be it there or not.

        Raises:
            BadData: the store has no such file, or another one than the manifest says.
        """
        if not self._is_later(name):
            return self.folder / name
        return self._fetch(name)

    def paths(self, names: Iterable[str]) -> list[Path]:
        """`path` of each, several downloads at a time."""
        names = list(names)
        later = [name for name in names if self._is_later(name)]
        if len(later) > 1:
            self._open()
            self._store._files.for_each(self._fetch, later, _AT_ONCE)
        return [self.path(name) for name in names]

    def ahead(self, names: Iterable[str]) -> None:
        """Fetch these in the background, in this order; names given earlier and not begun are forgotten.

        Nothing is fetched ahead that would not fit into the cache beside what is held.
        """
        wanted = [name for name in names if self._is_later(name)]
        with self._lock:
            self._wanted = wanted
            if wanted and self._thread is None:
                self._thread = threading.Thread(target=self._work_ahead, daemon=True, name="read-ahead")
                self._thread.start()

    def release(self, names: Iterable[str]) -> None:
        """These are read no longer; they may be evicted."""
        for name in names:
            with self._lock:
                held = name in self._held
                self._held.discard(name)
            if held:
                self._cache.unpin(self._facts(name)["blake2b"])

    @property
    def held(self) -> set[str]:
        """Names of the fetched files that may not be evicted now."""
        with self._lock:
            return set(self._held)

    def _is_later(self, name: str) -> bool:
        return self._manifest is not None and is_later(self._manifest, name)

    def _facts(self, name: str) -> Mapping[str, Any]:
        assert self._manifest is not None
        if name not in self._manifest["files"]:
            raise BadData(f"{name}: not among the artifact's files", "run the stage that makes it again")
        return self._manifest["files"][name]

    def _open(self) -> None:
        with self._lock:
            if self._store is None:
                assert self._manifest is not None
                from cluster.store import Store
                from cluster.store_cache import FolderCache

                self._store = Store(self._manifest["store"])
                # A cache object of its own: what one reader releases, another of this process may still hold.
                self._cache = FolderCache(self.folder.parent, self._store.cache_bytes)

    def _fetch(self, name: str) -> Path:
        facts = self._facts(name)
        self._open()
        folder = self._cache.get(
            facts["blake2b"], facts["size"], lambda new: self._store.download_one(self._manifest, name, new)
        )
        with self._lock:
            self._held.add(name)
        return folder / Path(name).name

    def _work_ahead(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._thread = None
                    return
                name = self._wanted.pop(0)
            try:
                self._open()
                beside = sum(self._facts(each)["size"] for each in self.held - {name})
                if beside + self._facts(name)["size"] <= self._cache.limit_bytes:
                    self._fetch(name)
            except Exception:  # whoever reads the file meets the same error, and says so
                continue
