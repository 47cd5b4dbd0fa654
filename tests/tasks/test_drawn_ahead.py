"""Batches drawn several at once are those drawn one by one, in order or not, on every rank, as batches grow."""

from __future__ import annotations

import numpy as np
import pytest

from modeling.schedule import LoopConfig, batch_size_at, first_sample
from modeling.step import rank_rows
from tasks import drawn_ahead
from tasks.drawn_ahead import DrawnAhead
from tests.tasks.objective_rows import vocabulary

LENGTH, STEPS = 32, 150


def rows_at(loop: LoopConfig, rank: int, world: int):
    def positions(step: int) -> range:
        rows, first = rank_rows(batch_size_at(loop, step), rank, world), first_sample(loop, step)
        return range(first + rows.start, first + rows.stop)

    return positions


class Drawing:
    """A masked objective over a stream of rows; counts how often it is asked."""

    def __init__(self) -> None:
        from tasks.objectives.mlm import MaskedLanguageModel
        from tasks.objectives.settings import Masked

        self.tokens = np.random.default_rng(0).integers(5, 100, (107, LENGTH)).astype(np.uint16)
        self.tokens[:, 0], self.tokens[:, -1] = 2, 3
        self.objective = MaskedLanguageModel(vocabulary(), Masked(), LENGTH)
        self.asked: list[int] = []

    def __call__(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        self.asked.append(len(positions))
        epochs, indices = np.divmod(positions, len(self.tokens))
        return self.objective.draw(self.tokens[indices], 7, epochs, indices)


LOOPS = {
    "small": LoopConfig(steps=STEPS, batch_size=6),
    "larger than a block": LoopConfig(steps=STEPS, batch_size=2000),
    "growing": LoopConfig(steps=STEPS, batch_size=64, batch_warmup_from=4, batch_warmup_sequences=2000),
}


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_step_has_the_batch_it_would_have_alone(loop: LoopConfig, world: int) -> None:
    for rank in range(world):
        draw, alone, positions = Drawing(), Drawing(), rows_at(loop, rank, world)
        ahead = DrawnAhead(draw, positions, LENGTH, STEPS)
        for step in (0, 1, 2, 3, 100, 101, 40, 41, STEPS - 1):  # a run that resumes, rolls back and ends
            own, found = alone(np.arange(positions(step).start, positions(step).stop)), ahead(step)
            assert set(found) == set(own)
            for name in own:
                np.testing.assert_array_equal(found[name], own[name], err_msg=f"{name} of step {step}")


def test_small_batches_are_drawn_many_at_once_and_none_beyond_the_last_step() -> None:
    draw, loop = Drawing(), LOOPS["small"]
    ahead = DrawnAhead(draw, rows_at(loop, 0, 1), LENGTH, STEPS)
    for step in range(STEPS):
        assert len(ahead(step)["input_ids"]) == 6
    assert draw.asked == [384, 384, 132]
    assert all(count * LENGTH <= drawn_ahead.BLOCK_TOKENS for count in draw.asked)


def test_without_a_known_end_and_with_large_batches() -> None:
    draw = Drawing()
    ahead = DrawnAhead(draw, rows_at(LOOPS["larger than a block"], 0, 1), LENGTH, 0)
    for step in range(3):
        assert len(ahead(step)["input_ids"]) == 2000
    assert draw.asked == [2000, 2000, 2000]
