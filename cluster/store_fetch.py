"""Reading published artifacts: as a local folder, and against their manifest's checksums."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import store_errors
from cluster.errors import BadData
from cluster.store_base import OpenStore
from cluster.store_errors import told
from cluster.store_files import checked_folder, checked_path, checksum_of, compare, content_digest, local_differences


class Fetching(OpenStore):
    """The part of `Store` that reads artifacts' files."""

    def __init__(
        self, url: str | os.PathLike[str], *, lease_ttl_seconds: float = 20, cache_bytes: int = 50 << 30
    ) -> None:
        super().__init__(url, lease_ttl_seconds=lease_ttl_seconds, cache_bytes=cache_bytes)
        self._caches: dict[Path, Any] = {}

    @told
    def fetch(self, manifest: Mapping[str, Any], cache_dir: Path | None = None, *, verify: bool = False) -> Path:
        """The artifact's files as a local folder, not to be written to.

        A local store gives its own folder. A remote one downloads into `cache_dir` (by default a
        temporary folder of this user), where the copy stays until `unpin` or this process's end, and
        longer while `cache_bytes` allows.

        Args:
            verify: also compare sizes and checksums.

        Raises:
            BadData: files are missing, or differ from the manifest.
        """
        path = checked_folder(manifest)
        if self.local_root is not None:
            folder = Path(f"{self.url}/{path}")
            if not folder.is_dir() and manifest["files"]:
                raise self._damaged(manifest, [f"{folder} is missing"])
        else:
            folder = self._cache(cache_dir).get(
                manifest["content"], manifest["bytes"], lambda new: self._download(manifest, new)
            )
        if verify and (problems := local_differences(manifest["files"], folder)):
            raise self._damaged(manifest, problems)
        return folder

    def _download(self, manifest: Mapping[str, Any], folder: Path) -> None:
        try:
            self._files.download(
                (f"{manifest['folder']}/{name}", str(folder / checked_path(name))) for name in manifest["files"]
            )
        except FileNotFoundError as error:
            if store_errors.provider_code(error) == "NoSuchBucket":
                raise
            raise self._damaged(manifest, [f"missing: {error}"]) from error
        if problems := local_differences(manifest["files"], folder, deep=False):
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
