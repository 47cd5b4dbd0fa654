"""Checkpoints as the training loop sees them: when one is due, a short stop for a copy, news of the rest.

All ranks take their copies at the same step boundary; each writes its own in a thread. How far they are travels
with the flags of the loop's all-reduce (`modeling.step.Stepper.step`), so that no rank ever waits for another: once
all have written, rank 0's thread puts the checkpoint in its place; once one has failed, all give it up, and training
goes on.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from modeling.checkpoints import layout, reader
from modeling.checkpoints.capture import capture
from modeling.checkpoints.policy import CheckpointPolicy
from modeling.checkpoints.shards import Abandoned
from modeling.checkpoints.snapshot import HostBuffers
from modeling.checkpoints.writer import Writer
from modeling.errors import BadStep, RolledBack
from modeling.guard import Incident
from modeling.records import Hooks, Progress
from modeling.step import Stepper

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Checkpointer:
    """Keeps the state of one `fit` in `folder`; every rank has one, and calls it at the same steps.

    Args:
        folder: None: keeps nothing.
        model_files: {name: bytes}, what makes a usable model of a checkpoint's weights.
        hooks: of rank 0; the others' do nothing.
    """

    def __init__(
        self,
        stepper: Stepper,
        folder: Path | None,
        policy: CheckpointPolicy,
        model_files: Mapping[str, bytes],
        hooks: Hooks,
    ) -> None:
        self.stepper, self.folder, self.policy = stepper, folder, policy
        self.model_files, self.hooks = model_files, hooks
        self.fits = made_by(stepper)
        self.count, self.stall_seconds, self.write_seconds = 0, 0.0, 0.0
        self._buffers = HostBuffers()
        self._writer: Writer | None = None
        self._last = time.monotonic()

    def resume(self, incidents: Sequence[Incident] = ()) -> tuple[int, Progress] | None:
        """Continue from the newest checkpoint that can be used; (steps done, progress).

        Args:
            incidents: all of the run so far (`modeling.guard`): what a rollback took back is not used.
        """
        if self.folder is None:
            return None
        if self.stepper.rank == 0:
            reader.take_back(self.folder, incidents, self.hooks.note)
        found = reader.resume(self.stepper, self.folder, self.fits, self.hooks.note)
        self._last = time.monotonic()
        return (found[0], Progress(**found[1])) if found else None

    def flags(self) -> list[bool]:
        """What this rank wants all to know: [one is due, my part is written, my part failed]."""
        writer = self._writer
        if writer is not None and writer.written.is_set():
            return [False, writer.error is None, writer.error is not None]
        waited = time.monotonic() - self._last
        due = self.folder is not None and writer is None and waited >= self.policy.checkpoint_every_seconds
        return [due and self.stepper.rank == 0, False, False]

    def heard(self, raised: list[float]) -> bool:
        """Act on how many ranks raised each of the `flags`; True where a checkpoint is due."""
        due, written, failed = raised
        self._decide(written, failed)
        self._let_go()
        return due > 0

    def due_at(self, steps_done: int, progress: Progress) -> bool:
        """Whether the policy asks for a checkpoint after so many steps, whatever the clock says."""
        every = self.policy.checkpoint_keep_every_steps
        best = self.policy.checkpoint_keep_best and progress.best_step == steps_done
        return self.folder is not None and (best or (every > 0 and steps_done % every == 0))

    def take(self, steps_done: int, progress: Progress, into: Path | None = None) -> None:
        """Copy the state after `steps_done` steps and begin to write it, into another folder than usual if given."""
        folder = into or self.folder
        if folder is None:
            return
        began = time.monotonic()
        self._settle()  # one that the policy asks for does not wait until the one before is written
        stepper, row = self.stepper, progress.history[-1] if progress.history else {}
        captured = capture(stepper.engine, stepper.model, layout.partial(folder, steps_done), self._buffers)
        self._writer = Writer(
            folder,
            steps_done,
            captured,
            rank=stepper.rank,
            world_size=stepper.world_size,
            note={
                "step": steps_done,
                "progress": asdict(progress),
                "fits": self.fits,
                "validation_loss": row.get("validation_loss") if row.get("step") == steps_done else None,
            },
            model_files=self.model_files,
            policy=self.policy,
        )
        if not self.policy.checkpoint_background:
            self._settle()
        self._last = time.monotonic()
        self.stall_seconds += self._last - began

    def finish(self) -> None:
        """Wait until what was begun is in its place; every rank calls it."""
        began = time.monotonic()
        self._settle()
        self.stall_seconds += time.monotonic() - began

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Leave no thread behind. What was begun is completed where all ranks stop together, else given up."""
        if self.stepper.world_size == 1 or isinstance(error, BadStep | RolledBack):
            self.finish()
        if self._writer is not None:
            self._writer.abandon()
            self._writer.join()
            self._writer = None

    def _settle(self) -> None:
        """Bring a checkpoint that is being written to its end; every rank calls it."""
        # Other ranks may have let go of one that rank 0 is still putting in its place.
        (anyone,) = self._sum(float(self._writer is not None))
        if not anyone:
            return
        written = failed = 0.0
        if self._writer is not None:
            self._writer.written.wait()
            written, failed = float(self._writer.error is None), float(self._writer.error is not None)
        self._decide(*self._sum(written, failed))
        if self._writer is not None:
            self._writer.join()
        self._let_go()

    def _decide(self, written: float, failed: float) -> None:
        """All or nothing. Every rank comes here with the same figures."""
        writer = self._writer
        if failed:
            reasons: list[Any] = [writer.reason() if writer is not None else ""]
            if self.stepper.world_size > 1:
                reasons = reasons * self.stepper.world_size
                dist.all_gather_object(reasons, reasons[0])
            if writer is not None:
                writer.abandon("; ".join(filter(None, reasons)))
        elif writer is not None and written == self.stepper.world_size:
            writer.commit()

    def _let_go(self) -> None:
        """Forget a writer that has ended, and say how it ended."""
        writer = self._writer
        if writer is None or writer.busy:
            return
        self._writer = None
        self.write_seconds += writer.seconds
        if writer.error is None:
            self.count += 1
            self.hooks.on_checkpoint(writer.step)
        elif isinstance(writer.error, OSError | Abandoned):
            self.hooks.on_decision(
                "space" if getattr(writer.error, "errno", 0) in NO_SPACE or "No space" in writer.reason() else "data",
                f"the checkpoint of step {writer.step} could not be written: {writer.reason()}",
                "the one before is kept, training goes on, and the next is tried when it is due",
            )
        else:
            raise writer.error

    def _sum(self, *values: float) -> tuple[float, ...]:
        if self.stepper.world_size == 1:
            return values
        total = torch.tensor(values, device=self.stepper.device)
        dist.all_reduce(total)
        return tuple(total.tolist())


def made_by(stepper: Stepper) -> dict[str, Any]:
    """What must be equal for DeepSpeed's shards to be loadable as they are; JSON values."""
    engine = stepper.engine
    return {
        "world_size": stepper.world_size,
        "zero_stage": stepper.zero_stage,
        "nvme": bool(engine.zero_nvme_offload_optimizer()),
        "optimizer": type(getattr(engine.optimizer, "optimizer", engine.optimizer)).__name__,
        "parameters": sum(math.prod(getattr(p, "ds_shape", p.shape)) for p in stepper.model.parameters()),
    }
