"""A longer run that goes on from a shorter one's stable phase has the bytes of one that began at its first step."""

from __future__ import annotations

import shutil

import pytest

from cluster.errors import BadConfig, BadData
from modeling.checkpoints import layout
from modeling.schedule import LoopConfig, decay_start, learning_rate
from tasks.base import Runtime
from tasks.stable_phase import FOLDER, begin
from tests.tasks.stage import digests, run_stage
from tests.tasks.test_pretrain import inputs, task  # noqa: F401 - a fixture

UNWATCHED = Runtime(layer_updates=0, samples=0)
WSD = {"batch_size": 8, "peak_lr": 1e-2, "log_every_steps": 5, "schedule": "wsd", "warmup_steps": 4, "decay_share": 0.2}


def run(steps: int, out, inputs, *, keep: bool = False, prefix=None, **loop):  # noqa: F811
    stage = task(
        loop=LoopConfig(steps=steps, **{**WSD, **loop}),
        runtime=UNWATCHED,
        keep_stable=keep,
        prefix=task(loop=LoopConfig(steps=10, **WSD)) if prefix is not None else None,
    )
    return run_stage(stage, out, **inputs, **({"prefix": prefix} if prefix is not None else {}))


def test_a_chain_of_lengths_has_the_bytes_of_runs_of_their_own(inputs, tmp_path):  # noqa: F811
    short = run(10, tmp_path / "short", inputs, keep=True)
    middle = run(20, tmp_path / "middle", inputs, keep=True, prefix=short.out)
    long = run(40, tmp_path / "long", inputs, prefix=middle.out)
    assert [layout.steps(each.out / FOLDER) for each in (short, middle)] == [[8], [16]]
    assert "continuing after step 16" in " ".join(long.logged)
    alone = run(40, tmp_path / "alone", inputs)
    assert digests(long.out) == digests(alone.out)
    kept = run(20, tmp_path / "kept", inputs, keep=True)
    assert digests(middle.out) == digests(kept.out)


def test_a_killed_run_goes_on_from_its_own_checkpoint_not_its_prefix(inputs, tmp_path):  # noqa: F811
    short = run(10, tmp_path / "short", inputs, keep=True).out
    scratch = tmp_path / "scratch"
    shutil.copytree(layout.final(short / FOLDER, 8), layout.final(scratch, 12))
    begin(short, scratch, decay_start(LoopConfig(steps=20, **WSD)))
    assert layout.steps(scratch) == [12]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "linear"}, "prefix with schedule=linear"),
        ({"warmup_steps": 0, "warmup_share": 0.1}, "warmup_share 0.1: the warm-up would depend on the length"),
        ({"peak_lr": 2e-2}, r"trained otherwise: peak_lr 0.01 → 0.02"),
        ({"warmup_steps": 5}, r"trained otherwise: warmup_steps 4 → 5"),
    ],
)
def test_a_prefix_of_another_training_is_refused(inputs, tmp_path, change, message):  # noqa: F811
    short = run(10, tmp_path / "short", inputs, keep=True).out
    with pytest.raises(BadConfig, match=message):
        run(20, tmp_path / "long", inputs, prefix=short, **change)


def test_a_prefix_that_went_too_far_or_kept_nothing_is_refused(inputs, tmp_path):  # noqa: F811
    short = run(10, tmp_path / "short", inputs).out
    with pytest.raises(BadData, match="keep_stable=true"):
        run(20, tmp_path / "long", inputs, prefix=short)
    kept = run(20, tmp_path / "kept", inputs, keep=True).out
    with pytest.raises(BadConfig, match="went 16 steps before its decay, this run's decay begins after 8"):
        run(10, tmp_path / "shorter", inputs, prefix=kept)


def test_the_rate_of_a_prefix_is_that_of_the_longer_run_up_to_its_decay():
    short, long = LoopConfig(steps=50, **WSD), LoopConfig(steps=200, **WSD)
    rates = [[learning_rate(loop, step) for step in range(decay_start(short))] for loop in (short, long)]
    assert rates[0] == rates[1]
    assert learning_rate(short, decay_start(short) + 1) < learning_rate(long, decay_start(short) + 1)
