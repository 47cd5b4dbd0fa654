"""One rank's part of one checkpoint on its way to the disk, in a thread."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modeling.checkpoints import layout, shards
from modeling.checkpoints.capture import Captured
from modeling.checkpoints.policy import CheckpointPolicy, kept


class Writer:
    """Writes what was captured; on rank 0 also puts the whole checkpoint in its place, once it is told to.

    Args:
        note: `complete.json` without its files. Rank 0 only.
        model_files: what to put beside the weights, {name: bytes}.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        captured: Captured,
        *,
        rank: int,
        world_size: int,
        note: Mapping[str, Any],
        model_files: Mapping[str, bytes],
        policy: CheckpointPolicy,
    ) -> None:
        self.step, self.seconds = step, 0.0
        self.error: BaseException | None = None
        self.written = threading.Event()
        """This rank's files are on the disk, or `error` says why not."""
        self._folder, self._captured, self._policy = folder, captured, policy
        self._rank, self._world_size, self._note, self._model_files = rank, world_size, note, model_files
        self._decided = threading.Event()
        self._why = ""
        self._whole = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._thread.is_alive()

    def commit(self) -> None:
        """All ranks' files are written."""
        self._whole = True
        self._decided.set()

    def abandon(self, why: str = "") -> None:
        """Stop, and remove what there is; `why` is some rank's reason."""
        self._why = why
        self._stopped.set()
        self._decided.set()

    def reason(self) -> str:
        """Why this rank (or, once it is abandoned, any) could not write, in words."""
        if self._why or self.error is None or isinstance(self.error, shards.Abandoned):
            return self._why
        words = getattr(self.error, "strerror", None) or str(self.error) or type(self.error).__name__
        path = getattr(self.error, "filename", None)
        return f"{words} (rank {self._rank}{f', {path}' if path else ''})"

    def join(self) -> None:
        self._thread.join()

    def _work(self) -> None:
        began = time.monotonic()
        try:
            self._write()
        except BaseException as error:  # noqa: B036 - handed to the training thread
            self.error = error
        self._captured = Captured()
        self.seconds = time.monotonic() - began
        self.written.set()
        self._decided.wait()
        try:
            if self._whole and self._rank == 0:
                began = time.monotonic()
                self._put_in_place()
                self.seconds += time.monotonic() - began
        except BaseException as error:  # noqa: B036 - handed to the training thread
            self.error = error
        if not self._whole:
            self.error = self.error or shards.Abandoned()
        if self._rank == 0 and self.error is not None:
            shutil.rmtree(layout.partial(self._folder, self.step), ignore_errors=True)

    def _write(self) -> None:
        partial = layout.partial(self._folder, self.step)
        if self._rank == 0:
            layout.clear_partial(self._folder, but=partial)
        partial.mkdir(parents=True, exist_ok=True)
        files: dict[str, dict[str, int]] = {}
        for name, state in self._captured.states:
            files[name] = shards.write_state(partial / name, state, self._stopped.is_set)
        if self._captured.weights:
            name = f"{layout.MODEL}/model.safetensors"
            files[name] = shards.write_weights(partial / name, self._captured.weights)
            for extra, data in self._model_files.items():
                files[f"{layout.MODEL}/{extra}"] = shards.write_bytes(partial / layout.MODEL / extra, data)
        # What an optimizer on NVMe has swapped out was copied by DeepSpeed.
        for path in partial.glob(f"{layout.STATE}/offloaded_tensors/rank{self._rank:0>2d}/**/*"):
            if path.is_file():
                files[str(path.relative_to(partial))] = shards.settle(path)
        shards.write_bytes(layout.part_of_rank(partial, self._rank), json.dumps(files).encode())

    def _put_in_place(self) -> None:
        partial, final = layout.partial(self._folder, self.step), layout.final(self._folder, self.step)
        files: dict[str, Any] = {}
        parts = [layout.part_of_rank(partial, rank) for rank in range(self._world_size)]
        for part in parts:
            files |= json.loads(part.read_text(encoding="utf-8"))
        note = json.dumps({**self._note, "files": files}, sort_keys=True)
        shards.write_bytes(partial / layout.NOTE, note.encode())
        for part in parts:
            part.unlink()
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync_folder(self._folder)
        losses = {step: _loss(self._folder, step) for step in layout.steps(self._folder)}
        for step in losses.keys() - kept(self._policy, losses):
            shutil.rmtree(layout.final(self._folder, step), ignore_errors=True)


def _loss(folder: Path, step: int) -> float | None:
    try:
        return layout.read_note(layout.final(folder, step)).get("validation_loss")
    except (OSError, ValueError):
        return None


def _sync_folder(folder: Path) -> None:
    """Make a rename inside the folder outlive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
