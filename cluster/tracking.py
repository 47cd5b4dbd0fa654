"""MLflow as this project uses it: a run per pipeline run, a nested run per stage, nothing else writes.

The tracker lives in the driver. Its methods only note what happened; one background thread imports
MLflow (1.5 s) and writes, so that neither a slow nor a dead tracking server ever holds up, or fails,
a run. Metrics leave about once a second, starts and ends within a quarter of one, in batches.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster import tracking_uri
from cluster.errors import BadConfig
from cluster.tracking_buffer import (
    EXPERIMENT_ID,
    NOTE,
    STRUCTURE_SECONDS,
    RunBuffer,
    clean_tags,
    user_name,
)
from cluster.tracking_run import CACHED, KEY, MADE_BY, RECIPE, RUN, STAGE, STORE, RunHandle, fit_params
from cluster.tracking_uri import default_artifact_root, redact, sqlite_path

FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 0.5, 30.0
GRACE_SECONDS = 10.0
"""How long `close` goes on trying where the tracker does not answer."""

__all__ = ["CACHED", "KEY", "MADE_BY", "RECIPE", "RUN", "STAGE", "STORE", "RunHandle", "Tracker", "registered_keys"]

_log = logging.getLogger("triptych.tracking")


class Tracker:
    """The only MLflow writer of a pipeline run.

    Args:
        uri: tracking URI (http(s) server, sqlite or another database); None switches tracking off.
        experiment: name of the experiment, made where it is missing.
        artifact_root: where a new experiment keeps artifacts; beside a SQLite file by default, and
            left to the server for an http URI.
        warn: receives one-line warnings, without secrets; by default a logger's warning.
    """

    def __init__(
        self,
        uri: str | None,
        experiment: str,
        artifact_root: str | None = None,
        *,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.uri = uri or None
        self.experiment = experiment
        self.experiment_id = ""
        """Known once the first write succeeded."""
        self.artifact_root = artifact_root or (default_artifact_root(uri) if uri else None)
        self.warnings: list[str] = []
        self._warn_outside = warn or _log.warning
        self._local = bool(uri and sqlite_path(uri))
        self._ready = threading.Condition()
        self._due: float | None = None
        self._not_before = 0.0
        self._closing = False
        self._give_up_at = 0.0
        self._dirty: dict[RunBuffer, None] = {}
        self._stale: list[tuple[str, str]] = []
        self._thread: threading.Thread | None = None
        self._failing = ""
        self._run = RunHandle(self, None)

    # ---- what the executor calls --------------------------------------------------------------------

    def check(self) -> None:
        """Raise BadConfig or Unreachable, within 5 s, where this tracker cannot work. No MLflow import."""
        if self.uri:
            tracking_uri.check(self.uri)

    def start_run(
        self,
        name: str,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        resume: str | None = None,
    ) -> None:
        """Begin the parent run, or go on with MLflow run `resume` of a driver that died."""
        self._run = self._start(name, None, tags, params, resume)

    @property
    def run_id(self) -> str:
        """The parent's MLflow run id, as `RunHandle.run_id`."""
        return self._run.run_id

    @property
    def run(self) -> RunHandle:
        """The parent run: metrics, tags, artifacts of the pipeline run as a whole."""
        return self._run

    def wait_known(self, timeout: float) -> bool:
        """Whether the ids of the parent run and of the experiment are known, after at most `timeout` seconds.

        A SQLite file's run id is known at once, the experiment's only after the first write.
        """
        end = time.monotonic() + timeout
        self._run.wait_run_id(timeout)
        while self.uri and not self.experiment_id and time.monotonic() < end:
            time.sleep(0.05)
        return bool(self._run.known_run_id and self.experiment_id)

    def start_stage(
        self,
        stage: str,
        *,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        resume: str | None = None,
    ) -> RunHandle:
        """Begin a nested run for a stage, or go on with MLflow run `resume` (same curves, no doubled step)."""
        return self._start(stage, self._run._buffer, {STAGE: stage} | dict(tags or {}), params, resume)

    def cached_stage(self, stage: str, tags: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> RunHandle:
        """A finished child for a stage that did not have to run; its note links to the run that made the artifact.

        `tags` should carry `triptych.key` and `triptych.made_by_run` (the MLflow run id of the maker).
        """
        made_by = str(tags.get(MADE_BY) or "")
        link = f"MLflow run `{made_by}`" if made_by else "an earlier run"
        if made_by:
            link = f"[{link}](#/experiments/{EXPERIMENT_ID}/runs/{made_by}?workflowType=machine_learning)"
        note = f"**Cached**: nothing was computed. The artifact `{tags.get(KEY, '')}` was made by {link}."
        handle = self._start(stage, self._run._buffer, {STAGE: stage, CACHED: "true", NOTE: note} | dict(tags), params)
        handle.end("FINISHED")
        return handle

    def end_run(self, status: str, metrics: Mapping[str, float] | None = None) -> None:
        """Give the parent its final status."""
        self._run.end(status, metrics)

    def artifact(self, source: str | Path | tuple[str, str | bytes], name: str = "") -> None:
        """An artifact of the parent run, as `RunHandle.artifact`."""
        self._run.artifact(source, name)

    def reconcile(self, run_ids: Iterable[str], status: str = "KILLED") -> None:
        """Set `status` on runs (and their children) that still say RUNNING though their driver is dead."""
        if self.uri:
            with self._ready:
                self._stale += [(run_id, status) for run_id in run_ids]
                self._soon(0)

    def run_url(self, server: str = "") -> str:
        """The page of the parent run on `server` (the tracking server itself by default); may be empty."""
        base = server or (self.uri if self.uri and self.uri.startswith("http") else "")
        run_id = self._run.known_run_id
        if not base or not run_id or not self.experiment_id:
            return ""
        page = f"experiments/{self.experiment_id}/runs/{run_id}"
        return f"{redact(base).rstrip('/')}/#/{page}?workflowType=machine_learning"

    def close(self, timeout: float = 60.0) -> bool:
        """Write what is waiting and stop; False if something could not be written in `timeout` seconds."""
        thread = self._thread
        if thread is None:
            return True
        with self._ready:
            self._closing, self._not_before = True, 0.0
            self._give_up_at = time.monotonic() + min(timeout, GRACE_SECONDS)
            self._soon(0)
        thread.join(timeout)
        with self._ready:
            waiting = [buffer for buffer in self._dirty if buffer.pending or not buffer.created]
        if waiting or thread.is_alive():
            values = sum(len(buffer.pending.points) for buffer in waiting)
            self._warn(
                f"tracking at {redact(self.uri or '')} is incomplete: {len(waiting)} runs with {values} metric values "
                f"were not written ({self._failing or 'no time left'}). All else is whole; "
                "run the same command again when the tracker is back."
            )
            return False
        return True

    # ---- the buffer ---------------------------------------------------------------------------------

    def _start(
        self,
        name: str,
        parent: RunBuffer | None,
        tags: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
        resume: str | None = None,
    ) -> RunHandle:
        if self.uri is None:
            return RunHandle(self, None)
        buffer = RunBuffer(name, parent, resume or None)
        if self._local:
            buffer.run_id = resume or uuid.uuid4().hex
        short, extras = fit_params(params or {})
        with self._changed(STRUCTURE_SECONDS, buffer) as pending:
            defaults = {"mlflow.user": user_name(), "mlflow.source.name": "triptych", "mlflow.source.type": "JOB"}
            pending.tags.update(clean_tags(defaults | dict(tags or {})))
            pending.params.update(short)
            pending.extras.extend(extras)
        return RunHandle(self, buffer)

    def _changed(self, seconds: float, buffer: RunBuffer) -> _Change:
        return _Change(self, seconds, buffer)

    def _wake(self, seconds: float) -> None:
        with self._ready:
            self._soon(seconds)

    def _soon(self, seconds: float) -> None:
        """Have the thread write in `seconds` at the latest (call with the lock held)."""
        due = time.monotonic() + seconds
        if self._due is None or due < self._due:
            self._due = due
            self._ready.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="triptych-tracking", daemon=True)
            self._thread.start()

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        self._warn_outside(message)

    # ---- the background thread ----------------------------------------------------------------------

    def _work(self) -> None:
        writer: Any = None
        backoff = 0.0
        while True:
            self._wait()
            try:
                if writer is None:
                    writer = self._connect()
                self._write(writer)
            except Exception as error:  # the run goes on whatever the tracker does
                self._failing = redact(f"{type(error).__name__}: {error}".split("\n", 1)[0])[:300]
                _log.info("tracking waits: %s", self._failing)
                backoff = min(LAST_BACKOFF_SECONDS, backoff * 2 or FIRST_BACKOFF_SECONDS)
                with self._ready:
                    now = time.monotonic()
                    if self._closing:
                        backoff = FIRST_BACKOFF_SECONDS
                        if now + backoff > self._give_up_at:
                            return
                    self._due = self._not_before = now + backoff
                continue
            backoff, self._failing = 0.0, ""
            with self._ready:
                if self._closing and not self._dirty and not self._stale:
                    return

    def _wait(self) -> None:
        """Sleep until something is due."""
        with self._ready:
            while True:
                now = time.monotonic()
                due = None if self._due is None else max(self._due, self._not_before)
                if due is not None and due <= now:
                    self._due = None
                    return
                self._ready.wait(None if due is None else due - now)

    def _connect(self) -> Any:
        from cluster.tracking_writer import make_writer

        assert self.uri is not None
        try:
            tracking_uri.check(self.uri)
        except BadConfig as error:
            raise ConnectionError(error.message) from None
        writer = make_writer(self.uri, self.experiment, self.artifact_root, self._warn)
        self.experiment_id = str(writer.experiment_id)
        return writer

    def _write(self, writer: Any) -> None:
        with self._ready:
            work = [(buffer, buffer.take()) for buffer in self._dirty]
            self._dirty.clear()
            stale, self._stale = self._stale, []
        try:
            writer.rows(work)
            for buffer, pending in work:
                while pending.extras:
                    writer.extra(buffer, pending.extras[0])
                    pending.extras.pop(0)
            writer.ends(work)
            while stale:
                writer.reconcile(*stale[0])
                stale.pop(0)
        finally:
            with self._ready:
                self._stale = stale + self._stale
                behind = {buffer: pending for buffer, pending in work if pending or not (buffer.created or buffer.lost)}
                for buffer, pending in behind.items():
                    buffer.put_back(pending)
                # in the order of their start: a parent comes before its children
                self._dirty = dict.fromkeys(behind) | self._dirty


