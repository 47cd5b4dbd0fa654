"""Reading published artifacts: as a local folder, and against their manifest's checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster import store_errors
from cluster.errors import BadData
from cluster.store_base import OpenStore
from cluster.store_errors import told
from cluster.store_files import (
    checked_folder,
    checked_path,
    checksum_of,
    compare,
    content_digest,
    encode,
    local_differences,
)
from cluster.store_lazy import MARK, is_later


class Fetching(OpenStore):
    """The part of `Store` that reads artifacts' files."""

    def __init__(
        self, url: str | os.PathLike[str], *, lease_ttl_seconds: float = 20, cache_bytes: int | None = None
    ) -> None:
        super().__init__(url, lease_ttl_seconds=lease_ttl_seconds, cache_bytes=cache_bytes)
        self._caches: dict[Path, Any] = {}

    @told
    def fetch(
        self, manifest: Mapping[str, Any], cache_dir: Path | None = None, *, verify: bool = False, lazy: bool = False
    ) -> Path:
        """The artifact's files as a local folder, not to be written to.

        A local store gives its own folder, in which all files must be, of their sizes. A remote one downloads into
        `cache_dir` (by default a temporary folder of this user), where the copy stays until `unpin` or this
        process's end, and longer while `cache_bytes` allows.

        Args:
            verify: also compare checksums, and look for files that the manifest does not name.
            lazy: leave the files that the manifest's `later` names in a remote store; `cluster.store_lazy` fetches
                them one by one as they are read.

        Raises:
            BadData: files are missing, or differ from the manifest.
        """
        path = checked_folder(manifest)
        if self.local_root is not None:
            folder = Path(f"{self.url}/{path}")
            if not folder.is_dir() and manifest["files"]:
                raise self._damaged(manifest, [f"{folder} is missing"])
            if problems := compare(manifest["files"], _sizes(manifest["files"], folder), None, deep=False):
                raise self._damaged(manifest, problems)
        elif lazy and not self.in_process and any(is_later(manifest, name) for name in manifest["files"]):
            return self._fetch_small(manifest, cache_dir)
        else:
            folder = self._cache(cache_dir).get(
                manifest["content"], manifest["bytes"], lambda new: self._download(manifest, manifest["files"], new)
            )
        if verify and (problems := local_differences(manifest["files"], folder)):
            raise self._damaged(manifest, problems)
        return folder

    def _fetch_small(self, manifest: Mapping[str, Any], cache_dir: Path | None) -> Path:
        """A folder with the files that are not for later, checked, and `later.json`: where the others are."""
        files = {name: facts for name, facts in manifest["files"].items() if not is_later(manifest, name)}
        mark = {name: manifest[name] for name in ("key", "folder", "files", "later")} | {"store": self.url}
        text = encode(mark)
        name = hashlib.blake2b(text, digest_size=32).hexdigest()

        def fill(new: Path) -> None:
            self._download(manifest, files, new, deep=True)
            (new / MARK).write_bytes(text)

        return self._cache(cache_dir).get(name, sum(facts["size"] for facts in files.values()), fill)

    @told
    def download_one(self, manifest: Mapping[str, Any], name: str, folder: Path) -> None:
        """Download one file of an artifact into an empty folder, under its base name, and compare its checksum.

        Raises:
            BadData: it is missing, or twice came short or changed.
        """
        facts, base = manifest["files"][name], Path(checked_path(name)).name
        for _ in range(2):  # what a connection has spoilt comes whole the second time
            self._get(manifest, {name: str(folder / base)})
            problems = local_differences({base: facts}, folder)
            if not problems:
                return
        raise self._damaged(manifest, problems)

    def _get(self, manifest: Mapping[str, Any], files: Mapping[str, str]) -> None:
        """Download {name in the artifact: local path}."""
        try:
            self._files.download((f"{checked_folder(manifest)}/{name}", local) for name, local in files.items())
        except FileNotFoundError as error:
            if store_errors.provider_code(error) == "NoSuchBucket":
                raise
            raise self._damaged(manifest, [f"missing: {error}"]) from error

    def _download(
        self, manifest: Mapping[str, Any], files: Mapping[str, Any], folder: Path, *, deep: bool = False
    ) -> None:
        """Download these files of an artifact; compare sizes, or `deep` checksums too."""
        self._get(manifest, {name: str(folder / checked_path(name)) for name in files})
        if problems := local_differences(files, folder, deep=deep):
            raise self._damaged(manifest, problems)

    def _damaged(self, manifest: Mapping[str, Any], problems: list[str]) -> BadData:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        return BadData(
            f"the artifact {manifest.get('key', '?')[:12]} in the store {self.url} is damaged: "
            f"{'; '.join(problems[:3])}{more}",
            "make it again: `triptych run … --force STAGE`",
        )

    def _cache(self, cache_dir: Path | None) -> Any:
        folder = Path(cache_dir) if cache_dir is not None else self._temporary("cache")
        if folder not in self._caches:
            from cluster.store_cache import FolderCache

            self._caches[folder] = FolderCache(folder, self.cache_bytes)
        return self._caches[folder]

    def _adopt(self, manifest: Mapping[str, Any], folder: Path, cache_dir: Path) -> None:
        """Move a folder that was just uploaded to this machine's copies, which saves the next stage its download."""
        import shutil

        def fill(new: Path) -> None:
            for child in folder.iterdir():
                shutil.move(child, new / child.name)

        self._cache(cache_dir).get(manifest["content"], manifest["bytes"], fill)
        self.unpin(manifest, cache_dir)

    def unpin(self, manifest: Mapping[str, Any], cache_dir: Path | None = None) -> None:
        """This process no longer uses the folder that `fetch` gave; it may be evicted."""
        if self.local_root is None:
            self._cache(cache_dir).unpin(manifest["content"])

    @told
    def verify(self, manifest: Mapping[str, Any]) -> list[str]:
        """Compare the stored files with the manifest, checksums included; returns the problems, as sentences."""
        folder, files = checked_folder(manifest), manifest.get("files") or {}
        problems = (
            []
            if manifest.get("content") == content_digest(files)
            else ["artifact.json: content digest does not fit its files"]
        )
        if self.local_root is not None:
            path = self.local_root / folder
            return problems + (
                local_differences(files, path) if path.is_dir() else [f"{name}: missing" for name in files]
            )

        def remote_checksum(name: str) -> str:
            with self._files.open(f"{folder}/{name}") as file:
                return checksum_of(file)

        return problems + compare(files, self._files.sizes(folder), remote_checksum)


def _sizes(names: Iterable[str], folder: Path) -> dict[str, int]:
    """{name: bytes} of the files that are in a local folder."""
    found = {}
    for name in names:
        with suppress(OSError):
            found[name] = os.stat(folder / name).st_size
    return found
