"""ELECTRA's examples: 85 % masks, no random tokens, and a uniform number for each place to fill."""

from __future__ import annotations

import numpy as np

from tasks.objectives.base import IGNORED
from tests.tasks.objective_rows import MASK, PAD, V, assert_golden, draw, objective, sequences


def test_worked_example() -> None:
    assert_golden("rtd", "rtd")


def test_masks_are_as_in_mlm_but_for_what_becomes_of_them() -> None:
    tokens = sequences(0, 40, 70)
    found, mlm = draw(objective("rtd", 70), tokens), draw(objective("mlm", 70), tokens)
    np.testing.assert_array_equal(found["labels"], mlm["labels"])
    chosen = found["labels"] != IGNORED
    np.testing.assert_array_equal(found["original_ids"], tokens)
    np.testing.assert_array_equal(found["original_ids"][chosen], found["labels"][chosen])
    changed = found["input_ids"] != tokens
    assert not (changed & ~chosen).any() and (found["input_ids"][changed] == MASK).all()
    np.testing.assert_array_equal(found["attention_mask"], tokens != PAD)
    assert found["uniforms"].dtype == np.float32 and not found["uniforms"][~chosen].any()


def test_shares_and_uniforms() -> None:
    tokens = np.random.default_rng(0).integers(5, V, (2000, 128))
    found = draw(objective("rtd"), tokens)
    chosen = found["labels"] != IGNORED
    assert (chosen.sum(1) == 19).all()
    # 38,000 draws: a standard deviation of 0.0018 for the share, 0.0015 for the mean of the uniforms.
    masked = found["input_ids"][chosen] == MASK
    assert abs(masked.mean() - 0.85) < 0.0075
    uniforms = found["uniforms"][chosen]
    assert uniforms.min() >= 0 and uniforms.max() < 1
    assert abs(uniforms.mean() - 0.5) < 0.006 and abs(uniforms.std() - 12**-0.5) < 0.005
    # They tell nothing about the mask: a correlation of 0 with a standard deviation of 0.005.
    assert abs(np.corrcoef(masked, uniforms)[0, 1]) < 0.02
    # Another epoch, other uniforms, also where the same place is chosen again.
    again = draw(objective("rtd"), tokens, epoch=1)
    both = chosen & (again["labels"] != IGNORED)
    assert both.sum() > 1000 and (again["uniforms"][both] != found["uniforms"][both]).mean() > 0.999


def test_most_predictions() -> None:
    tokens = sequences(1, 30, 70)
    found = draw(objective("rtd", 70, max_predictions=3, mask_share=1), tokens)
    chosen = found["labels"] != IGNORED
    assert chosen.sum(1).max() == 3 and (found["input_ids"][chosen] == MASK).all()
