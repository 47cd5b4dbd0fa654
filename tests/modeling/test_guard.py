"""What counts as a step that went wrong, and which batch each step has afterwards."""

from __future__ import annotations

import json
import math
import random

import pytest

from modeling.guard import Guard, GuardConfig, Incident, plain, read_incidents, write_incidents

WINDOW = 16


def guard(incidents: list[Incident] | None = None, **settings: object) -> Guard:
    made = Guard(GuardConfig(window_steps=WINDOW, **settings), [], [], incidents or [])
    rng = random.Random(3)
    for _ in range(3 * WINDOW):
        made.accept(4.0 + rng.gauss(0, 0.1), 1.0 + rng.gauss(0, 0.05))
    return made


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_finite_is_always_refused(value: float, place: int) -> None:
    figures = [4.0, 1.0]
    figures[place] = value
    trouble = guard().judge(*figures)
    assert trouble is not None
    assert trouble.kind == "nan"
    assert str(value) in trouble.cause


def test_a_spike_is_far_above_the_median_of_a_full_window() -> None:
    """1.4826 · MAD of a normal distribution is its deviation, here 0.1: ten of them above 4 are 5."""
    watching = guard(spike="skip")
    assert len(watching.losses) == len(watching.norms) == WINDOW
    assert watching.judge(4.3, 1.1) is None
    assert watching.judge(0.1, 0.01) is None  # far below is no harm
    trouble = watching.judge(6.5, 1.0)
    assert trouble is not None and trouble.kind == "spike" and trouble.cause.startswith("loss 6.5 is ")
    assert trouble.window["median"] == pytest.approx(4.0, abs=0.1)
    assert trouble.window["deviation"] == pytest.approx(0.1, rel=0.6)
    norm = watching.judge(4.0, 9.0)
    assert norm is not None and norm.cause.startswith("gradient norm 9 is ")
    assert guard().judge(6.5, 1.0) is None  # off by default
    del watching.losses[0]
    assert watching.judge(6.5, 1.0) is None  # not enough to go by


def test_batches_left_out_move_those_after_them() -> None:
    watching = guard([{"skipped_batches": [3, 3]}, {"skipped_batches": []}, {"skipped_batches": [6, 9]}])
    assert [watching.batch_of(step) for step in range(8)] == [0, 1, 2, 4, 5, 10, 11, 12]
    overlapping = guard([{"skipped_batches": [6, 9]}, {"skipped_batches": [2, 7]}])
    assert [overlapping.batch_of(step) for step in range(4)] == [0, 1, 10, 11]


def test_decisions_follow_the_policy_until_the_limit() -> None:
    trouble = guard().judge(math.nan, 1.0)
    assert trouble is not None
    back = guard(non_finite="rollback", back_steps=10, ahead_batches=5)
    assert back.decide(50, trouble, can_go_back=True) == {
        "decision": "rollback",
        "to_step": 40,
        "skipped_batches": [40, 55],
    }
    assert back.decide(4, trouble, can_go_back=True)["to_step"] == 0
    assert back.decide(50, trouble, can_go_back=False)["decision"] == "stop"
    skip = guard(non_finite="skip", most=2)
    for number in (50, 51):
        decision = skip.decide(50, trouble, can_go_back=True)
        assert decision == {"decision": "skip", "to_step": 50, "skipped_batches": [number, number]}
        skip.incidents.append(decision)
    assert skip.decide(50, trouble, can_go_back=True)["decision"] == "stop"


def test_incidents_are_read_back_and_a_line_that_was_cut_off_does_not_count(tmp_path) -> None:
    assert read_incidents(tmp_path) == []
    found = [plain({"step": 3, "loss": math.nan, "ranks": [(1.5, [math.inf])]}), {"step": 5}]
    write_incidents(tmp_path, found)
    assert read_incidents(tmp_path) == found
    assert json.loads((tmp_path / "incidents.jsonl").read_text().splitlines()[0])["loss"] == "nan"
    with (tmp_path / "incidents.jsonl").open("a") as file:
        file.write('{"step"')
    assert read_incidents(tmp_path) == found
