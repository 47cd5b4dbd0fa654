"""Runs a `triptych run` until its work is done and kills ranks, raylets and the driver on the way.

`benchmarks.endurance` does it for an hour; the soak tests for seconds.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import say
from cluster.store import Store
from pipelines.runs import RunRecord, run_names

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("rank", "hang", "raylet", "driver")
SHARES = (4, 1, 1, 2)
"""How often each kind is drawn."""


@dataclass
class Fault:
    """One fault and what came of it."""

    kind: str
    at_seconds: float
    """Since the pretraining began."""
    step: int
    """Logged when it happened."""
    back_after_seconds: float | None = None
    """Until a step beyond that was logged; None: another fault came first, or training had ended."""


class Chaos:
    """Runs a command until its work is done, and hurts it on the way.

    Args:
        words: of `triptych run`, without --store.
        mean_seconds: between two faults; the pauses are drawn from an exponential distribution.
        kinds: what may happen, of KINDS.
        most: so many faults at most.
    """

    def __init__(
        self,
        words: Sequence[str],
        store: Path,
        log: Path,
        *,
        kinds: Sequence[str] = KINDS,
        mean_seconds: float = 240.0,
        most: int = 0,
        seed: int = 0,
    ) -> None:
        self.words = [sys.executable, "-m", "pipelines.cli", "run", *words, "--store", str(store)]
        self.store, self.log, self.kinds, self.most = Store(str(store)), log, tuple(kinds), most
        self.random, self.mean = random.Random(seed), mean_seconds
        self.faults: list[Fault] = []
        self.starts = 0
        self.began = 0.0
        self._open: Fault | None = None
        self._furthest = 0

    def run(self, limit_seconds: float) -> int:
        """The exit code of the last start; 124 where the limit came first."""
        end = time.monotonic() + limit_seconds
        failures = 0
        while True:
            code, killed = self._session(end)
            failures = 0 if killed else failures + 1
            if code == 0 or failures > 2 or time.monotonic() > end:
                return code
            say(f"the driver ended with {code}; the same command again")

    def _session(self, end: float) -> tuple[int, bool]:
        """One life of the driver: its exit code, and whether a fault was its end."""
        self.starts += 1
        killed = False
        with self.log.open("ab") as log:
            driver = subprocess.Popen(
                self.words, cwd=ROOT, stdout=log, stderr=log, env=environment(), start_new_session=True
            )
        pause = self._pause()
        while (code := driver.poll()) is None:
            time.sleep(0.5)
            if time.monotonic() > end:
                end_group(driver)
                return 124, True
            stage = self.pretraining()
            self._watch(stage)
            ranks = (stage.get("at_work") or {}).get("ranks") or []
            if stage.get("state") != "running" or not ranks:
                continue
            self.began = self.began or time.monotonic()
            pause -= 0.5
            if pause > 0 or len(self.faults) >= self.most:
                continue
            pause = self._pause()
            kind = self.random.choices(self.kinds, [SHARES[KINDS.index(k)] for k in self.kinds])[0]
            if self._hurt(kind, driver, ranks):
                fault = Fault(kind, round(time.monotonic() - self.began, 1), self._furthest)
                say(f"{fault.at_seconds:.0f} s, step {fault.step}: {kind}")
                self.faults.append(fault)
                self._open = fault
                killed = killed or kind in ("driver", "raylet")
        return code, killed

    def _hurt(self, kind: str, driver: subprocess.Popen[bytes], ranks: list[dict[str, Any]]) -> bool:
        if kind == "driver":
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            wait_for_silence(ranks)
            return True
        if kind == "raylet":
            found = [pid for pid in descendants(driver.pid) if name_of(pid) == "raylet"]
            return bool(found) and send(found[0], signal.SIGKILL)
        victim = self.random.choice(ranks)["pid"]
        return send(victim, signal.SIGSTOP if kind == "hang" else signal.SIGKILL)

    def _pause(self) -> float:
        return max(5.0, self.random.expovariate(1 / self.mean))

    def _watch(self, stage: dict[str, Any]) -> None:
        """Note when training is further than at the last fault."""
        self._furthest = max(self._furthest, step_of(stage))
        if self._open is not None and step_of(stage) > self._open.step:
            self._open.back_after_seconds = round(time.monotonic() - self.began - self._open.at_seconds, 1)
            self._open = None

    def record(self) -> RunRecord | None:
        names = run_names(self.store)
        return RunRecord.load(self.store, names[-1]) if names else None

    def pretraining(self) -> dict[str, Any]:
        """The stage's entry in the newest record; empty before there is one."""
        with suppress(Exception):  # a driver may be writing it, or be killed while it does
            record = self.record()
            if record is not None:
                return dict(record.status["stages"].get("pretrain", {}))
        return {}


def step_of(stage: dict[str, Any]) -> int:
    return int((stage.get("progress") or {}).get("done", 0))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "NO_COLOR": "1"}


def send(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


def end_group(driver: subprocess.Popen[bytes]) -> None:
    """Ask the driver to stop, then kill what it started."""
    driver.send_signal(signal.SIGINT)
    try:
        driver.wait(60)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


def wait_for_silence(ranks: list[dict[str, Any]], seconds: float = 30.0) -> None:
    """Wait until the workers of a killed driver are gone; kill those that its end did not reach (stopped ones)."""
    end = time.monotonic() + seconds
    while any(alive(rank["pid"]) for rank in ranks) and time.monotonic() < end:
        time.sleep(0.2)
    for rank in ranks:
        if alive(rank["pid"]):
            send(rank["pid"], signal.SIGKILL)


def alive(pid: int) -> bool:
    return stat_of(pid)[:1] not in ([], ["Z"], ["X"])


def stat_of(pid: int) -> list[str]:
    """State, parent, … of a process; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def name_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    parents = {int(p.name): stat_of(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit()}
    found, todo = [], [pid]
    while todo:
        current = todo.pop()
        below = [child for child, stat in parents.items() if stat[1:2] == [str(current)]]
        found += below
        todo += below
    return found
