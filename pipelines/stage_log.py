"""The log file of a stage at work."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from cluster.store import Store


class StageLog:
    """The log of one stage; everything printed below it, by native code too, lands there.

    On a local store it is the run's log file itself; elsewhere a temporary file that is uploaded while
    the stage runs.
    """

    def __init__(self, store: Store, run: str, stage: str, *, capture: bool) -> None:
        self.name = f"runs/{run}/logs/{stage}.log"
        self._store = store
        self._capture = capture
        if store.local_root is not None:
            self.path = Path(store.local_root) / self.name
            self.path.parent.mkdir(parents=True, exist_ok=True)
        else:
            handle, name = tempfile.mkstemp(prefix="triptych-", suffix=".log")
            os.close(handle)
            self.path = Path(name)
        self._file = self.path.open("ab", buffering=0)
        self._saved: list[tuple[int, int]] = []
        self._stop = threading.Event()
        self._uploader: threading.Thread | None = None

    def write(self, message: str) -> None:
        stamp = time.strftime("%H:%M:%S", time.gmtime())
        self._file.write(f"{stamp} {message}\n".encode(errors="replace"))

    def __enter__(self) -> StageLog:
        if self._capture:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            for target in (1, 2):
                self._saved.append((os.dup(target), target))
                os.dup2(self._file.fileno(), target)
        if self._store.local_root is None:
            self._uploader = threading.Thread(target=self._upload_often, daemon=True)
            self._uploader.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        for saved, target in self._saved:
            os.dup2(saved, target)
            os.close(saved)
        self._file.close()
        if self._uploader is not None:
            self._stop.set()
            self._uploader.join(10)
            self._upload()
            self.path.unlink(missing_ok=True)

    def _upload_often(self) -> None:
        while not self._stop.wait(5):
            self._upload()

    def _upload(self) -> None:
        with contextlib.suppress(Exception):  # a log that cannot be uploaded must not fail the stage
            self._store.write_text(self.name, self.path.read_text(errors="replace"))
