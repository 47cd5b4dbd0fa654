"""Calls MLflow: turns pending changes of runs into as few calls as it can.

`ClientWriter` works with any tracker that MLflow knows; `tracking_sqlite` has a faster one for the
default, a local file.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.tracking_buffer import (
    EXPERIMENT_ID,
    NOTE,
    ArtifactNote,
    DatasetNote,
    Extra,
    ModelNote,
    Pending,
    Point,
    RunBuffer,
    clean_key,
    now_ms,
)
from cluster.tracking_uri import redact, sqlite_path

Work = list[tuple[RunBuffer, Pending]]
REFUSED = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "INVALID_STATE",
    "BAD_REQUEST",
}
UID = "triptych.uid"
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # its pages then open on training runs, not chat traces
    NOTE: "Runs of Triptych: open a run with + to see its stages; the report is among the artifacts of the run.",
}


def quiet_mlflow() -> None:
    """Set MLflow's switches for a driver: no telemetry, no prints between our lines, our own retries."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def make_writer(uri: str, experiment: str, artifact_root: str | None, warn: Callable[[str], None]) -> ClientWriter:
    """Connect. Raises what MLflow raises; imports MLflow, so call it on the background thread."""
    quiet_mlflow()
    path = sqlite_path(uri)
    if path is None:
        return ClientWriter(uri, experiment, artifact_root, warn)
    from cluster.tracking_sqlite import SqliteWriter, create_sqlite

    create_sqlite(path, artifact_root or "")
    return SqliteWriter(uri, experiment, artifact_root, warn)


