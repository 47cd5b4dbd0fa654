"""Checkpoints under random kills of ranks, also while they are written; on one, two and four workers in turn."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from modeling.checkpoints import layout
from tests.dist.ranks import run_ranks

RUN = {"name": "model", "steps": 60, "preset": "bert-tiny", "checkpoints": True, "background": True}


@pytest.mark.soak
@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 1), (2, 2), (2, 3)])
def test_killed_in_random_files_ends_with_the_same_bytes(tmp_path: Path, world_size: int, stage: int) -> None:
    run = {**RUN, "stage": stage, "dropout": 0.1}
    undisturbed = run_ranks(world_size, tmp_path / "undisturbed", [run])
    assert undisturbed is not None, (tmp_path / "undisturbed/rank-0.log").read_text()
    rng, killed, before = random.Random(stage), tmp_path / "killed", 0
    for _ in range(6):
        dying = {"die_rank": rng.randrange(world_size), "die_at_sync": rng.randint(1, 12)}
        if run_ranks(world_size, killed, [{**run, **dying}]) is not None:
            break  # it was through before the call came
        newest = max(layout.steps(killed / "scratch"), default=0)
        assert newest >= before, "what was complete stays"
        before = newest
    continued = run_ranks(world_size, killed, [run])
    assert continued is not None, (killed / "rank-0.log").read_text()
    assert continued[0]["history"] == undisturbed[0]["history"]
    weights = [folder / "model/model.safetensors" for folder in (tmp_path / "undisturbed", killed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not list((killed / "scratch").glob(".partial-*"))


@pytest.mark.soak
def test_one_two_and_four_workers_at_all_stages_in_one_run(tmp_path: Path) -> None:
    run = {**RUN, "steps": 24, "background": False}
    plain = run_ranks(1, tmp_path / "plain", [run])
    assert plain is not None
    places = [(1, 0), (2, 3), (4, 2), (2, 1), (4, 3), (1, 2)]
    for number, (world_size, stage) in enumerate(places, 1):
        stop = {"stop_after": 4 * number} if number < len(places) else {}
        found = run_ranks(world_size, tmp_path / "moving", [{**run, "stage": stage, **stop}])
        assert found is not None, (tmp_path / "moving/rank-0.log").read_text()
    assert [row["step"] for row in found[0]["history"]] == [row["step"] for row in plain[0]["history"]]
    losses = [[row["loss"] for row in result[0]["history"]] for result in (found, plain)]
    # As between any two placements (tests/dist/test_exactness.py), for four times as many steps of Adam.
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
