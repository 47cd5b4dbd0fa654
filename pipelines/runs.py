"""The record of a run, in the store: what was asked, the plan, the state of every stage, decisions.

runs/<run>/run.json      written once: recipe, config, command, stages and keys
runs/<run>/status.json   rewritten while the run goes: state, stages, notices, driver and its beat
runs/<run>/logs/<stage>.log
runs/<run>/ray.log       what Ray said in the driver's process, if anything
runs/<run>/files/<stage>/  samples and traces of stages
runs/<run>/cancel        asks the driver to stop
plans/<plan id>.json     the newest run of the same plan, so that the same command continues it
latest/<recipe>.json     the newest key of each stage of a recipe, so that a change can be explained
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cluster.errors import BadConfig
from cluster.leases import Owner
from cluster.store import Store

OPEN = ("running", "submitted")
NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,99}$")


def slug(text: str) -> str:
    """`text` as a part of a name: lower case, digits, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "run"


def check_name(name: str) -> None:
    """Raise BadConfig unless a run can have that name."""
    if not NAME.match(name):
        raise BadConfig(f"{name!r} cannot be a run's name", "use lower-case letters, digits, dots and dashes")


def new_name(recipe: str) -> str:
    """A run's name: recipe, date and time (UTC), and where in that second it began, in 65,536ths.

    So names sort as the runs began, also those of one second: `latest` goes by it.
    """
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime(seconds))
    return f"{slug(recipe)[:40]}-{moment}-{(nanoseconds << 16) // 10**9:04x}"


def plan_id(recipe: str, keys: Mapping[str, str]) -> str:
    """Identifies a plan: the recipe and the keys of all its stages."""
    text = json.dumps([recipe, sorted(keys.items())])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def driver_facts() -> dict[str, Any]:
    """Who drives: enough for another process on the same host to tell whether it still lives."""
    return asdict(Owner.here(""))


def driver_alive(facts: Mapping[str, Any]) -> bool | None:
    """Whether the driver still lives; None where it is on another host."""
    if facts.get("host") != socket.gethostname():
        return None
    return not Owner(**facts).gone()


class RunRecord:
    """One run's record; `status` is written at most every `every` seconds and at the end.

    The dictionaries are plain JSON, so that a driver of another version, `status` and the report read
    the same thing.
    """

    def __init__(self, store: Store, name: str, info: dict[str, Any], status: dict[str, Any]) -> None:
        self.store = store
        self.name = name
        self.info = info
        self.status = status
        self._written = 0.0
        self._lock = threading.Lock()

    @property
    def folder(self) -> str:
        return f"runs/{self.name}"

    @classmethod
    def create(
        cls,
        store: Store,
        name: str,
        info: dict[str, Any],
        stages: Mapping[str, dict[str, Any]],
        *,
        over: RunRecord | None = None,
    ) -> RunRecord:
        """A new record in state `running`; it takes the place of `over`, which was submitted.

        Raises:
            BadConfig: `name` cannot be one, or a run of that name exists.
        """
        check_name(name)
        status = {"state": "running", "beat": 0, "started": time.time(), "sessions": 1, "stages": dict(stages)}
        status["driver"] = driver_facts()
        record = cls(store, name, {"name": name, "order": list(stages), **info}, status)
        if not store.write_json(f"{record.folder}/run.json", record.info, create=over is None):
            raise BadConfig(f"a run {name} has begun meanwhile", "choose another --name, or leave it out")
        record.write(force=True)
        store.write_json(f"plans/{info['plan']}.json", {"run": name})
        return record

    @classmethod
    def submitted(cls, store: Store, name: str, info: Mapping[str, Any]) -> RunRecord:
        """A record in state `submitted`, which the driver on the cluster takes over."""
        status = {"state": "submitted", "started": time.time(), "stages": {}}
        record = cls(store, name, {"name": name, "order": [], "plan": "", **info}, status)
        store.write_json(f"{record.folder}/run.json", record.info, create=True)
        record.write(force=True)
        return record

    @classmethod
    def load(cls, store: Store, name: str) -> RunRecord:
        """The record of a run.

        Raises:
            BadConfig: no such run; names the nearest one.
        """
        if not NAME.match(name):
            raise BadConfig(f"{name!r} is not the name of a run", "`triptych status` lists them")
        info = store.read_json(f"runs/{name}/run.json")
        if info is None:
            raise _unknown(store, name)
        status = store.read_json(f"runs/{name}/status.json") or {"state": "submitted", "stages": {}}
        stages = status["stages"]  # JSON objects come back sorted by name; the plan's order is the useful one
        status["stages"] = {n: stages[n] for n in [*info.get("order", []), *stages] if n in stages}
        return cls(store, name, info, status)

    def reopen(self) -> None:
        """Take the record over for another session of the same plan."""
        self.status.update(state="running", driver=driver_facts(), sessions=self.status.get("sessions", 1) + 1)
        self.status.pop("ended", None)
        self.store.delete(f"{self.folder}/cancel")
        self.write(force=True)

    def stage(self, name: str) -> dict[str, Any]:
        return self.status["stages"].setdefault(name, {})

    def notice(self, message: str, remedy: str) -> None:
        """Note what concerns the run as a whole and does not end it: what was seen, and what to do."""
        entry = {"time": time.time(), "message": message, "remedy": remedy}
        self.status.setdefault("notices", []).append(entry)

    def write(self, *, force: bool = False, every: float = 1.0) -> None:
        """Write the status; without `force` only when the last write is `every` seconds old."""
        now = time.monotonic()
        if not force and now - self._written < every:
            return
        with self._lock:
            self._written = now
            self.status["beat"] = self.status.get("beat", 0) + 1
            self.status["updated"] = time.time()
            self.store.write_json(f"{self.folder}/status.json", self.status)

    def finish(self, state: str) -> None:
        """Close the record: done, failed, cancelled."""
        self.status.update(state=state, ended=time.time())
        self.write(force=True)

    def state(self) -> str:
        """The run's state as a reader should see it: a running run without its driver is `interrupted`."""
        state = self.status.get("state", "running")
        if state == "running" and driver_alive(self.status.get("driver", {})) is False:
            return "interrupted"
        return state

    def cancel_asked(self) -> bool:
        return self.store.exists(f"{self.folder}/cancel")