class ClientWriter:
    """Writes through `MlflowClient` with explicit run ids."""

    def __init__(self, uri: str, experiment: str, artifact_root: str | None, warn: Callable[[str], None]) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(uri, uri)
        self.warn = warn
        self.experiment = self._experiment(experiment, artifact_root)
        self.experiment_id = self.experiment.experiment_id

    def _experiment(self, name: str, artifact_root: str | None) -> Any:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        if found is None:
            location = f"{artifact_root.rstrip('/')}/{clean_key(name)}" if artifact_root else None
            with contextlib.suppress(MlflowException):  # another driver may have made it meanwhile
                self.client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
            found = self.client.get_experiment_by_name(name)
        if found is None:
            raise OSError(f"the tracker has no experiment {name!r} and does not let us make one")
        return found

    # rows: runs, tags, params, metrics, status -----------------------------------------------------

    def rows(self, work: Work) -> None:
        """Create runs and write their tags, params and metrics; what is written leaves its Pending."""
        for run, pending in work:
            if run.lost:
                pending.written()
                continue
            with self._refusals(run, pending):
                if not run.created:
                    self._create(run, pending)
                self._log(run, pending)

    def ends(self, work: Work) -> None:
        """Write final statuses: after everything else, so that a finished run is a complete one."""
        for run, pending in work:
            if pending.end and not run.lost:
                with self._refusals(run, pending):
                    self.client.set_terminated(run.run_id, *pending.end)
            pending.end = None

    def _create(self, run: RunBuffer, pending: Pending) -> None:
        if run.resume and self._adopt(run, pending):
            return
        found = self._find(run) if run.tried else None
        if found is None:
            run.tried = True
            tags = self._birth_tags(run, pending) | {UID: run.uid}
            found = self.client.create_run(self.experiment_id, run.started_ms, tags, run.name)
        self._born(run, found.info.run_id)
        pending.tags = {}

    def _birth_tags(self, run: RunBuffer, pending: Pending) -> dict[str, str]:
        tags = dict(pending.tags)
        if NOTE in tags:
            tags[NOTE] = tags[NOTE].replace(EXPERIMENT_ID, str(self.experiment_id))
        if run.parent is not None and not run.parent.lost:
            if run.parent.run_id is None:
                raise ConnectionError("the parent run is not recorded yet")
            tags["mlflow.parentRunId"] = run.parent.run_id
        return tags

    def _born(self, run: RunBuffer, run_id: str) -> None:
        run.run_id, run.created = run_id, True
        run.known.set()

    def _find(self, run: RunBuffer) -> Any:
        """The run that a creation without an answer may have left, by its unique tag."""
        found = self.client.search_runs([self.experiment_id], f"tags.`{UID}` = '{run.uid}'", max_results=1)
        return found[0] if found else None

    def _adopt(self, run: RunBuffer, pending: Pending) -> bool:
        """Go on with the run of an earlier driver: RUNNING again, its last steps known, its params kept."""
        from mlflow.exceptions import MlflowException

        try:
            old = self.client.get_run(run.resume)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            old = None
        if old is None or old.info.lifecycle_stage != "active":
            self.warn(f"MLflow run {run.resume} of {run.name} is gone; a new one goes on")
            run.resume = None
            if run.run_id is not None:
                run.run_id = uuid.uuid4().hex
            return False
        for key in old.data.metrics:
            if history := self.client.get_metric_history(run.resume, key):
                latest = max(history, key=lambda metric: (metric.step, metric.timestamp))
                run.last[key] = Point(key, latest.value, latest.timestamp, latest.step)
        changed = {k: [old.data.params[k], v] for k, v in pending.params.items() if old.data.params.get(k, v) != v}
        if changed:
            pending.tags["triptych.changed_on_resume"] = json.dumps(changed, sort_keys=True)[:4000]
        pending.params = {k: v for k, v in pending.params.items() if k not in old.data.params}
        self._reopen(run)
        self._born(run, old.info.run_id)
        return True

    def _reopen(self, run: RunBuffer) -> None:
        self.client.update_run(run.resume, status="RUNNING")

    def _log(self, run: RunBuffer, pending: Pending) -> None:
        from mlflow.entities import Metric, Param, RunTag

        points = run.fresh(pending.points)
        params = [Param(key, value) for key, value in pending.params.items()]
        tags = [RunTag(key, value) for key, value in pending.tags.items()]
        for start in range(0, max(len(points), 1), 800):  # 1,000 entities a call: room for 100 params and tags each
            part = points[start : start + 800]
            metrics = [Metric(p.key, p.value, p.timestamp_ms, p.step) for p in part]
            self.client.log_batch(run.run_id, metrics, params if start == 0 else (), tags if start == 0 else ())
            run.logged(part)
        pending.written()

    @contextlib.contextmanager
    def _refusals(self, run: RunBuffer, pending: Pending) -> Any:
        """Give up on what MLflow refuses for good; let everything else (no answer, locked) be tried again."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            self.warn(f"MLflow refused data of {run.name}: {redact(str(error))[:300]}")
            pending.written()
            run.lost = not run.created or "active" in str(error) or error.error_code == "RESOURCE_DOES_NOT_EXIST"
            run.known.set()

    # extras: datasets, artifacts, models -------------------------------------------------------------

    def extra(self, run: RunBuffer, note: Extra) -> None:
        """Write one dataset, artifact or model. Raises on a failure worth another try."""
        if run.lost:
            return
        with self._refusals(run, Pending()):
            try:
                if isinstance(note, DatasetNote):
                    self._dataset(run, note)
                elif isinstance(note, ArtifactNote):
                    self._artifact(run, note)
                else:
                    self._model(run, note)
            except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
                self.warn(f"cannot record {note.name} of {run.name} in MLflow: {error}")

    def _dataset(self, run: RunBuffer, note: DatasetNote) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(note.name, note.digest, note.source_type, note.source, note.schema, note.profile)
        self.client.log_inputs(run.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", note.context)])])

    def _artifact(self, run: RunBuffer, note: ArtifactNote) -> None:
        folder, _, name = note.name.rpartition("/")
        if note.path is not None and note.path.is_dir():
            self.client.log_artifacts(run.run_id, str(note.path), note.name or None)
        elif note.path is not None and note.path.name == name:
            self.client.log_artifact(run.run_id, str(note.path), folder or None)
        else:
            with tempfile.TemporaryDirectory() as work:
                copy = Path(work, name)
                copy.write_bytes(note.path.read_bytes() if note.path is not None else note.data or b"")
                self.client.log_artifact(run.run_id, str(copy), folder or None)

    def _model(self, run: RunBuffer, note: ModelNote) -> None:
        from mlflow.entities import LoggedModelOutput, Metric

        if note.model_id is None:
            made = self.client.create_logged_model(
                self.experiment_id, note.name, run.run_id, note.tags, note.params, note.tags.get("triptych.kind")
            )
            note.model_id = made.model_id
        if not note.linked:
            with tempfile.TemporaryDirectory() as work:
                Path(work, "where.json").write_text(json.dumps(note.pointer, indent=2, sort_keys=True) + "\n")
                self.client.log_model_artifacts(note.model_id, work)
            self.client.finalize_logged_model(note.model_id, "READY")
            self.client.log_outputs(run.run_id, [LoggedModelOutput(note.model_id, note.step)])
            note.linked = True
        # The very points that the run holds, said again with the model's id: MLflow keeps a point once.
        points = [Point(key, value, now_ms(), note.step, final=True) for key, value in note.metrics.items()]
        fresh = run.fresh(points)
        run.logged(fresh)
        points = [run.last[point.key] for point in points]
        self.client.log_batch(
            run.run_id, [Metric(p.key, p.value, p.timestamp_ms, p.step, note.model_id) for p in points]
        )
        if note.register_as:
            self._register(run, note)

    def _register(self, run: RunBuffer, note: ModelNote) -> None:
        from mlflow.exceptions import MlflowException

        assert note.register_as is not None
        try:
            self.client.create_registered_model(
                note.register_as, description="Made by Triptych; a version's tags name its artifact's key and store."
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        key = note.tags.get("triptych.key", "")
        for version in self.client.search_model_versions(f"name = '{note.register_as}'"):
            if key and version.tags.get("triptych.key") == key:
                return  # made by an earlier attempt, or by a run that shares the artifact
        description = f"{note.name}, made by {note.tags.get('triptych.run', 'a run')}; files in {note.source_uri}"
        for source in (note.source_uri, f"models:/{note.model_id}"):
            try:
                self.client.create_model_version(
                    note.register_as,
                    source,
                    run.run_id,
                    note.tags,
                    description=description,
                    await_creation_for=0,
                    model_id=note.model_id,
                )
                return
            except MlflowException as error:
                # a server accepts no local path it does not own: then the version names the logged model
                if error.error_code != "INVALID_PARAMETER_VALUE" or source.startswith("models:"):
                    raise

    # runs of other drivers ---------------------------------------------------------------------------

    def reconcile(self, run_id: str, status: str) -> None:
        """Set `status` on a run and its children that say RUNNING although their driver is gone."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
            running = f"tags.mlflow.parentRunId = '{run_id}' and status = 'RUNNING'"
            children = self.client.search_runs([run.info.experiment_id], running, max_results=5_000)
            for stale in [*children, run]:
                if stale.info.status == "RUNNING":
                    self.client.set_terminated(stale.info.run_id, status)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
