"""What is decided after each class of failure."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.retries import Decision, Failures, decide
from tasks.base import Runtime

SPLIT = {"micro_batch": 5, "accumulation": 2, "workers": 2, "batch_size": 20}


def failure(kind: str, **more: Any) -> dict[str, Any]:
    return {"class": kind, "message": "it failed", **more}


@pytest.mark.parametrize("kind", ["config", "data", "space", "room", "spike", "bug", "cancelled"])
def test_what_would_fail_again_is_not_tried_again(kind: str) -> None:
    assert decide(failure(kind), Runtime(), Failures()) == Decision(False, "", Runtime())


def test_memory_halves_the_micro_batch_at_work_down_to_one_sequence() -> None:
    """5 → 2 → 1: ten rows of a worker in 2, 5, 10 micro-batches, whatever max_retries says."""
    runtime, failures = Runtime(max_retries=0, workers=2), Failures(at_work=SPLIT)
    first = decide(failure("memory"), runtime, failures)
    assert first.again and first.runtime.micro_batch == 2
    assert first.words == "out of memory: micro-batch 5 → 2, accumulation 2 → 5, batch size 20 as before"
    failures.at_work = {**SPLIT, "micro_batch": 1, "accumulation": 10}
    last = decide(failure("memory"), runtime, failures)
    assert not last.again
    assert last.words == "stop: out of memory with a micro-batch of 1"
    assert "placement.zero_stage" in last.remedy and "placement.offload_optimizer" in last.remedy


def test_failures_count_only_while_a_stage_gets_no_further() -> None:
    runtime, failures = Runtime(max_retries=2), Failures()

    def lost(done: float, saved: bool) -> bool:
        failures.gained = saved
        failures.failed_at(done)
        return decide(failure("worker"), runtime, failures).again

    assert [lost(10.0 * n, saved=True) for n in range(1, 10)] == [True] * 9
    # The same step again and again, though a checkpoint is written each time.
    assert [lost(90.0, saved=True) for _ in range(3)] == [True, False, False]
    assert decide(failure("worker"), runtime, failures).words.startswith("stop: a lost worker, 3 times")


def test_a_store_that_does_not_answer_is_asked_after_longer_and_longer_pauses() -> None:
    failures = Failures()
    pauses = [decide(failure("unreachable"), Runtime(max_retries=7), failures).pause_seconds for _ in range(7)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_what_the_loop_has_handled_itself_is_not_tried_again() -> None:
    again = decide(failure("nan"), Runtime(), failures := Failures())
    assert again.again
    assert not decide(failure("nan"), Runtime(), failures).again
    assert not decide(failure("nan", handled=3), Runtime(), Failures()).again
