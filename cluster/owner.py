"""Which process holds a lease, and whether it is certainly dead.

Process numbers mean something only on the machine, since the boot and in the namespace where they
were given; and they are given again, so the start time belongs to them.
"""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _process(pid: int) -> tuple[str, str]:
    """(state letter, start in clock ticks since boot) of a process; empty strings where unknown."""
    facts = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (facts[0], facts[19]) if len(facts) > 19 else ("", "")


@functools.cache
def _machine() -> tuple[str, str, str]:
    """(host name, boot id, process id namespace): together they say whose process ids may be compared."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # two containers of one host count processes apart
    except OSError:
        namespace = ""
    return socket.gethostname(), _text("/proc/sys/kernel/random/boot_id").strip(), namespace


@dataclass(frozen=True)
class Owner:
    """Who holds a lease: a run and the process that drives it."""

    run: str
    host: str
    boot_id: str
    pid: int
    pid_start: str
    pid_namespace: str = ""
    session: str = ""

    @classmethod
    def here(cls, run: str, session: str = "") -> Owner:
        """This process, on behalf of `run`; `session` tells several drivers in one process apart."""
        host, boot_id, namespace = _machine()
        pid = os.getpid()
        return cls(run, host, boot_id, pid, _process(pid)[1], namespace, session)

    def gone(self) -> bool:
        """True if the process is certainly dead: it was on this machine's boot and exists no longer."""
        if not self.boot_id or (self.host, self.boot_id, self.pid_namespace) != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it exists, as another user's
        state, start = _process(self.pid)
        return state in ("Z", "X") or bool(start and self.pid_start and start != self.pid_start)

    def __str__(self) -> str:
        return f"run {self.run or '?'} (process {self.pid} on {self.host})"
