"""A budget in minutes: measured once, then a run like any other with that many steps."""

from __future__ import annotations

import json

import pytest

from modeling.errors import TrainingStopped
from modeling.records import Hooks
from tests.modeling.test_validation import trained

MINUTES = {"steps": 0, "wall_minutes": 0.03, "batch_size": 8}


def test_minutes_become_steps_once_and_the_run_is_that_of_so_many_steps(tmp_path):
    notes, looks = [], iter(range(10_000))
    with pytest.raises(TrainingStopped):
        trained(tmp_path, hooks=Hooks(note=notes.append, should_stop=lambda: next(looks) == 2), **MINUTES)
    planned = json.loads((tmp_path / "budget.json").read_text())["steps"]
    assert planned > 3 and f"{planned} steps" in notes[0]
    (tmp_path / "budget.json").write_text(json.dumps({"rows": 8 * (planned + 5), "steps": planned + 5}))
    again = []
    model, result = trained(tmp_path, hooks=Hooks(note=again.append), **MINUTES)
    # what the checkpoint says counts, whatever another measurement would give
    assert (result.resumed_from, result.step, result.planned_steps) == (3, planned, planned)
    assert not any("sequences/s" in note for note in again)

    same, plain = trained(steps=planned, batch_size=8)
    assert plain.history == result.history
    for name, weight in same.state_dict().items():
        assert weight.equal(model.state_dict()[name]), name
