"""Runs one task in a folder, without the engine: the smallest real Context."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.base import Artifact, Runtime, Task


class FolderContext:
    """A stage's context whose artifact is a plain folder."""

    attempt = 0

    def __init__(self, out: Path, runtime: Runtime, inputs: Mapping[str, Path]) -> None:
        self.out, self.runtime = out, runtime
        self.scratch, self.work = out.parent / f"{out.name}-scratch", out.parent / f"{out.name}-work"
        for folder in (self.out, self.scratch, self.work):
            folder.mkdir(parents=True)
        self._inputs = inputs
        self.logged: list[str] = []
        self.timings: dict[str, float] = {}
        self.metrics_seen: list[tuple[int, dict[str, float]]] = []
        self.files: dict[str, bytes] = {}
        self.places: dict[str, Any] = {}

    def input(self, field: str) -> Artifact:
        return Artifact(key=field, kind=field, path=self._inputs[field], config={}, metrics={}, inputs={})

    def inputs(self, field: str) -> list[Artifact]:
        return [self.input(field)]

    def log(self, message: str) -> None:
        self.logged.append(message)

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        assert 0 <= done <= total

    def metric(self, step: int, values: Mapping[str, float]) -> None:
        self.metrics_seen.append((step, dict(values)))

    def timing(self, name: str, value: float) -> None:
        self.timings[name] = value

    def placed(self, facts: Mapping[str, Any]) -> None:
        self.placement = dict(facts)

    def dataset(self, name: str, **facts: Any) -> None:
        pass

    def file(self, name: str, content: str | Path) -> None:
        self.files[name] = content.encode() if isinstance(content, str) else content.read_bytes()

    def cancelled(self) -> bool:
        return False

    def publish_scratch(self) -> None:
        pass

    def at_work(self, facts: Mapping[str, Any]) -> None:
        self.places.update(facts)

    def decided(self, error: str, message: str, decision: str) -> None:
        self.logged.append(f"{error}: {message}: {decision}")


def run_stage(task: Task, out: Path, **inputs: Path) -> FolderContext:
    """Run `task` into the new folder `out`; `inputs` are the folders behind its edges."""
    context = FolderContext(out, task.runtime, inputs)
    context.metrics = task.run(context)
    return context


def digests(folder: Path) -> dict[str, str]:
    """{relative path: checksum} of every file below a folder."""
    return {
        str(p.relative_to(folder)): hashlib.blake2b(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
