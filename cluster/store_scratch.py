"""Checkpoints of a key in the store: they outlive crashes and attempts, and go once the stage is published.

Each writer, told apart by the number of its lease, has its own place: `scratch/<key>/000003/`. A
new writer takes the newest earlier place over; a writer that lost its lease and wakes up
finds its own place gone, or writes where nobody looks, and cannot spoil the newer one's checkpoints.

In a local store the place is the folder itself, handed over by one rename. In a remote one a
checkpoint is uploaded whole: its files by checksum under `objects/` (unchanged ones once), then
`complete.json`, which names them; without it there is no checkpoint.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from cluster.errors import LeaseLost
from cluster.leases import Claim
from cluster.store_base import OpenStore
from cluster.store_errors import told
from cluster.store_files import checked_key, checked_path, checksum, describe, encode

Digests = MutableMapping[tuple[int, int, int], str]
_WRITER = re.compile(r"^\d{6}$")


def _writers(names: list[str]) -> list[int]:
    return sorted(int(name) for name in names if _WRITER.match(name))


def _superseded(key: str, writer: int, newest: int) -> LeaseLost:
    return LeaseLost(f"lease {newest} took over {key[:12]}; lease {writer} writes no checkpoints any more")


def take_over(folder: Path, key: str, writer: int) -> Path:
    """The local folder `folder`/<writer>, with the newest earlier writer's files, if there are any.

    Raises:
        LeaseLost: a later writer has a place already.
    """
    target = folder / f"{writer:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    writers = _writers(os.listdir(folder))
    if writers and writers[-1] > writer:
        raise _superseded(key, writer, writers[-1])
    for earlier in reversed(writers):
        if earlier == writer:
            break
        try:
            os.rename(folder / f"{earlier:06d}", target)
            break
        except OSError:  # taken by another, or the target is there: then this one is superfluous
            continue
    target.mkdir(exist_ok=True)
    return target


def upload(files: Any, key: str, writer: int, folder: Path, known: Digests | None = None) -> None:
    """Store the folder's files as the writer's newest checkpoint; the one before stays until this is complete.

    Raises:
        LeaseLost: a later writer has a place already.
    """
    top = f"scratch/{key}"
    writers = _writers(files.children(top))
    if writers and writers[-1] > writer:
        raise _superseded(key, writer, writers[-1])
    place = f"{top}/{writer:06d}"
    contents = describe(folder, known)
    stored = set(files.children(f"{place}/objects"))
    sources = {facts["blake2b"]: name for name, facts in contents.items()}
    files.upload(
        (str(folder / name), f"{place}/objects/{digest}") for digest, name in sources.items() if digest not in stored
    )
    files.write(f"{place}/complete.json", encode({"files": contents}))
    for digest in stored - set(sources):
        files.delete(f"{place}/objects/{digest}")
    for earlier in writers:
        if earlier < writer:
            files.delete_tree(f"{top}/{earlier:06d}")


def download(files: Any, key: str, writer: int, folder: Path) -> bool:
    """Fill the folder with the newest complete checkpoint of this writer or an earlier one.

    Returns:
        False, and an empty folder, where there is none (or none that is undamaged).
    """
    import shutil

    top = f"scratch/{key}"
    for number in reversed(_writers(files.children(top))):
        if number > writer:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            contents = json.loads(files.read(f"{top}/{number:06d}/complete.json"))["files"]
            pairs = [
                (f"{top}/{number:06d}/objects/{facts['blake2b']}", str(folder / checked_path(name)))
                for name, facts in contents.items()
            ]
            files.download(pairs)
            if all(checksum(folder / name) == facts["blake2b"] for name, facts in contents.items()):
                return True
        except (FileNotFoundError, ValueError, KeyError):
            continue  # incomplete, or its writer is replacing it: an earlier one will do
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return False


def _writer(claim: Claim | str) -> tuple[str, int]:
    return (checked_key(claim), 0) if isinstance(claim, str) else (claim.key, claim.n)


class Scratch(OpenStore):
    """The part of `Store` that keeps checkpoints."""

    @told
    def scratch_folder(self, claim: Claim | str) -> Path:
        """Local folder for the checkpoints of a claim, or of a key where there is one writer (see the module).

        Raises:
            LeaseLost: a later claim has its folder already.
        """
        key, writer = _writer(claim)
        base = self.local_root / "scratch" if self.local_root is not None else self._temporary("scratch")
        return take_over(base / key, key, writer)

    @told
    def upload_scratch(self, claim: Claim | str, folder: Path, known: Digests | None = None) -> None:
        """Keep the folder's files as the newest complete checkpoint; nothing to do in a local store.

        Args:
            known: as of `cluster.store_files.describe`.

        Raises:
            LeaseLost: a later claim has uploaded one.
        """
        if self.local_root is None:
            upload(self._files, *_writer(claim), Path(folder), known)

    @told
    def download_scratch(self, claim: Claim | str, folder: Path) -> bool:
        """Fill the folder with the newest complete checkpoint; False if there is none.

        In a local store the folder holds it already and is left alone.
        """
        if self.local_root is not None:
            return any(Path(folder).iterdir())
        return download(self._files, *_writer(claim), Path(folder))

    @told
    def clear_scratch(self, claim: Claim | str) -> None:
        """Remove the key's checkpoints, of all writers."""
        import shutil

        key, _ = _writer(claim)
        self._files.delete_tree(f"scratch/{key}")
        if self.local_root is None:
            shutil.rmtree(self._temporary("scratch") / key, ignore_errors=True)
