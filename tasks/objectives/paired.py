"""What objectives with inputs and targets share: drawing a batch some rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from tasks.objectives.base import Objective
from tasks.objectives.convert import BLOCK_TOKENS, in_blocks


class PairedObjective(Objective):
    """Base of the objectives that draw `inputs` and `targets`; a subclass has `_draw`, one block of rows."""

    block_tokens = BLOCK_TOKENS
    """Tokens of a block: its arrays stay in the cache."""

    def draw(
        self,
        tokens_BR: np.ndarray,
        seed: int,
        epochs_B: np.ndarray,
        indices_B: np.ndarray,
        facts: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """See `Objective.draw`. Returns inputs, targets int64 [B, …], and what `convert` takes besides."""
        return in_blocks(partial(self._draw, seed), tokens_BR, epochs_B, indices_B, tokens=self.block_tokens)

    def _draw(
        self, seed: int, tokens_BR: np.ndarray, epochs_B: np.ndarray, indices_B: np.ndarray
    ) -> dict[str, np.ndarray]:
        raise NotImplementedError
