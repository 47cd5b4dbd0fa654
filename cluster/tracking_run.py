"""One MLflow run as the executor sees it: what happened is noted here, the tracker's thread writes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.tracking_buffer import (
    MAX_PARAM,
    METRICS_SECONDS,
    STRUCTURE_SECONDS,
    ArtifactNote,
    DatasetNote,
    Extra,
    ModelNote,
    Point,
    RunBuffer,
    clean_key,
    clean_tags,
    flatten,
    now_ms,
)
from cluster.tracking_uri import redact

if TYPE_CHECKING:
    from cluster.tracking import Tracker

KEY, RUN, STAGE = "triptych.key", "triptych.run", "triptych.stage"
STORE, RECIPE, CACHED = "triptych.store", "triptych.recipe", "triptych.cached"
MADE_BY = "triptych.made_by_run"
STATUSES = ("FINISHED", "FAILED", "KILLED")


class RunHandle:
    """One MLflow run as the executor sees it. Every method returns at once, from any thread."""

    def __init__(self, tracker: Tracker, buffer: RunBuffer | None) -> None:
        self._tracker = tracker
        self._buffer = buffer

    @property
    def run_id(self) -> str:
        """The MLflow run id; waits up to 10 s for a server to give it. Empty where tracking is off or fails."""
        return self.wait_run_id(10)

    @property
    def known_run_id(self) -> str:
        """The run id if it is known now (at once with SQLite), else empty; never waits."""
        return self._buffer.run_id or "" if self._buffer else ""

    def wait_run_id(self, timeout: float) -> str:
        """The run id, waiting at most `timeout` seconds; empty if it does not come."""
        if self._buffer is None:
            return ""
        if not self._buffer.run_id:
            self._tracker._wake(0)
            self._buffer.known.wait(timeout)
        return self._buffer.run_id or ""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values at `step`; a step at or before the metric's last one is dropped."""
        self._points(step, values, final=False)

    def tags(self, tags: Mapping[str, Any]) -> None:
        """Set or replace tags."""
        if self._buffer:
            with self._tracker._changed(STRUCTURE_SECONDS, self._buffer) as pending:
                pending.tags.update(clean_tags(tags))

    def params(self, params: Mapping[str, Any]) -> None:
        """Parameters, nested ones as `a.b`. Longer than 6,000 characters: whole as an artifact, cut here."""
        if self._buffer:
            short, extras = fit_params(params)
            with self._tracker._changed(STRUCTURE_SECONDS, self._buffer) as pending:
                pending.params.update(short)
                pending.extras.extend(extras)

    def dataset(
        self,
        name: str,
        source: str,
        digest: str,
        *,
        schema: Mapping[str, Any] | None = None,
        profile: Mapping[str, Any] | None = None,
        context: str = "training",
    ) -> None:
        """A dataset that the run reads or makes. `digest` may be a whole key: MLflow keeps 36 characters."""
        columns = [{"type": str(kind), "name": key, "required": True} for key, kind in (schema or {}).items()]
        self._extra(
            DatasetNote(
                name=name[:500],
                digest=digest[:36],
                source=json.dumps({"uri": redact(source)}),
                source_type=source.split(":", 1)[0] if "://" in source else "local",
                schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
                profile=json.dumps(dict(profile), sort_keys=True) if profile else None,
                context=context,
            )
        )

    def artifact(self, source: str | Path | tuple[str, str | bytes], name: str = "") -> None:
        """Upload a file or folder (read when it is written, so leave it in place), or `(name, text or bytes)`."""
        if isinstance(source, tuple):
            name, data = source
            self._extra(ArtifactNote(clean_key(name), data=data.encode() if isinstance(data, str) else data))
        else:
            path = Path(source)
            self._extra(ArtifactNote(clean_key(name) if name else "" if path.is_dir() else path.name, path=path))

    def model(
        self,
        name: str,
        source_uri: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, Any] | None = None,
        step: int = 0,
        register_as: str | None = None,
    ) -> None:
        """A model the run made: a logged model linked to the run at `step`; its bytes stay at `source_uri`.

        With `register_as` it also becomes a version of that registered model, unless one with the
        same `triptych.key` exists.
        """
        short, extras = fit_params(params or {})
        tags = clean_tags(tags or {})
        pointer = {"files": redact(source_uri), "key": tags.get(KEY, ""), "params": dict(flatten(params or {}))}
        self._extra(
            ModelNote(
                name=clean_key(name).replace("/", "-").replace(".", "-").replace(":", "-"),
                source_uri=source_uri,
                params=short,
                metrics={clean_key(key): float(value) for key, value in (metrics or {}).items()},
                tags=tags,
                step=step,
                register_as=register_as,
                pointer=pointer,
            ),
            *extras,
        )

    def end(
        self, status: str, metrics: Mapping[str, float] | None = None, tags: Mapping[str, Any] | None = None
    ) -> None:
        """Final status (FINISHED, FAILED or KILLED), with the run's final figures."""
        if status not in STATUSES:
            raise ValueError(f"status {status!r}, expected one of {STATUSES}")
        if self._buffer is None:
            return
        self._points(0, metrics or {}, final=True)
        with self._tracker._changed(STRUCTURE_SECONDS, self._buffer) as pending:
            pending.tags.update(clean_tags(tags or {}))
            pending.end = (status, now_ms())

    def _points(self, step: int, values: Mapping[str, float], final: bool) -> None:
        if self._buffer is None or not values:
            return
        now = now_ms()
        points = [
            Point(clean_key(key), float(value), now, step, final)
            for key, value in values.items()
            if isinstance(value, int | float) or hasattr(value, "__float__")
        ]
        with self._tracker._changed(METRICS_SECONDS, self._buffer) as pending:
            pending.points.extend(points)

    def _extra(self, *notes: Extra) -> None:
        if self._buffer:
            with self._tracker._changed(STRUCTURE_SECONDS, self._buffer) as pending:
                pending.extras.extend(notes)


def fit_params(params: Mapping[str, Any]) -> tuple[dict[str, str], list[ArtifactNote]]:
    """Flattened params that MLflow can hold, and the artifacts that keep whole those it cannot."""
    short, extras = {}, []
    for key, value in flatten(params):
        if len(value) > MAX_PARAM:
            name = f"params/{key.replace('/', '_')}.{hashlib.sha256(value.encode()).hexdigest()[:8]}.json"
            extras.append(ArtifactNote(name, data=json.dumps(value, ensure_ascii=False).encode()))
            value = f"{value[:400]}… ({len(value):,} characters; whole in the artifact {name})"
        short[key] = value
    return short, extras
