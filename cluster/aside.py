"""What Ray says into this process's output goes into a file, not between the lines that a person reads.

There are two ways that it takes, also with `log_to_driver=False`: Ray's core is native code and writes to file
descriptor 2, and threads of its client print what raylets report (a worker that died) to `sys.stdout`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

RAY_THREADS = "ray_"
"""Beginning of the names of the threads that Ray's client prints from."""
_BUSY = threading.Lock()


class _Split:
    """A text stream; what Ray's threads write goes into `file`, while there is one."""

    def __init__(self, stream: Any, file: IO[bytes]) -> None:
        self.stream = stream
        self.file: IO[bytes] | None = file

    def write(self, text: str) -> int:
        file = self.file
        if file is None or not threading.current_thread().name.startswith(RAY_THREADS):
            return int(self.stream.write(text))
        file.write(text.encode(errors="replace"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def aside(path: Path) -> Iterator[None]:
    """Append to `path` what Ray says; a file that stays empty is taken away.

    What this process itself writes to `sys.stdout` and `sys.stderr` stays where it is. One at a time: within another
    (two runs in one process) this does nothing.
    """
    if not _BUSY.acquire(blocking=False):
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sys.stderr.flush()  # before its descriptor is another
        with path.open("ab", buffering=0) as file, _descriptor(2, file) as kept, _streams(file, kept):
            yield
    finally:
        _BUSY.release()
        if path.is_file() and not path.stat().st_size:
            path.unlink()


@contextlib.contextmanager
def _descriptor(number: int, file: IO[bytes]) -> Iterator[int]:
    """The descriptor is `file`; yields another one for what it was."""
    kept = os.dup(number)
    os.dup2(file.fileno(), number)
    try:
        yield kept
    finally:
        os.dup2(kept, number)
        os.close(kept)


@contextlib.contextmanager
def _streams(file: IO[bytes], kept: int) -> Iterator[None]:
    """`sys.stdout` and `sys.stderr` without Ray's threads; a `sys.stderr` of descriptor 2 writes to `kept`."""
    out, err = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        direct: Any = err
        if isinstance(err, io.TextIOWrapper) and _number(err) == 2:  # not under a test, a live table or a notebook
            again = open(kept, "w", buffering=1, encoding=err.encoding, errors=err.errors, closefd=False)  # noqa: SIM115
            direct = opened.enter_context(again)
        splits = _Split(out, file), _Split(direct, file)
        sys.stdout, sys.stderr = splits
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err
            for split, stream in zip(splits, (out, err), strict=True):  # a log handler may have kept it
                split.stream, split.file = stream, None


def _number(stream: Any) -> int:
    """The file descriptor of a stream; -1 where it has none."""
    try:
        return int(stream.fileno())
    except (OSError, ValueError):
        return -1
