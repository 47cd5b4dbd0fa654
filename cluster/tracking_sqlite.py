"""The default tracker, a local SQLite file: rows of all waiting runs in one transaction.

`MlflowClient` needs 25 ms for a stage there (ten sessions of SQL, each committed); writing into MLflow's
own tables, by its own engine and table definitions, needs less than 1 ms. Datasets, artifacts, models
and everything that reads still go through the client.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.files import cache_folder
from cluster.tracking_buffer import Point, RunBuffer
from cluster.tracking_writer import ClientWriter, Work

MAKE = """
import os, sys
new, path = sys.argv[1:]
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
SqlAlchemyStore("sqlite:///" + new, "unused")._dispose_engine()
os.replace(new, path)
"""


def create_sqlite(path: Path, artifact_root: str) -> None:
    """Make an empty tracking database at `path`, whole or not at all; does nothing where one is.

    MLflow builds it by some forty migrations without a transaction around them: a kill in between, or
    two drivers at once, would leave a file that no MLflow opens again. So it is a copy of an empty one
    that is made once per MLflow version, by another process (the migrations also hold the interpreter's
    lock for seconds), and appears under its name only when it is whole.
    """
    if path.exists() and path.stat().st_size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        shutil.copyfile(_empty_database(path.parent), new)
        root = artifact_root or str(path.resolve().parent)
        with contextlib.closing(sqlite3.connect(new)) as connection, connection:
            connection.execute("UPDATE experiments SET artifact_location = ?", (f"{root}/0",))
        if path.exists() and not path.stat().st_size:
            path.unlink()
        try:
            os.link(new, path)  # unlike a rename, this never replaces another driver's file
        except FileExistsError:
            return
        except OSError:  # a file system without links
            if not path.exists():
                os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _empty_database(otherwise: Path) -> Path:
    """An empty database of the installed MLflow, from the user's cache; below `otherwise` where that is read-only."""
    name = f"mlflow-{version('mlflow')}.db"
    folder = cache_folder() / "tracking"
    if (folder / name).exists():
        return folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        folder = otherwise
    new = folder / f".{name}.{uuid.uuid4().hex[:8]}.making"
    command = [sys.executable, "-c", MAKE, str(new), str(folder / name)]
    maker = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    import mlflow  # noqa: F401  (the import that the caller needs anyway, meanwhile)

    error = maker.communicate()[1]
    if not (folder / name).exists():
        raise OSError(f"MLflow cannot create a tracking database in {folder}: {error.strip()[-500:]}")
    return folder / name


class SqliteWriter(ClientWriter):
    """Rows of all waiting runs in one transaction, through MLflow's own engine and table definitions.

    Run ids are drawn here, so a stage knows its id without waiting.
    """

    def __init__(self, uri: str, experiment: str, artifact_root: str | None, warn: Callable[[str], None]) -> None:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        super().__init__(uri, experiment, artifact_root, warn)
        self.engine = SqlAlchemyStore._get_or_create_engine(uri)  # the engine the client itself uses

    def rows(self, work: Work) -> None:
        from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
        from sqlalchemy import bindparam, text, update
        from sqlalchemy.dialects.sqlite import insert

        for run, pending in work:
            if not run.created and run.resume:
                with self._refusals(run, pending):
                    self._adopt(run, pending)
            if run.lost:
                pending.written()
        live = [(run, pending) for run, pending in work if not run.lost]
        fresh = {id(run): run.fresh(pending.points) for run, pending in live}
        born = [(run, pending) for run, pending in live if not run.created]
        tags = [(run, self._birth_tags(run, p) | {"mlflow.runName": run.name}) for run, p in born]
        tags += [(run, pending.tags) for run, pending in live if run.created]
        early = [(run, pending) for run, pending in live if pending.end and not pending.extras]
        metrics = [_metric_row(run, point) for run, _ in live for point in fresh[id(run)]]
        latest = {(row["run_uuid"], row["key"]): row for row in metrics}
        upsert_tag, upsert_latest = insert(SqlTag.__table__), insert(SqlLatestMetric.__table__)
        set_latest = {name: upsert_latest.excluded[name] for name in ("value", "timestamp", "step", "is_nan")}
        statements = [
            (insert(SqlRun.__table__).on_conflict_do_nothing(), [self._run_row(run) for run, _ in born]),
            (
                upsert_tag.on_conflict_do_update(["key", "run_uuid"], set_={"value": upsert_tag.excluded.value}),
                [_row(run, key, value) for run, values in tags for key, value in values.items()],
            ),
            (
                insert(SqlParam.__table__).on_conflict_do_nothing(),
                [_row(run, key, value) for run, pending in live for key, value in pending.params.items()],
            ),
            (insert(SqlMetric.__table__).on_conflict_do_nothing(), metrics),
            (upsert_latest.on_conflict_do_update(["key", "run_uuid"], set_=set_latest), list(latest.values())),
            (
                update(SqlRun.__table__)
                .where(SqlRun.__table__.c.run_uuid == bindparam("of"))
                .values(status=bindparam("as_status"), end_time=bindparam("at")),
                [{"of": r.run_id, "as_status": p.end[0], "at": p.end[1]} for r, p in early if p.end],
            ),
        ]
        with self.engine.begin() as connection:
            connection.execute(text("PRAGMA busy_timeout = 20000"))
            for statement, rows in statements:
                if rows:
                    connection.execute(statement, rows)
        for run, pending in live:
            run.created = True
            run.logged(fresh[id(run)])
            run.known.set()
            pending.written()
        for _, pending in early:
            pending.end = None

    def _run_row(self, run: RunBuffer) -> dict[str, Any]:
        return {
            "run_uuid": run.run_id,
            "name": run.name,
            "artifact_uri": f"{self.experiment.artifact_location.rstrip('/')}/{run.run_id}/artifacts",
            "experiment_id": int(self.experiment_id),
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": run.user,
            "status": "RUNNING",
            "start_time": run.started_ms,
            "source_version": "",
            "lifecycle_stage": "active",
        }

    def _reopen(self, run: RunBuffer) -> None:
        from mlflow.store.tracking.dbmodels.models import SqlRun
        from sqlalchemy import update

        table = SqlRun.__table__
        with self.engine.begin() as connection:
            connection.execute(
                update(table).where(table.c.run_uuid == run.resume).values(status="RUNNING", end_time=None)
            )


def _row(run: RunBuffer, key: str, value: str) -> dict[str, Any]:
    return {"run_uuid": run.run_id, "key": key, "value": value}


def _metric_row(run: RunBuffer, point: Point) -> dict[str, Any]:
    """As MLflow stores it: NaN as 0 with a flag, infinities as the largest double."""
    value = point.value
    if math.isinf(value):
        value = math.copysign(sys.float_info.max, value)
    nan = math.isnan(value)
    return {
        "run_uuid": run.run_id,
        "key": point.key,
        "value": 0.0 if nan else value,
        "timestamp": point.timestamp_ms,
        "step": point.step,
        "is_nan": nan,
    }
