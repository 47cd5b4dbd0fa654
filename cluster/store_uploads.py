"""Checkpoints on their way to a remote store, in the background: training neither waits for them nor ends with them.

What is to go is linked aside first, so that training may write and remove files meanwhile. Only the newest is
worth an upload: one that waits makes way for the next. A store that does not answer is tried again with growing
pauses for as long as the stage is at work. A writer that lost its lease uploads no more and is told so.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cluster.errors import LeaseLost, UserError
from cluster.leases import Claim
from cluster.store import Store

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class Uploads:
    """Uploads of one claim's scratch; nothing to do where the store is local.

    Args:
        decided: (what happened, what is done), once when the store stops taking uploads.
        log: a line when it takes them again.
    """

    def __init__(
        self, store: Store, claim: Claim, decided: Callable[[str, str], None], log: Callable[[str], None]
    ) -> None:
        self._store, self._claim, self._decided, self._log = store, claim, decided, log
        self._digests: dict[tuple[int, int, int], str] = {}
        self._change = threading.Condition()
        self._waiting: Path | None = None
        self._uploading = False
        self._closed = False
        self._failed: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._staged = 0

    def submit(self, folder: Path) -> None:
        """Upload the files that are in `folder` now, but for those whose names begin with a dot.

        Raises:
            LeaseLost: an earlier upload found that another writer has taken over.
        """
        if self._store.local_root is not None:
            return
        self.check()
        self._staged += 1
        staged = folder.parent / f".upload-{folder.name}-{self._staged}"
        _link(folder, staged)
        with self._change:
            replaced, self._waiting = self._waiting, staged
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
                self._thread.start()
            self._change.notify_all()
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)

    def check(self) -> None:
        """Raise what ended the uploads, if anything did: LeaseLost, or a bug."""
        if self._failed is not None:
            raise self._failed

    def close(self, wait_seconds: float) -> None:
        """Give what is still to go so long, then give it up; no upload is at work afterwards."""
        end = time.monotonic() + wait_seconds
        with self._change:
            busy = lambda: (self._waiting is not None or self._uploading) and self._failed is None  # noqa: E731
            while busy() and (left := end - time.monotonic()) > 0:
                self._change.wait(left)
            self._closed = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        pause, away = 0.0, False
        while (staged := self._next(pause)) is not None:
            try:
                self._store.check(self._claim)
                self._store.upload_scratch(self._claim, staged, self._digests)
            except UserError as error:
                if isinstance(error, LeaseLost):
                    self._end(error, staged)
                    return
                pause = min(LONGEST_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, 2 * pause)) * random.uniform(0.75, 1)
                if not away:
                    away = True
                    self._decided(
                        f"a checkpoint could not be uploaded: {error.message}",
                        "training goes on, the upload is tried again until the store takes it",
                    )
                self._put_back(staged)
            except BaseException as error:  # noqa: B036 - handed to the stage
                self._end(error, staged)
                return
            else:
                if away:
                    self._log("the store takes checkpoints again; the newest is uploaded")
                pause, away = 0.0, False
                shutil.rmtree(staged, ignore_errors=True)
                with self._change:
                    self._uploading = False
                    self._change.notify_all()

    def _next(self, pause: float) -> Path | None:
        """What to upload next, after a pause; None where there will be nothing more."""
        end = time.monotonic() + pause
        with self._change:
            while not self._closed and (self._waiting is None or time.monotonic() < end):
                self._change.wait(None if self._waiting is None else end - time.monotonic())
            staged, self._waiting = self._waiting, None
            self._uploading = staged is not None and not self._closed
        if self._uploading:
            return staged
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)
        return None

    def _put_back(self, staged: Path) -> None:
        with self._change:
            self._uploading = False
            newer = self._waiting is not None
            if not newer:
                self._waiting = staged
        if newer:
            shutil.rmtree(staged, ignore_errors=True)

    def _end(self, error: BaseException, staged: Path) -> None:
        shutil.rmtree(staged, ignore_errors=True)
        with self._change:
            self._failed, self._uploading = error, False
            self._change.notify_all()


def _link(folder: Path, target: Path) -> None:
    """A second name for each of the folder's files: later writing beside them and removing them changes nothing."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.copytree(entry.path, target / entry.name, copy_function=os.link)
        else:
            os.link(entry.path, target / entry.name)