class _Change:
    """`with tracker._changed(…) as pending`: the lock held, the buffer marked for the next write."""

    def __init__(self, tracker: Tracker, seconds: float, buffer: RunBuffer) -> None:
        self.tracker, self.seconds, self.buffer = tracker, seconds, buffer

    def __enter__(self) -> Any:
        self.tracker._ready.acquire()
        return self.buffer.pending

    def __exit__(self, *_: Any) -> None:
        self.tracker._dirty.setdefault(self.buffer)
        self.tracker._soon(self.seconds)
        self.tracker._ready.release()


def registered_keys(uri: str, timeout: float = 3.0) -> set[str]:
    """Artifact keys that versions of registered models name; empty where the tracking database does not exist.

    Raises:
        BadConfig, Unreachable: as `Tracker.check`; a caller that deletes must then delete nothing.
    """
    tracking_uri.check(uri, timeout)
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        return set()
    from cluster.tracking_writer import quiet_mlflow

    quiet_mlflow()
    from mlflow import MlflowClient

    client, token = MlflowClient(uri, uri), None
    keys: set[str] = set()
    while True:
        page = client.search_model_versions(max_results=1_000, page_token=token)
        keys.update(version.tags[KEY] for version in page if version.tags.get(KEY))
        token = page.token
        if not token:
            return keys
