"""Metaflow: a linear flow of n steps, and a foreach of n tasks; each task stores one number.

Set to be quick: local datastore and metadata, no pylint, quiet, two workers, and a limit of splits that
lets the foreach run. Metaflow has no cache; the nearest to a no-op is `resume` of a finished run, which
clones every task's result instead of running it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring import Spent, command, figure, say


def flow(shape: str, n: int) -> str:
    """The source of a flow with n tasks of work (and, wide, a start, a join and an end beside them)."""
    head = "from metaflow import FlowSpec, step\n\n\nclass Trivial(FlowSpec):\n"
    if shape == "chain":
        names = ["start", *(f"s{i:04d}" for i in range(1, n - 1)), "end"]
        body = "".join(
            f"    @step\n    def {name}(self):\n        self.number = {i}\n"
            + (f"        self.next(self.{names[i + 1]})\n\n" if i + 1 < n else "\n")
            for i, name in enumerate(names)
        )
    else:
        body = (
            f"    @step\n    def start(self):\n        self.items = list(range({n}))\n"
            "        self.next(self.work, foreach='items')\n\n"
            "    @step\n    def work(self):\n        self.number = self.input\n        self.next(self.join)\n\n"
            "    @step\n    def join(self, inputs):\n        self.next(self.end)\n\n"
            "    @step\n    def end(self):\n        pass\n\n"
        )
    return head + body + '\nif __name__ == "__main__":\n    Trivial()\n'


def measure(python: str, shape: str, n: int, *, runs: int, noops: int, workers: int = 2) -> dict[str, Any]:
    """Whole processes: a run in a fresh folder, and `resume` of the finished run."""
    times: list[Spent] = []
    resumed: list[Spent] = []
    for number in range(runs):
        folder = Path(tempfile.mkdtemp(prefix="bench-metaflow-"))
        env = {
            "METAFLOW_HOME": str(folder / "home"),
            "METAFLOW_DEFAULT_DATASTORE": "local",
            "METAFLOW_DEFAULT_METADATA": "local",
            "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder),
            "USERNAME": "bench",
        }
        limits = ["--max-workers", str(workers), "--max-num-splits", str(n + 1)]
        base = [python, "flow.py", "--quiet", "--no-pylint"]
        try:
            (folder / "flow.py").write_text(flow(shape, n))
            times.append(command([*base, "run", *limits, "--run-id-file", "id"], cwd=folder, env=env))
            say(f"metaflow {shape} {n}: {times[-1].wall:.1f} s")
            if number == runs - 1:
                origin = (folder / "id").read_text().strip()
                again = [*base, "resume", *limits, "--origin-run-id", origin]
                resumed = [command(again, cwd=folder, env=env) for _ in range(noops)]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return {"run": figure(times, n), "resume_finished": figure(resumed, n)}
