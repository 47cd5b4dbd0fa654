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

import calendar
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar

from cluster.errors import BadConfig, Unreachable, UserError
from cluster.leases import Owner
from cluster.store import Store

OPEN = ("running", "submitted")
NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,99}$")
MADE = re.compile(r"-(\d{8}-\d{6})-([0-9a-f]{4})$")
"""The end of a name of `new_name`."""

Read = TypeVar("Read")


def slug(text: str) -> str:
    """`text` as a part of a name: lower case, digits, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "run"


def check_name(name: str) -> None:
    """Raise BadConfig unless a run can have that name."""
    if not NAME.match(name):
        raise BadConfig(f"{name!r} cannot be a run's name", "use lower-case letters, digits, dots and dashes")


def new_name(recipe: str) -> str:
    """A run's name: recipe, date and time (UTC), and where in that second it began, in 65,536ths.

    So a name tells when the run began, also of those of one second: `latest` goes by it.
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
            UserError: the record is damaged.
        """
        if not NAME.match(name):
            raise BadConfig(f"{name!r} is not the name of a run", "`triptych status` lists them")
        record = _read(store, name)
        if record is None:
            raise _unknown(store, name)
        return record

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


def _read(store: Store, name: str) -> RunRecord | None:
    """The record below `runs/name`; None where there is no `run.json`. Raises UserError where it is damaged."""
    info = _read_json(store, f"runs/{name}/run.json")
    if info is None:
        return None
    status = _read_json(store, f"runs/{name}/status.json")
    if status is None:
        status = {"state": "submitted", "stages": {}}
    stages = status.get("stages")
    if not isinstance(stages, dict):
        raise _damaged(store, f"runs/{name}/status.json", "it has no stages")
    # JSON objects come back sorted by name; the plan's order is the useful one
    status["stages"] = {n: stages[n] for n in [*info.get("order", []), *stages] if n in stages}
    return RunRecord(store, name, info, status)


def _read_json(store: Store, path: str) -> dict[str, Any] | None:
    try:
        found = store.read_json(path)
    except UnicodeDecodeError as error:
        raise _damaged(store, path, str(error)) from None
    if found is not None and not isinstance(found, dict):
        raise _damaged(store, path, f"expected a JSON object, found {type(found).__name__}")
    return found


def _damaged(store: Store, path: str, problem: str) -> UserError:
    return UserError(f"{path} in the store {store.url} is damaged: {problem}", "put it back, or delete the file")


def _unknown(store: Store, name: str) -> BadConfig:
    import difflib

    near = difflib.get_close_matches(name, run_names(store), n=3, cutoff=0.5)
    there = [n for n in near if store.exists(f"runs/{n}/run.json")]
    hint = f"did you mean {there[0]}? " if there else ""
    return BadConfig(f"no run {name!r} in the store {store.url}", f"{hint}`triptych status` lists the runs")


def run_names(store: Store) -> list[str]:
    """All names below `runs/`, in the order in which the runs began; some may have no record, or a damaged one.

    A name that was made tells when its run began; the record is read only of a run that was given its name.
    """
    names = [name for path in store.list("runs") if NAME.match(name := os.path.basename(str(path).rstrip("/")))]
    began = {name: _moment(name) for name in names}
    given = [name for name in names if began[name] is None]
    began.update(zip(given, _concurrently(store, lambda name: _started(store, name), given), strict=True))
    return sorted(names, key=lambda name: (began[name] or 0.0, name))


def _moment(name: str) -> float | None:
    """Seconds since 1970 that a name of `new_name` tells."""
    found = MADE.search(name)
    if found is None:
        return None
    try:
        return calendar.timegm(time.strptime(found[1], "%Y%m%d-%H%M%S")) + int(found[2], 16) / 65536
    except ValueError:
        return None


def _started(store: Store, name: str) -> float:
    """When the run of a record began; 0 where it cannot be read."""
    try:
        return float((_read_json(store, f"runs/{name}/status.json") or {}).get("started") or 0.0)
    except Unreachable:
        raise
    except (UserError, TypeError, ValueError):
        return 0.0


def load_runs(store: Store) -> tuple[list[RunRecord], dict[str, str]]:
    """All records, oldest run first, and {name: what is wrong} of damaged ones. What has no `run.json` is no run."""

    def read(name: str) -> RunRecord | str | None:
        try:
            return _read(store, name)
        except Unreachable:
            raise
        except UserError as error:
            return error.message

    names = run_names(store)
    found = dict(zip(names, _concurrently(store, read, names), strict=True))
    damaged = {name: problem for name, problem in found.items() if isinstance(problem, str)}
    return [record for record in found.values() if isinstance(record, RunRecord)], damaged


def _concurrently(store: Store, call: Callable[[str], Read], names: list[str]) -> list[Read]:
    """`call` of each name; many at a time where the store is remote."""
    if store.local_root is not None or len(names) < 2:
        return [call(name) for name in names]
    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(call, names))


def resolve_run(store: Store, name: str) -> RunRecord:
    """A run by its name, by a unique beginning of it, or `latest`.

    Raises:
        BadConfig: none or several match.
        UserError: its record is damaged.
    """

    def there(name: str) -> bool:
        return store.exists(f"runs/{name}/run.json")

    if name == "latest":
        newest = next(filter(there, reversed(run_names(store))), None)
        if newest is None:
            raise BadConfig(f"the store {store.url} holds no runs", "start one: triptych run quickstart")
        return RunRecord.load(store, newest)
    if not NAME.match(name) or there(name):
        return RunRecord.load(store, name)
    matches = [n for n in run_names(store) if n.startswith(name) and there(n)]
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
