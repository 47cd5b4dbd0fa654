"""One stage at work: inside a Ray task, or in the driver when there is no Ray.

`execute` takes a job (bytes, so that nothing is imported before the right folders are on `sys.path`),
runs the task, publishes what it wrote and returns an outcome as plain data. It does not raise: an error
comes back as a class, a message and a log, so that the driver can decide without unpickling exceptions.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import BadData
from cluster.faults import is_out_of_memory
from cluster.leases import Claim
from cluster.store import Store
from cluster.store_uploads import Uploads
from pipelines.stage_log import StageLog
from tasks.base import Artifact, Runtime, Task

Event = dict[str, Any]
Sink = Callable[[list[Event]], None]

MANIFEST_FORMAT = 1
UPLOAD_GRACE_SECONDS = 30.0
"""How long a stage that has failed waits for its newest checkpoint to reach a remote store."""


@dataclass
class Job:
    """All that a worker needs to make one stage.

    Attributes:
        inputs: {field: manifest, or list of manifests}.
        facts: what the driver adds to the manifest (identity, run, git commit).
    """

    stage: str
    task: Task
    claim: Claim
    store_url: str
    inputs: dict[str, Any]
    facts: dict[str, Any]
    run: str
    attempt: int
    runtime: Runtime
    cache_dir: str
    stamps: list[tuple[str, int, int]] = field(default_factory=list)
    """The code's files as they were when the plan was made."""
    sys_path: list[str] = field(default_factory=list)


class StageContext:
    """The engine's side of `tasks.base.Context`."""

    def __init__(self, job: Job, store: Store, out: Path, work: _WorkFolder, log: StageLog, sink: Sink) -> None:
        self.out = out
        self._work = work
        self.runtime = job.runtime
        self.attempt = job.attempt
        self._scratch: Path | None = None
        self.timings: dict[str, float] = {}
        self.placement: dict[str, Any] = job.runtime.model_dump()
        self.datasets: list[dict[str, Any]] = []
        self._job = job
        self._store = store
        self._log = log
        self._sink = sink
        self._pending: list[Event] = []
        self._progress: Event | None = None
        self._sent = 0.0
        self._lock = threading.Lock()
        self._uploads = Uploads(store, job.claim, self._upload_failed, log.write)

    @property
    def work(self) -> Path:
        return self._work.path

    @property
    def scratch(self) -> Path:
        if self._scratch is None:
            self._scratch = self._store.scratch_folder(self._job.claim)
            self._store.download_scratch(self._job.claim, self._scratch)  # nothing to do on a local store
        return self._scratch

    @property
    def used_scratch(self) -> bool:
        return self._scratch is not None

    def _artifact(self, manifest: Mapping[str, Any]) -> Artifact:
        store = open_store(manifest["store"]) if "store" in manifest else self._store
        path = store.fetch(manifest, Path(self._job.cache_dir), lazy=True)
        return Artifact(
            key=manifest["key"],
            kind=manifest.get("kind", ""),
            path=path,
            config=manifest.get("config", {}),
            metrics=manifest.get("metrics", {}),
            inputs=manifest.get("inputs", {}),
        )

    def input(self, field: str) -> Artifact:
        return self._artifact(self._job.inputs[field])

    def inputs(self, field: str) -> Sequence[Artifact]:
        found = self._job.inputs.get(field) or []
        return [self._artifact(manifest) for manifest in (found if isinstance(found, list) else [found])]

    def log(self, message: str) -> None:
        self._log.write(message)

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        with self._lock:
            self._progress = {"type": "progress", "done": done, "total": total, "unit": unit, "shown": shown}
        self.flush(0.25)

    def metric(self, step: int, values: Mapping[str, float]) -> None:
        with self._lock:
            self._pending.append({"type": "metric", "step": step, "values": dict(values), "time": time.time()})
        self.flush(0.5)

    def timing(self, name: str, value: float) -> None:
        self.timings[name] = float(value)

    def placed(self, facts: Mapping[str, Any]) -> None:
        self.placement.update(facts)

    def dataset(self, name: str, **facts: Any) -> None:
        self.datasets.append({"name": name, **facts})

    def file(self, name: str, content: str | Path) -> None:
        path = f"runs/{self._job.run}/files/{self._job.stage}/{name}"
        self._store.write_bytes(path, content.encode() if isinstance(content, str) else content.read_bytes())
        with self._lock:
            self._pending.append({"type": "file", "name": name, "path": path})
        self.flush()

    def cancelled(self) -> bool:
        return False  # the driver interrupts the task itself

    def publish_scratch(self) -> None:
        self._uploads.submit(self.scratch)
        self._send({"type": "saved"})

    def at_work(self, facts: Mapping[str, Any]) -> None:
        self._send({"type": "at-work", "facts": dict(facts)})

    def decided(self, error: str, message: str, decision: str) -> None:
        self._send({"type": "decision", "error": error, "message": message, "decision": decision})

    def _send(self, event: Event) -> None:
        """At once: the process may not live to send it later."""
        with self._lock:
            self._pending.append(event)
        self.flush()

    def close(self, wait_seconds: float) -> None:
        """The stage is at its end; checkpoints that are still on their way to the store get so long."""
        self._uploads.close(wait_seconds)

    def _upload_failed(self, message: str, decision: str) -> None:
        self.log(f"{message}: {decision}")
        self.decided("unreachable", message, decision)

    def flush(self, every: float = 0.0) -> None:
        """Send what is pending, at most each `every` seconds."""
        now = time.monotonic()
        if now - self._sent < every:
            return
        with self._lock:
            events = self._pending + ([self._progress] if self._progress else [])
            self._pending, self._progress = [], None
            self._sent = now
        if events:
            self._sink([{**event, "stage": self._job.stage} for event in events])


