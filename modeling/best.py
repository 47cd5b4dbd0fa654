"""The best model so far, by its validation loss: when to stop early, and the weights to give back.

The best is the lowest loss. Patience has a measure of its own: a loss has to be lower by `min_delta` than the one that
began the wait. What is known is in `Progress` (best_loss, best_step, loss_to_beat, waited), so a continued run decides
as an undisturbed one would.
The weights are a file of their own beside the checkpoints, written when a validation is better than all before, and
named by its step: a run that goes back to an older checkpoint finds that one's, and writes later ones again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from modeling.records import Progress
from modeling.schedule import LoopConfig

KEEP = 3
"""Files that stay: the newest, and those that older checkpoints may go back to."""


class Best:
    """Follows the validation loss; the same on every rank, but the weights are kept on rank 0.

    Args:
        folder: the checkpoints'; None: weights stay in memory.
    """

    def __init__(self, loop: LoopConfig, folder: Path | None, rank: int) -> None:
        self.loop, self.rank = loop, rank
        self.folder = folder / "best" if folder is not None else None
        self.held: dict[str, Tensor] = {}

    def improved(self, progress: Progress, step: int, loss: float) -> bool:
        """Take the validation loss after `step` steps into `progress`; whether it is the lowest so far."""
        if loss < (math.inf if progress.loss_to_beat is None else progress.loss_to_beat - self.loop.min_delta):
            progress.loss_to_beat, progress.waited = loss, 0
        else:
            progress.waited += 1
        lowest = loss < (math.inf if progress.best_loss is None else progress.best_loss)
        if lowest:
            progress.best_loss, progress.best_step = loss, step
        return lowest

    def stops(self, progress: Progress) -> bool:
        """Whether `patience` validations in a row were not lower by `min_delta` than the one before them."""
        return 0 < self.loop.patience <= progress.waited

    def why(self, progress: Progress) -> str:
        """What a person is told where it stops."""
        before = f"the last {self.loop.patience} validations were"
        if progress.loss_to_beat is None:
            return f"{before} not finite"
        by = f" by more than {self.loop.min_delta:g}" if self.loop.min_delta else ""
        lowest = f"the lowest, {progress.best_loss:.4f}, was after step {progress.best_step}"
        return f"{before} not lower{by} than {progress.loss_to_beat:.4f} nats; {lowest}"

    def keep(self, step: int, weights: dict[str, Tensor]) -> None:
        """Keep these weights as the best."""
        if self.rank:
            return
        if self.folder is None:
            self.held = weights
            return
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / ".partial"
        save_file({name: value.clone() for name, value in weights.items()}, str(partial))  # tied ones share memory
        partial.replace(self._file(step))
        for old in sorted(self.folder.glob("step-*"))[:-KEEP]:
            old.unlink()

    def resume(self, progress: Progress, note: Callable[[str], None]) -> None:
        """After a checkpoint was loaded: where its best weights are gone, the best is looked for anew from there."""
        if self.loop.keep == "last" or progress.best_loss is None:
            return
        if self.folder is None or not self._file(progress.best_step).is_file():
            note(f"the weights of step {progress.best_step}, the best so far, are lost; the best of later ones counts")
            progress.best_loss, progress.best_step, progress.loss_to_beat, progress.waited = None, 0, None, 0

    def take_back(self, to_step: int) -> None:
        """Training goes back: forget the weights of later steps."""
        if self.folder is not None and not self.rank:
            for path in self.folder.glob("step-*"):
                if path > self._file(to_step):
                    path.unlink()

    def weights(self, progress: Progress) -> dict[str, Tensor]:
        """The best weights, on rank 0; nothing elsewhere, nor where none were kept."""
        if self.rank or progress.best_loss is None or self.loop.keep == "last":
            return {}
        if self.folder is None:
            return self.held
        from safetensors.torch import load_file

        return load_file(str(self._file(progress.best_step)))

    def _file(self, step: int) -> Path:
        assert self.folder is not None
        return self.folder / f"step-{step:08d}.safetensors"
