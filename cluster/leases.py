"""Who may make an artifact: a numbered log per key in which each entry can be written once.

`claims/000001.json`, `000002.json`, … are created only if absent, so for each number there is one
winner, on any file system. A lease is an entry; the holder of lease n publishes by creating entry
n+1 of type `commit`, and who takes a dead holder's lease over creates entry n+1 of type `lease`.
One of the two exists afterwards: a writer that lost its lease cannot publish, however long it was
asleep, and no step looks first and acts later. Entries:

    {"type": "lease",   "n": 1, "commit": 0, "nonce": …, "owner": {…}}       at work
    {"type": "commit",  "n": 2, "lease": 1, "nonce": …, "manifest": {…}}     published
    {"type": "release", "n": 2, "lease": 1, "commit": 0, "nonce": …}         given up
    {"type": "deleted", "n": 3, "commit": 0}                     removed (the log stays: numbers are never used twice)

`commit` is the number of the newest commit so far (0: none), so the last entry tells the state.

A lease is live while `000001.beat` changes. Clocks of two machines are never compared: an observer
measures on its own monotonic clock for how long it has seen no change.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.errors import LeaseLost, UserError
from cluster.owner import Owner
from cluster.store_files import encode

__all__ = ["Claim", "Held", "Leases", "Owner", "Published", "last_entry"]

_ENTRY = re.compile(r"^(\d{6})\.json$")


@dataclass(frozen=True)
class Claim:
    """A lease that this run holds: small, picklable, JSON by `to_json`; sent to the worker that publishes."""

    key: str
    n: int
    """Number of the lease in the key's log, and of its attempt folder."""
    nonce: str
    owner: Owner
    commit: int = 0
    """Number of the newest commit before it; 0 where there is none."""
    took_over: str = ""
    """Why an earlier lease counted as expired; empty where none did."""

    def to_json(self) -> dict[str, Any]:
        """A JSON value; `Claim.from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Claim:
        """The claim that `to_json` wrote."""
        return cls(**{**value, "owner": Owner(**value["owner"])})


@dataclass(frozen=True)
class Held:
    """Somebody else is at work on the key; ask again later."""

    key: str
    n: int
    owner: Owner
    beat: str
    unchanged_seconds: float
    """For how long this process has seen the same heartbeat."""
    ttl_seconds: float


@dataclass(frozen=True)
class Published:
    """The artifact exists."""

    key: str
    manifest: dict[str, Any]


@dataclass
class _Seen:
    """When (monotonic seconds) this process first saw the heartbeat that it still sees."""

    beats: dict[tuple[str, int], tuple[bytes, float]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def unchanged_seconds(self, key: str, n: int, beat: bytes) -> float:
        now = time.monotonic()
        with self.lock:
            old, since = self.beats.get((key, n), (None, now))
            if old != beat:
                since = now
            self.beats[key, n] = (beat, since)
        return now - since

    def forget(self, key: str, n: int) -> None:
        with self.lock:
            self.beats.pop((key, n), None)


class Leases:
    """The claim logs of a store.

    Args:
        files: a back end (`cluster.store_local.LocalFiles` or `cluster.store_remote.RemoteFiles`).
        ttl_seconds: a lease whose heartbeat did not change for so long is expired.
    """

    def __init__(self, files: Any, ttl_seconds: float) -> None:
        self.files = files
        self.ttl_seconds = ttl_seconds
        self._seen = _Seen()
        self._logged: set[str] = set()

    @staticmethod
    def folder(key: str) -> str:
        """Path of the key's log."""
        return f"artifacts/{key[:2]}/{key}/claims"

    def begun(self, keys: Iterable[str]) -> list[str]:
        """Those keys that have a log."""
        paths = {f"{self.folder(key)}/000001.json": key for key in keys}  # an entry is never removed
        return [paths[path] for path in self.files.read_many(paths)]

    def last(self, key: str) -> int:
        """Number of the key's last entry; 0 where it has none."""
        return last_entry(self.files.children(self.folder(key)))

    def entry(self, key: str, n: int) -> dict[str, Any]:
        """Entry `n` of the key's log.

        Raises:
            UserError: the file is no JSON object.
            FileNotFoundError: there is none.
        """
        path = f"{self.folder(key)}/{n:06d}.json"
        for attempt in range(20):
            data = self.files.read(path)
            try:
                value = json.loads(data)
                if isinstance(value, dict) and value.get("type") in ("lease", "commit", "release", "deleted"):
                    return value
            except ValueError:
                pass
            if attempt < 19:
                time.sleep(0.01)  # without hard links (see LocalFiles.create) an entry may be read while being written
        raise UserError(
            f"{path} in the store {self.files.url} is damaged: expected a claim entry in JSON, found {data[:60]!r}",
            f"delete the folder artifacts/{key[:2]}/{key} there; the stage then runs again",
        )

    def _append(self, key: str, entry: dict[str, Any]) -> bool:
        """Create the entry; True if it is ours, also where the answer to the first try was lost."""
        path = f"{self.folder(key)}/{entry['n']:06d}.json"
        data = encode(entry)
        if self.files.create(path, data):
            return True
        try:
            return self.files.read(path) == data
        except FileNotFoundError:
            return False

    def newest_commit(self, key: str) -> tuple[int, dict[str, Any] | None]:
        """(number, manifest) of the newest commit, or (0, None)."""
        for _ in range(100):
            n = self.last(key)
            if not n:
                return 0, None
            try:
                entry = self.entry(key, n)
                if entry["type"] == "commit":
                    return n, entry["manifest"]
                commit = entry.get("commit", 0)
                return (commit, self.entry(key, commit)["manifest"]) if commit else (0, None)
            except FileNotFoundError:
                continue  # deleted meanwhile: the log has a newer entry
        raise UserError(
            f"the claims of {key} in the store {self.files.url} have gaps", f"delete artifacts/{key[:2]}/{key}"
        )

    def claim(self, key: str, owner: Owner, *, force: bool) -> Claim | Held | int:
        """Take the lease; or Held while another holds it; or the newest commit's number, unless `force`."""
        n = self.last(key) if key in self._logged else 0  # most keys have no log yet: try, and look only then
        while True:
            commit, why = 0, ""
            if n:
                try:
                    entry = self.entry(key, n)
                except FileNotFoundError:
                    n = self.last(key)
                    continue
                commit = n if entry["type"] == "commit" else entry.get("commit", 0)
                if commit and not force:
                    return commit
                if entry["type"] == "lease":
                    held = self._held(key, entry)
                    why = self._expired(held)
                    if not why:
                        return held
            claim = Claim(key, n + 1, os.urandom(8).hex(), owner, commit, why)
            entry = {"type": "lease", "n": n + 1, "commit": commit, "nonce": claim.nonce, "owner": asdict(owner)}
            if self._append(key, {**entry, "took_over": why} if why else entry):
                self._seen.forget(key, n)
                return claim
            self._logged.add(key)
            n = self.last(key)

    def holder(self, key: str) -> Held | None:
        """Who is at work on the key, if anybody; an expired lease counts as nobody."""
        n = self.last(key)
        entry = self.entry(key, n) if n else {}
        if entry.get("type") != "lease":
            return None
        held = self._held(key, entry)
        return None if self._expired(held) else held

    def _held(self, key: str, entry: dict[str, Any]) -> Held:
        n = entry["n"]
        try:
            beat = self.files.read(f"{self.folder(key)}/{n:06d}.beat")
        except FileNotFoundError:
            beat = b""
        seconds = self._seen.unchanged_seconds(key, n, beat)
        return Held(key, n, Owner(**entry["owner"]), beat.decode(errors="replace"), seconds, self.ttl_seconds)

    def _expired(self, held: Held) -> str:
        if held.owner.gone():
            return f"{held.owner} has ended"
        if held.unchanged_seconds >= self.ttl_seconds:
            return f"{held.owner} has not reported for {self.ttl_seconds:g} s"
        return ""

    def heartbeat(self, claims: Iterable[Claim]) -> list[Claim]:
        """Show that the claims are live; returns those that another took over. Finished ones are left alone."""
        claims = list(claims)
        logs = self.files.children_many([self.folder(claim.key) for claim in claims])
        lost, live = [], []
        for claim in claims:
            if last_entry(logs[self.folder(claim.key)]) <= claim.n:
                live.append(claim)
            elif not self._ended_by(claim):
                lost.append(claim)
        beat = b"%020d" % time.monotonic_ns()  # any value that differs from the last one
        self.files.overwrite_many({f"{self.folder(c.key)}/{c.n:06d}.beat": beat for c in live})
        return lost

    def _ended_by(self, claim: Claim) -> bool:
        """Whether the entry after the claim's lease is the holder's own commit or release."""
        try:
            entry = self.entry(claim.key, claim.n + 1)
        except FileNotFoundError:
            return False
        return entry.get("lease") == claim.n and entry.get("nonce") == claim.nonce

    def standing(self, claim: Claim) -> dict[str, Any] | None:
        """None while the claim stands; the manifest if it was published under it (and not deleted since).

        Raises:
            LeaseLost: it was taken over, or given up.
        """
        last = self.last(claim.key)
        if last <= claim.n:
            return None
        if self._ended_by(claim):
            entry = self.entry(claim.key, claim.n + 1)
            later = (self.entry(claim.key, n)["type"] for n in range(claim.n + 2, last + 1))
            if entry["type"] == "commit" and "deleted" not in later:
                return entry["manifest"]
        raise self._lost(claim)

    def _lost(self, claim: Claim) -> LeaseLost:
        try:
            entry = self.entry(claim.key, claim.n + 1)
        except FileNotFoundError:
            entry = {}
        what = f"{claim.key[:12]} (lease {claim.n}) in the store {self.files.url}"
        if "owner" in entry:
            return LeaseLost(
                f"{Owner(**entry['owner'])} took over {what}", "nothing to do: that one's result counts, not this one's"
            )
        return LeaseLost(f"{what} was given up or deleted, so that nothing can be published under it", "run it again")

    def commit(self, claim: Claim, manifest: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Publish: returns (number, manifest) of the commit, an earlier one of the same claim if there is one.

        Raises:
            LeaseLost: another entry follows the claim's lease.
        """
        n = claim.n + 1
        entry: dict[str, Any] = {
            "type": "commit",
            "n": n,
            "lease": claim.n,
            "nonce": claim.nonce,
            "manifest": manifest,
        }
        if not self._append(claim.key, entry):
            try:
                entry = self.entry(claim.key, n)
            except FileNotFoundError:
                raise self._lost(claim) from None
            if entry["type"] != "commit" or entry["nonce"] != claim.nonce:
                raise self._lost(claim)
        return n, entry["manifest"]

    def release(self, claim: Claim) -> bool:
        """Give the lease up; False where it had ended already (committed, released or taken over)."""
        entry = {"type": "release", "n": claim.n + 1, "lease": claim.n, "commit": claim.commit, "nonce": claim.nonce}
        return self._append(claim.key, entry)

    def fence(self, key: str, *, delete: bool = False) -> int:
        """Make sure that no writer can publish any more under an earlier lease, before files are removed.

        Args:
            delete: also end the newest commit, so that the key has no artifact.

        Returns:
            The number of the log's last entry.

        Raises:
            UserError: somebody is at work on the key.
        """
        while True:
            n = self.last(key)
            if not n:
                return 0
            try:
                entry = self.entry(key, n)
            except FileNotFoundError:
                continue
            if entry["type"] == "lease":
                held = self._held(key, entry)
                if not self._expired(held):
                    raise UserError(f"{key[:12]} is being made by {held.owner}", "wait for it, or cancel that run")
            elif entry["type"] == "deleted" or not delete:
                return n
            commit = n if entry["type"] == "commit" else entry.get("commit", 0)
            new = {"type": "release", "n": n + 1, "lease": n, "commit": commit, "nonce": os.urandom(8).hex()}
            if delete:
                new = {"type": "deleted", "n": n + 1, "commit": 0, "nonce": new["nonce"]}
            if self._append(key, new):
                return n + 1


def last_entry(names: Iterable[str]) -> int:
    """The greatest entry number among the names of a log's files; 0 without any."""
    return max((int(match[1]) for name in names if (match := _ENTRY.match(name))), default=0)