_STORES: dict[str, Store] = {}


def open_store(url: str) -> Store:
    """The store at `url`, opened once a process."""
    if url not in _STORES:
        _STORES[url] = Store(url)
    return _STORES[url]


def execute(payload: bytes, sink: Sink, *, capture: bool = True, store: Store | None = None) -> dict[str, Any]:
    """Make a stage. Returns {"ok": True, "manifest": …} or {"ok": False, "error": …}; see `describe`."""
    import cloudpickle

    started = time.time()
    sys_path, stamps, body = cloudpickle.loads(payload)
    sys.path[:0] = [p for p in sys_path if p not in sys.path]
    if changed := _changed(stamps):  # before the job's classes are imported
        message = f"{changed} has changed since the run began, so the stage would not be what its key says"
        remedy = "run the same command again: it plans with the code as it is now"
        return {"ok": False, "error": {"class": "config", "type": "CodeChanged", "message": message, "remedy": remedy}}
    job: Job = cloudpickle.loads(body)
    store = store or open_store(job.store_url)
    log = StageLog(store, job.run, job.stage, capture=capture)
    with log:
        log.write(f"stage {job.stage} ({job.facts['task']}), attempt {job.attempt + 1}, key {job.claim.key}")
        try:
            manifest = _make(job, store, log, sink, started)
            log.write("done")
            return {"ok": True, "manifest": manifest}
        except KeyboardInterrupt:
            log.write("interrupted")
            return {"ok": False, "error": {"class": "cancelled", "message": "cancelled", "log": log.name}}
        except BaseException as error:  # noqa: B036 - the outcome is data, whatever happened
            log.write(traceback.format_exc())
            return {"ok": False, "error": {**describe(error, store), "log": log.name}}


def _make(job: Job, store: Store, log: StageLog, sink: Sink, started: float) -> dict[str, Any]:
    _check_sources(job)
    folder = store.attempt_folder(job.claim)
    work = _WorkFolder(job)
    context = StageContext(job, store, folder, work, log, sink)
    try:
        metrics = job.task.run(context) or {}
        context.close(0)
        context.flush()
        ran = time.time()
        manifest = {
            "format": MANIFEST_FORMAT,
            **job.facts,
            "kind": type(job.task).produces,
            "later": list(type(job.task).later),
            "run": job.run,
            "tries": job.attempt + 1,
            "placement": context.placement,
            "metrics": {name: _number(value) for name, value in metrics.items()},
            "datasets": context.datasets,
            "timings": {"seconds": round(ran - started, 3), "started": started, **context.timings},
            "environment": environment(),
        }
        published = store.publish(job.claim, folder, manifest)
    except BaseException:
        context.close(UPLOAD_GRACE_SECONDS)  # the next attempt may be on another machine
        with contextlib.suppress(Exception):
            context.flush()
            store.discard_attempt(job.claim)
        raise
    finally:
        work.clear()
    if context.used_scratch:
        store.clear_scratch(job.claim)
    return published


