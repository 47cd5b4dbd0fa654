"""What one MLflow run has yet to be told, and the limits MLflow sets on names and sizes.

A tracker keeps a `RunBuffer` per run instead of a queue of calls: whatever piles up between two
writes (start, metrics, end) leaves in one go, and a write that failed is put back and tried again.
"""

from __future__ import annotations

import functools
import getpass
import json
import math
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

NOTE = "mlflow.note.content"
EXPERIMENT_ID = "{experiment_id}"
"""Stands for the experiment's id in a note until that is known."""
STRUCTURE_SECONDS = 0.25
"""How long a start, an end, an artifact may wait, so that the ones just after it go along."""
METRICS_SECONDS = 1.0
MAX_PARAM = 6_000
MAX_TAG = 8_000
MAX_KEY = 250
MAX_POINTS = 200_000
"""Points kept for a run while the server is away; beyond it every second one is let go."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@functools.cache
def user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def clean_key(key: str) -> str:
    """A name that MLflow accepts: letters, digits, `_ - . / : space`, no path tricks, 250 characters."""
    key = re.sub(r"[^\w\-. /:]", "_", str(key))
    return "/".join(part.lstrip(".") or "_" for part in key.split("/"))[:MAX_KEY]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield `(dotted.name, text)` of a nested config; lists become JSON, as people compare them whole."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{key}.")
        elif isinstance(value, str):
            yield clean_key(key), value
        else:
            yield clean_key(key), json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)


def clean_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as text; one that is too long ends in a note that says so."""
    cleaned = {}
    for key, value in tags.items():
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        if len(text) > MAX_TAG:
            text = f"{text[: MAX_TAG - 60]}… (cut; {len(text):,} characters in all)"
        cleaned[clean_key(key)] = text
    return cleaned


class Point(NamedTuple):
    """One value of one metric. A `final` one stands for the whole run, at whatever step comes next."""

    key: str
    value: float
    timestamp_ms: int
    step: int
    final: bool = False


@dataclass
class DatasetNote:
    """A dataset to link to a run. `schema` and `profile` are JSON text."""

    name: str
    digest: str
    source: str
    source_type: str
    schema: str | None
    profile: str | None
    context: str


@dataclass
class ArtifactNote:
    """A file or folder to upload, or `data` to store under `name`."""

    name: str
    path: Path | None = None
    data: bytes | None = None


@dataclass
class ModelNote:
    """A model made by a run. `model_id` is filled once MLflow has given it, so that a retry goes on from there."""

    name: str
    source_uri: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    step: int
    register_as: str | None
    pointer: dict[str, Any]
    model_id: str | None = None
    linked: bool = False


Extra = DatasetNote | ArtifactNote | ModelNote


@dataclass
class Pending:
    """What is not written yet."""

    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    extras: list[Extra] = field(default_factory=list)
    end: tuple[str, int] | None = None

    def written(self) -> None:
        """Forget tags, params and points; extras and the end are written apart."""
        self.tags, self.params, self.points = {}, {}, []

    def __bool__(self) -> bool:
        return bool(self.tags or self.params or self.points or self.extras or self.end)


@dataclass(eq=False)
class RunBuffer:
    """One MLflow run of ours, known to MLflow or not yet. The tracker's lock guards `pending`."""

    name: str
    parent: RunBuffer | None
    resume: str | None
    run_id: str | None = None
    started_ms: int = field(default_factory=now_ms)
    created: bool = False
    tried: bool = False
    """A creation was attempted and its answer never came: look for the run before making another."""
    lost: bool = False
    """MLflow refuses this run (deleted by hand, say): write no more."""
    known: threading.Event = field(default_factory=threading.Event)
    pending: Pending = field(default_factory=Pending)
    last: dict[str, Point] = field(default_factory=dict)
    """metric → the last point that MLflow holds."""
    user: str = field(default_factory=user_name)
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)

    def take(self) -> Pending:
        taken, self.pending = self.pending, Pending()
        return taken

    def put_back(self, rest: Pending) -> None:
        """Return what could not be written; newer values win."""
        newer = self.pending
        points = rest.points + newer.points
        while len(points) > MAX_POINTS:
            points = points[::2]
        self.pending = Pending(
            rest.tags | newer.tags,
            rest.params | newer.params,
            points,
            rest.extras + newer.extras,
            newer.end or rest.end,
        )

    def fresh(self, points: list[Point]) -> list[Point]:
        """Drop points at or before the last logged step of their metric, so that no curve has a doubled step.

        A final value equal to the last one is dropped as well; another one follows the curve's last step.
        """
        last, kept = dict(self.last), []
        for point in points:
            before = last.get(point.key)
            if before is not None and point.final:
                if same(before.value, point.value):
                    continue
                point = point._replace(step=before.step + 1)
            elif before is not None and point.step <= before.step:
                continue
            last[point.key] = point
            kept.append(point)
        return kept

    def logged(self, points: list[Point]) -> None:
        """Remember that MLflow holds `points` (in order)."""
        self.last.update((point.key, point) for point in points)


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
