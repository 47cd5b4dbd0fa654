"""Which MLflow run made an artifact: the stage's run in the record of the run that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cluster.store import Store
from pipelines.runs import RunRecord


class Maker(NamedTuple):
    """Where an artifact was made. Empty where it is not known, as without tracking."""

    run: str
    """Name of the run in the store."""
    mlflow_run: str
    experiment_id: str
    url: str
    """The MLflow run's page; empty where no server shows it, as with a SQLite file."""

    @property
    def fragment(self) -> str:
        """The page's address on any MLflow server of that tracker, `triptych ui` included."""
        if not (self.mlflow_run and self.experiment_id):
            return ""
        return page(self.experiment_id, self.mlflow_run)

    def as_json(self) -> dict[str, str]:
        return {k: v for k, v in {**self._asdict(), "fragment": self.fragment}.items() if v}


def page(experiment_id: str, mlflow_run: str) -> str:
    """A run's page as one wants it here: of a training, not of chat traces."""
    return f"#/experiments/{experiment_id}/runs/{mlflow_run}?workflowType=machine_learning"


class Makers:
    """Makers of artifacts, each record read once. `record` is a run at work, whose stored state may be older."""

    def __init__(self, store: Store, record: RunRecord | None = None) -> None:
        self._store = store
        self._record = record
        self._known: dict[str, tuple[dict[str, str], Mapping[str, Any]]] = {}

    def of(self, manifest: Mapping[str, Any]) -> Maker:
        """The stage run that made the artifact of a manifest."""
        run = str(manifest.get("run") or "")
        runs, where = self._look(run)
        return _maker(run, runs.get(manifest["key"], ""), where)

    def of_stage(self, entry: Mapping[str, Any]) -> Maker:
        """The run of a stage of `record`, whether or not it made anything."""
        assert self._record is not None
        where = self._record.info.get("mlflow") or {}
        return _maker(self._record.name, str(entry.get("mlflow_run") or ""), where)

    def _look(self, run: str) -> tuple[dict[str, str], Mapping[str, Any]]:
        """({key: MLflow run id}, {uri, experiment_id, …}) of a run."""
        if self._record is not None and run == self._record.name:
            return _ids(self._record.status), self._record.info.get("mlflow") or {}
        if run not in self._known:
            status = self._store.read_json(f"runs/{run}/status.json") if run else None
            info = self._store.read_json(f"runs/{run}/run.json") if run else None
            self._known[run] = _ids(status or {}), (info or {}).get("mlflow") or {}
        return self._known[run]


def _ids(status: Mapping[str, Any]) -> dict[str, str]:
    return {str(e.get("key")): str(e.get("mlflow_run") or "") for e in status.get("stages", {}).values()}


def _maker(run: str, mlflow_run: str, where: Mapping[str, Any]) -> Maker:
    found = Maker(run, mlflow_run, str(where.get("experiment_id") or ""), "")
    server = str(where.get("uri") or "")
    if found.fragment and server.startswith(("http://", "https://")):
        return found._replace(url=f"{server.rstrip('/')}/{found.fragment}")
    return found