def _check_sources(job: Job) -> None:
    """Look whether the data outside the store are those that the key was made from.

    Raises:
        BadData: they have changed since the plan was made.
        BadConfig: they are gone.
    """
    if not (planned := job.facts.get("external")):
        return
    from pipelines.identity import canonical
    from pipelines.plan import differences

    if found := differences(planned, canonical(dict(job.task.external()), "external")):
        raise BadData(
            f"the data have changed since the run began: {found[0]}",
            "run the same command again: it plans with the data as they are now",
        )


class _WorkFolder:
    """A temporary folder made at first use: trivial stages never pay for it."""

    def __init__(self, job: Job) -> None:
        self._name = f"triptych-{job.stage[:40]}-"
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        if self._path is None:
            self._path = Path(tempfile.mkdtemp(prefix=self._name))
        return self._path

    def clear(self) -> None:
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


_ENVIRONMENT: dict[str, Any] | None = None
_LIBRARIES = ("torch", "deepspeed", "ray", "mlflow", "pyarrow", "numpy", "tokenizers", "fsspec", "transformers")


def environment() -> dict[str, Any]:
    """Python, library versions and the host, for the manifest."""
    global _ENVIRONMENT
    if _ENVIRONMENT is None:
        from importlib import metadata

        versions = {}
        for name in _LIBRARIES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
        _ENVIRONMENT = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "host": platform.node(),
            "cpus": os.cpu_count(),
            "libraries": versions,
        }
    return _ENVIRONMENT


def describe(error: BaseException, store: Store) -> dict[str, Any]:
    """An exception as data: {class, type, message, remedy, traceback}.

    Classes: `config`, `data`, `unreachable`, `lease`, `memory`, `nan`, `spike`, `worker`, `room`, `space`,
    `cancelled` and `bug`; the executor's rules for trying again go by them.
    """
    names = [c.__name__ for c in type(error).__mro__]
    text = str(error)
    kind = "bug"
    explained = store.explain(error) if isinstance(error, OSError) and isinstance(error, Exception) else None
    if "BadConfig" in names or "ConfigError" in names or "ValidationError" in names:
        kind = "config"
    elif "BadData" in names:
        kind = "data"
    elif "LeaseLost" in names:
        kind = "lease"
    elif "Cancelled" in names:
        kind = "cancelled"
    elif is_out_of_memory(error):
        kind = "memory"
    elif "NonFiniteLoss" in names:
        kind = "nan"
    elif "LossSpike" in names:
        kind = "spike"
    elif "WorkerLost" in names:
        kind = "worker"
    elif "NoRoom" in names:
        kind = "room"
    elif isinstance(error, OSError) and error.errno == 28:
        kind = "space"
    elif "Unreachable" in names:
        kind = "unreachable"
    elif "UserError" in names or explained is not None:
        kind = "data"
    if kind == "space":
        remedy = "free some space, or choose another --store; then run the same command again"
    else:
        remedy = getattr(error, "remedy", "") or getattr(explained, "remedy", "")
        text = getattr(explained, "message", "") or text
    return {
        "class": kind,
        "type": type(error).__name__,
        "message": getattr(error, "message", "") or text or type(error).__name__,
        "remedy": remedy,
        "handled": getattr(error, "handled", 0),
        "traceback": "" if kind != "bug" else "".join(traceback.format_exception(error)),
    }


def pack(job: Job) -> bytes:
    """The job as bytes for `execute`; classes of a notebook travel by value."""
    import cloudpickle

    return cloudpickle.dumps((job.sys_path, job.stamps, cloudpickle.dumps(job)))


def _changed(stamps: list[tuple[str, int, int]]) -> str:
    """The first file that is not as it was; files of another machine do not count."""
    for path, size, changed in stamps:
        try:
            now = os.stat(path)
        except OSError:
            continue
        if (now.st_size, now.st_mtime_ns) != (size, changed):
            return path
    return ""