def _unknown(store: Store, name: str) -> BadConfig:
    import difflib

    near = difflib.get_close_matches(name, run_names(store), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return BadConfig(f"no run {name!r} in the store {store.url}", f"{hint}`triptych status` lists the runs")


def run_names(store: Store) -> list[str]:
    """All runs of a store, oldest first."""
    names = [os.path.basename(str(path).rstrip("/")) for path in store.list("runs")]
    return sorted((n for n in names if NAME.match(n)), key=lambda n: (n.split("-")[-3:], n))


def resolve_run(store: Store, name: str) -> RunRecord:
    """A run by its name, by a unique beginning of it, or `latest`.

    Raises:
        BadConfig: none or several match.
    """
    if name == "latest":
        names = run_names(store)
        if not names:
            raise BadConfig(f"the store {store.url} holds no runs", "start one: triptych run quickstart")
        return RunRecord.load(store, names[-1])
    if not NAME.match(name) or store.exists(f"runs/{name}/run.json"):
        return RunRecord.load(store, name)
    matches = [n for n in run_names(store) if n.startswith(name)]
    if len(matches) == 1:
        return RunRecord.load(store, matches[0])
    if matches:
        raise BadConfig(f"{name!r} begins the names of {len(matches)} runs", f"for instance {', '.join(matches[-3:])}")
    raise _unknown(store, name)


def newest_of_plan(store: Store, plan: str) -> RunRecord | None:
    """The newest run of a plan, if there is one."""
    pointer = store.read_json(f"plans/{plan}.json")
    if not pointer or not store.exists(f"runs/{pointer['run']}/run.json"):
        return None
    return RunRecord.load(store, pointer["run"])


def remember_keys(store: Store, recipe: str, keys: Mapping[str, str]) -> None:
    """Note the newest key of each stage of a recipe."""
    path = f"latest/{slug(recipe)}.json"
    known = store.read_json(path) or {}
    if any(known.get(name) != key for name, key in keys.items()):
        store.write_json(path, {**known, **keys})


def known_keys(store: Store, recipe: str) -> dict[str, str]:
    """The newest key of each stage of a recipe, from earlier runs."""
    return store.read_json(f"latest/{slug(recipe)}.json") or {}
