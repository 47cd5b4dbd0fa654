"""Steps that go wrong, on one and two ranks: what is left out, what is made again, and that a crash changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modeling.errors import LossSpike, NonFiniteLoss
from modeling.guard import read_incidents
from tests.dist.ranks import BATCH, NOT_FINITE, TOO_LARGE, run_ranks, train

RUN = {"steps": 12, "dropout": 0.1, "preset": "bert-tiny", "micro_batch": 2}
# Batch 9 goes wrong: back to step 7, and batches 7 to 10 are left out.
BACK = {"back_steps": 2, "ahead_batches": 1, "window_steps": 8}
WITHOUT_7_TO_10 = [*range(7), *range(11, 16)]
WITHOUT_9 = [*range(9), *range(10, 13)]

SCENARIOS: list[dict[str, Any]] = [
    {"name": "plain", **RUN},
    {"name": "watched", "guard": {**BACK, "spike": "rollback"}, **RUN},
    {"name": "without-9", "batches": WITHOUT_9, **RUN},
    {"name": "skip-nan", "poison": {"9": NOT_FINITE}, "guard": {**BACK, "non_finite": "skip"}, **RUN},
    {"name": "skip-spike", "poison": {"9": TOO_LARGE}, "guard": {**BACK, "spike": "skip"}, **RUN},
    {"name": "without-7-to-10", "batches": WITHOUT_7_TO_10, **RUN},
]
BACK_AND_ON = {"poison": {"9": NOT_FINITE}, "guard": BACK, "checkpoints": True, **RUN}


def weights(folder: Path, name: str) -> bytes:
    return (folder / name / "model.safetensors").read_bytes()


@pytest.fixture(scope="module", params=[(1, 0), (2, 2), (2, 3)], ids=lambda p: f"{p[0]}-ranks-zero-{p[1]}")
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Any]:
    """(folder, results by name, a way to run one more scenario as the first ones ran)."""
    world_size, stage = request.param
    folder = tmp_path_factory.mktemp("guard")

    def run(where: Path, *scenarios: dict[str, Any]) -> list[Any] | None:
        full = [{**scenario, "stage": stage} for scenario in scenarios]
        return run_ranks(world_size, where, full)

    results = run(folder, *SCENARIOS, {"name": "rollback", **BACK_AND_ON})
    assert results is not None, (folder / "rank-0.log").read_text()
    return folder, {found["name"]: found for found in results}, run


def test_a_guard_without_work_changes_no_byte(ran: Any) -> None:
    folder, results, _ = ran
    assert weights(folder, "watched") == weights(folder, "plain")
    assert results["watched"]["incidents"] == []


def test_a_batch_that_is_left_out_is_as_if_it_had_not_been(ran: Any) -> None:
    folder, results, _ = ran
    assert weights(folder, "skip-nan") == weights(folder, "without-9") == weights(folder, "skip-spike")
    assert weights(folder, "without-9") != weights(folder, "plain")
    nan, spike = results["skip-nan"]["incidents"][0], results["skip-spike"]["incidents"][0]
    for incident in (nan, spike):
        assert (incident["step"], incident["batch"], incident["skipped_batches"]) == (10, 9, [9, 9])
        samples = [sample for rank in incident["ranks"] for sample in rank["samples"]]
        assert samples == list(range(9 * BATCH, 10 * BATCH))
    assert nan["cause"] == "loss is inf" and nan["loss"] == "inf"
    # The poisoned row is the second last: with the last rank, which alone has no finite sum.
    finite = [isinstance(rank["loss_sums"]["loss"], float) for rank in nan["ranks"]]
    assert finite == [True] * (len(finite) - 1) + [False]
    assert spike["cause"].startswith("loss ") and spike["loss"] > 10 * spike["window"]["median"] > 0


def test_a_rollback_leaves_out_the_batches_around_the_incident(ran: Any) -> None:
    folder, results, _ = ran
    assert weights(folder, "rollback") == weights(folder, "without-7-to-10")
    incident = results["rollback"]["incidents"][0]
    assert (incident["decision"], incident["to_step"], incident["skipped_batches"]) == ("rollback", 7, [7, 10])
    assert [row["step"] for row in results["rollback"]["history"]] == [2, 4, 6, 8, 10, 12]


def test_killed_after_a_rollback_it_ends_with_the_same_bytes(ran: Any, tmp_path: Path) -> None:
    """In the steps that are made again, before a checkpoint knows of the incident; and after one does."""
    folder, results, run = ran
    scenario = {"name": "rollback", **BACK_AND_ON}
    assert run(tmp_path, {**scenario, "die_at": 11}) is None
    assert run(tmp_path, {**scenario, "die_at": 13}) is None
    continued = run(tmp_path, scenario)
    assert continued is not None, (tmp_path / "rank-0.log").read_text()
    assert continued[0]["resumed_from"] == 9
    assert weights(tmp_path, "rollback") == weights(folder, "rollback")
    assert continued[0]["incidents"] == results["rollback"]["incidents"]
    assert continued[0]["history"] == results["rollback"]["history"]


@pytest.mark.parametrize(
    ("poison", "guard", "error"),
    [
        (NOT_FINITE, {"non_finite": "stop"}, NonFiniteLoss),
        (TOO_LARGE, {"spike": "stop", "window_steps": 8}, LossSpike),
        (NOT_FINITE, {"non_finite": "rollback", "most": 0}, NonFiniteLoss),
    ],
)
def test_stopping_names_the_step_and_its_samples(
    tmp_path: Path, poison: int, guard: dict[str, Any], error: Any
) -> None:
    with pytest.raises(error, match="at step 10") as caught:
        train(tmp_path, name="stopped", poison={"9": poison}, guard=guard, checkpoints=True, **RUN)
    assert caught.value.step == 9
    assert caught.value.samples == list(range(9 * BATCH, 10 * BATCH))
    noted = read_incidents(tmp_path / "scratch")
    assert [incident["decision"] for incident in noted] == ["stop"]
    assert sorted(path.name for path in (tmp_path / "scratch").glob("step-*")) == ["step-00000008", "step-00000009"]


def test_the_limit_of_rollbacks_stops(tmp_path: Path) -> None:
    poison = {str(number): NOT_FINITE for number in range(9, 40)}
    with pytest.raises(NonFiniteLoss, match="after 2 incidents"):
        train(tmp_path, name="limit", poison=poison, guard={**BACK, "most": 2}, checkpoints=True, **RUN)
    noted = read_incidents(tmp_path / "scratch")
    assert [incident["decision"] for incident in noted] == ["rollback", "rollback", "stop"]
