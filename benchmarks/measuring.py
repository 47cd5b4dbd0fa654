"""What every benchmark shares: timing, medians, the machine's description, and the file of results.

A figure is only worth something with the machine, the versions and the load it was measured under; so
`record` writes these beside it and leaves the sections that it did not measure as they were.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
BUSY = 0.7
"""Load of others above which wall times on two cores are no longer those of a quiet machine."""


class Spent(NamedTuple):
    """Seconds of wall time, and of processor time with that of all child processes that ended.

    Wall time is the figure; where others use the machine too, processor time says how much of it was theirs.
    """

    wall: float
    cpu: float


def spent(work: Callable[[], object]) -> Spent:
    """Time of one call."""
    began, cpu = time.perf_counter(), _cpu_seconds()
    work()
    return Spent(time.perf_counter() - began, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def command(words: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> Spent:
    """Time of a whole process, start-up included; raises with its output where it fails."""

    def work() -> None:
        done = subprocess.run(
            list(words),
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-4000:]}")

    return spent(work)


def figure(times: Sequence[Spent], stages: int | None = None) -> dict[str, Any]:
    """A figure for the results: the median, all measurements, and the median for a stage.

    Args:
        times: the measurements.
        stages: how many stages each of them covers; None where a stage is not the unit.
    """
    middle = statistics.median(t.wall for t in times)
    out: dict[str, Any] = {
        "seconds": round(middle, 3),
        "cpu_seconds": round(statistics.median(t.cpu for t in times), 3),
        "all_seconds": [round(t.wall, 3) for t in times],
    }
    if stages:
        out |= {"stages": stages, "ms_per_stage": round(1000 * middle / stages, 2)}
    return out


def machine() -> dict[str, Any]:
    """Processor, cores, memory, operating system and Python: what a figure depends on."""
    model = platform.processor() or platform.machine()
    memory_gb = None
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        kb = next(s for s in Path("/proc/meminfo").read_text().splitlines() if s.startswith("MemTotal")).split()[1]
        memory_gb = round(int(kb) / 1024**2, 1)
    except (OSError, StopIteration):
        pass  # not Linux: the model is what `platform` says, the memory stays unknown
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": memory_gb,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions(*distributions: str) -> dict[str, str]:
    """{distribution: version} of those that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def circumstances() -> dict[str, Any]:
    """Machine, date, and the load of others when a measurement starts (1.0 is one busy core)."""
    if (load := os.getloadavg()[0]) > BUSY:
        say(f"others are using this machine (load {load:.1f}): the figures will be too high")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "load_before": round(os.getloadavg()[0], 1),
        "machine": machine(),
    }


def record(section: str, values: Mapping[str, Any], file: str = "machinery.json") -> None:
    """Put a section into a results file; the others stay."""
    path = RESULTS / file
    known = json.loads(path.read_text()) if path.exists() else {}
    known[section] = dict(values)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known, indent=2) + "\n")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
