"""A run goes on with other workers or another ZeRO stage: the same samples, the same curve to float tolerance."""

import shutil

import numpy as np
import pytest

from modeling.checkpoints import layout
from tests.dist.ranks import run_ranks, train

RUN = {"checkpoints": True, "steps": 6, "preset": "bert-tiny"}
STOPPED = [{**RUN, "name": f"stop-{s}", "stage": s, "scratch": f"two-{s}", "stop_after": 3} for s in range(4)]
CONTINUED = [
    {**RUN, "name": "go-3", "stage": 3, "scratch": "one-1"},
    {**RUN, "name": "go-2", "stage": 2, "scratch": "one-0"},
    {**RUN, "name": "go-0", "stage": 0, "scratch": "one-3"},
    {**RUN, "name": "go-whole", "stage": 0, "scratch": "one-whole"},
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One worker, not interrupted."""
    return train(tmp_path_factory.mktemp("plain"), name="plain", **RUN)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two workers: runs stopped after three steps at each stage, and runs of one worker gone on with."""
    folder = tmp_path_factory.mktemp("two")
    for stage, scratch in ((0, "one-0"), (1, "one-1"), (3, "one-3"), (0, "one-whole")):
        assert train(folder, name="one", stage=stage, scratch=scratch, stop_after=3, **RUN)["stopped"] == 3
    results = run_ranks(2, folder, STOPPED + CONTINUED)
    assert results is not None, (folder / "rank-0.log").read_text() + (folder / "rank-1.log").read_text()
    return folder, {s["name"]: result for s, result in zip(STOPPED + CONTINUED, results, strict=True)}


def assert_same_curve(found, expected):
    assert found["resumed_from"] == 3
    assert any("another placement" in note for note in found["notes"])
    rows = [[row["step"], row["tokens"], row["learning_rate"]] for row in found["history"]]
    assert rows == [[row["step"], row["tokens"], row["learning_rate"]] for row in expected["history"]]
    # As between any two placements (test_exactness): sums in another order, and six steps of Adam.
    losses = [[row["loss"] for row in result["history"]] for result in (found, expected)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)


@pytest.mark.parametrize("name", [scenario["name"] for scenario in CONTINUED])
def test_one_worker_then_two(plain, two, name):
    assert_same_curve(two[1][name], plain)


@pytest.mark.parametrize(("made_at", "stage"), [(0, 1), (1, 3), (2, 0), (3, 2)])
def test_two_workers_then_one(plain, two, tmp_path, made_at, stage):
    shutil.copytree(two[0] / f"two-{made_at}", tmp_path / "scratch")
    found = train(tmp_path, name="on", **{**RUN, "stage": stage})
    assert_same_curve(found, plain)
    assert not list((tmp_path / "scratch").glob(".partial-*"))


def test_the_weights_are_whole_at_every_stage(two):
    from safetensors.torch import load_file

    files = [two[0] / f"two-{stage}" / "step-00000003" / layout.MODEL / "model.safetensors" for stage in range(4)]
    weights = [load_file(str(file)) for file in files]
    for other in weights[1:]:
        assert other.keys() == weights[0].keys()
        for name, value in weights[0].items():
            # Three steps of at most 1e-3 each, whose directions agree to a few parts in 1e4.
            np.testing.assert_allclose(other[name], value, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("optimizer", ["lion", "lamb", "muon"])
def test_whatever_the_optimizer_keeps_goes_along(tmp_path, optimizer):
    run = {**RUN, "optimizer": optimizer}
    plain = train(tmp_path, name="plain", scratch="plain", **run)
    assert train(tmp_path, name="half", stage=1, stop_after=3, **run)["stopped"] == 3
    assert_same_curve(train(tmp_path, name="on", stage=0, **run), plain)
