"""The artifact store: immutable folders under content keys, at any fsspec URL, shared by several drivers.

    <store>/artifacts/<key[:2]>/<key>/artifact.json   manifest of the newest commit, written last: absent = no artifact
                                     /claims/…        the key's log (`cluster.leases`): who is at work, who published
                                     /a000001/…       the files made under claim 1
    <store>/scratch/<key>/…                           checkpoints (`cluster.store_scratch`)
    <store>/runs/<run>/…  <store>/accepted/<key>.json small objects of the engine

    claim = store.claim(key, Owner.here(run))                  # Claim, or Held, or Published
    folder = store.attempt_folder(claim)                       # write the files there
    manifest = store.publish(claim, folder, {"task": …})       # LeaseLost if another took over
    store.fetch(store.manifest(key))                           # the files, as a local folder

The commit is the creation of one log entry that holds the whole manifest. `artifact.json` repeats
it for readers; who finds it missing or older than the log (its writer died in between)
writes it. Behaviour is the same on local disk, in memory and on S3; only the local store gives
its own folders away, the others temporary or cached copies.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.leases import Claim, Held, Leases, Published
from cluster.owner import Owner
from cluster.store_errors import told
from cluster.store_fetch import Fetching
from cluster.store_files import checked_key, content_digest, describe, encode
from cluster.store_lazy import ArtifactFiles
from cluster.store_scratch import Scratch

__all__ = ["ArtifactFiles", "Claim", "Held", "Owner", "Published", "Store"]

_ATTEMPT = re.compile(r"^a(\d{6})$")


def _key_folder(key: str) -> str:
    return f"artifacts/{key[:2]}/{key}"


class Store(Fetching, Scratch):
    """A store, opened: see `cluster.store_base.OpenStore` for its arguments and its small objects.

    Raises:
        Unreachable: bad URL, no permission, no answer.
    """

    def __init__(
        self, url: str | os.PathLike[str], *, lease_ttl_seconds: float = 20, cache_bytes: int | None = None
    ) -> None:
        super().__init__(url, lease_ttl_seconds=lease_ttl_seconds, cache_bytes=cache_bytes)
        self._leases = Leases(self._files, lease_ttl_seconds)

    # -- manifests

    @told
    def manifest(self, key: str) -> dict[str, Any] | None:
        """The manifest of the key's artifact, or None where there is none.

        Raises:
            UserError: `artifact.json` is damaged.
        """
        path = f"{_key_folder(checked_key(key))}/artifact.json"
        try:
            return self._parse(path, self._files.read(path))
        except (FileNotFoundError, NotADirectoryError):
            return self._settle(key)

    @told
    def manifests(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The manifests of those keys that have an artifact; concurrently where the store is remote."""
        paths = {f"{_key_folder(checked_key(key))}/artifact.json": key for key in keys}
        found = {paths[path]: self._parse(path, data) for path, data in self._files.read_many(paths).items()}
        for key in self._leases.begun(key for key in paths.values() if key not in found):
            if (manifest := self._settle(key)) is not None:  # rare: its writer died between its last two steps
                found[key] = manifest
        return found

    def _parse(self, path: str, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise UserError(
                f"{path} in the store {self.url} is damaged: expected a JSON object, found {data[:60]!r}",
                "delete that file: a manifest is rebuilt from the key's claims (`triptych verify` checks the files)",
            )
        return value

    def _settle(self, key: str) -> dict[str, Any] | None:
        """Bring `artifact.json` in line with the key's log, and return what it says.

        A slow writer may put an older manifest over a newer one, so each write is followed by another look.
        """
        path = f"{_key_folder(key)}/artifact.json"
        while True:
            number, manifest = self._leases.newest_commit(key)
            data = self._files.read_many([path]).get(path)
            if manifest is None:
                if data is None:
                    return None
                self._files.delete(path)
            elif data is not None and self._parse(path, data).get("generation") == number:
                return manifest
            else:
                self._files.write(path, encode(manifest))

    # -- leases

    @told
    def claim(self, key: str, owner: Owner, *, force: bool = False) -> Claim | Held | Published:
        """Ask for the right to make the key's artifact.

        Args:
            force: make it again though it exists; the new one replaces it when it is published.

        Returns:
            Claim: it is the caller's to make (an expired lease is taken over).
            Held: another is at work; ask again later, it is by asking that a silent holder is noticed.
            Published: it exists (never with `force`).
        """
        checked_key(key)
        while True:
            found = self._leases.claim(key, owner, force=force)
            if not isinstance(found, int):
                return found
            if (manifest := self._settle(key)) is not None:
                return Published(key, manifest)

    @told
    def holder(self, key: str) -> Held | None:
        """Who is at work on the key, or None."""
        return self._leases.holder(checked_key(key))

    @told
    def heartbeat(self, claims: Iterable[Claim]) -> list[Claim]:
        """Show that these claims are at work; returns those that others took over. Call it every ttl/4."""
        return self._leases.heartbeat(claims)

    @told
    def release(self, claim: Claim) -> None:
        """Give a claim up without a result, so that others need not wait; nothing where it has ended."""
        self._leases.release(claim)

    @told
    def check(self, claim: Claim) -> None:
        """Raise LeaseLost if the claim was taken over or given up: for long work that wants to stop early."""
        self._leases.standing(claim)

    # -- publishing, in the worker's process

    @told
    def attempt_folder(self, claim: Claim) -> Path:
        """The folder to write the artifact's files into, made if absent; a temporary one where the store is remote."""
        if self.local_root is not None:
            folder = f"{self.url}/{_key_folder(claim.key)}/a{claim.n:06d}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
            return Path(folder)
        path = self._temporary("attempts") / f"{claim.key}-{claim.n:06d}-{claim.nonce}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @told
    def discard_attempt(self, claim: Claim) -> None:
        """Remove what was written under a claim: after a failure and before `release`, or after a remote `publish`."""
        import shutil

        if self.local_root is None or self._leases.last(claim.key) <= claim.n:
            shutil.rmtree(self.attempt_folder(claim), ignore_errors=True)

    @told
    def publish(
        self, claim: Claim, folder: Path, manifest: Mapping[str, Any], *, cache_dir: Path | None = None
    ) -> dict[str, Any]:
        """Make the files the key's artifact.

        Args:
            folder: `attempt_folder(claim)`.
            manifest: JSON values. `key`, `folder`, `attempt`, `generation`, `files`, `bytes` and
                `content` (digest of all paths and checksums) are filled in here.
            cache_dir: where the store is remote, move the folder there as `fetch`'s copy.

        Returns:
            The whole manifest. Called again for a claim that is published, the manifest that was.

        Raises:
            LeaseLost: another took the claim over; nothing is published.
            BadData: the folder holds links or special files.
            UserError, Unreachable: the store cannot be written; the claim still stands.
        """
        if (earlier := self._leases.standing(claim)) is not None:
            return earlier
        files = describe(folder)
        attempt = f"{_key_folder(claim.key)}/a{claim.n:06d}"
        if self.local_root is None:
            self._files.upload((str(folder / name), f"{attempt}/{name}") for name in files)
        elif os.fspath(folder) != (target := f"{self.url}/{attempt}") and not os.path.samefile(folder, target):
            raise ValueError(f"{folder} is not the claim's attempt folder")
        whole = {
            **manifest,
            "key": claim.key,
            "folder": attempt,
            "attempt": claim.n,
            "generation": claim.n + 1,
            "files": files,
            "bytes": sum(facts["size"] for facts in files.values()),
            "content": content_digest(files),
        }
        number, whole = self._leases.commit(claim, whole)
        self._files.write(f"{_key_folder(claim.key)}/artifact.json", encode(whole))
        if self._leases.last(claim.key) != number:  # replaced or deleted meanwhile, by one who knew of this commit
            self._settle(claim.key)
        if cache_dir is not None and self.local_root is None:
            self._adopt(whole, folder, cache_dir)
        return whole

    # -- housekeeping

    @told
    def keys(self) -> Iterator[str]:
        """Keys that have files: artifacts, and attempts that nobody published."""
        if self.local_root is None:
            parts = (path.split("/") for path in self._files.sizes("artifacts"))
            return iter(sorted({part[1] for part in parts if len(part) > 2 and part[2] != "claims"}))
        folders = (f"artifacts/{two}/{key}" for two in self.list("artifacts") for key in self.list(f"artifacts/{two}"))
        return iter([folder.split("/")[2] for folder in folders if set(self._files.children(folder)) - {"claims"}])

    @told
    def attempts(self, key: str) -> list[tuple[int, int]]:
        """(number, bytes) of the key's attempts that have files, published or not."""
        totals: dict[int, int] = {}
        for name, size in self._files.sizes(_key_folder(checked_key(key))).items():
            if match := _ATTEMPT.match(name.split("/")[0]):
                totals[int(match[1])] = totals.get(int(match[1]), 0) + size
        return sorted(totals.items())

    @told
    def size(self, key: str) -> int:
        """Bytes of all that the store holds under the key, scratch included."""
        paths = (_key_folder(checked_key(key)), f"scratch/{key}")
        return sum(sum(self._files.sizes(path).values()) for path in paths)

    @told
    def delete_attempt(self, key: str, n: int) -> None:
        """Remove an attempt's files. Its writer, should it still live, can publish them no more.

        Raises:
            UserError: it is the published one, or somebody is at work on the key.
        """
        self._leases.fence(checked_key(key))
        manifest = self._settle(key)
        folder = f"{_key_folder(key)}/a{n:06d}"
        if manifest is not None and manifest["folder"] == folder:
            raise UserError(f"attempt {n} of {key[:12]} is the published artifact", "use delete_artifact")
        self._files.delete_tree(folder)

    @told
    def delete_artifact(self, key: str) -> None:
        """Remove the key's artifact and all attempts; the log of claims stays, so that no old writer comes back.

        Raises:
            UserError: somebody is at work on the key.
        """
        folder = _key_folder(checked_key(key))
        self._leases.fence(key, delete=True)
        self._files.delete(f"{folder}/artifact.json")
        attempts = self._files.children(folder)
        for name in attempts:
            if _ATTEMPT.match(name):
                self._files.delete_tree(f"{folder}/{name}")
