"""A run that is killed goes on, and ends with the bytes of one that was not."""

import json
import shutil

import numpy as np
import pytest

from cluster.deepspeed import engine_config
from modeling.checkpoints import layout
from modeling.errors import ConfigError, NonFiniteLoss, TrainingStopped
from modeling.guard import GuardConfig
from modeling.heads.base import LossSum
from modeling.heads.language import LanguageModel
from modeling.loop import fit
from modeling.records import Hooks
from modeling.schedule import LoopConfig
from modeling.step import rank_rows
from modeling.transformer import preset
from modeling.validation import HeldOut
from tasks.base import Runtime
from tests.dist.ranks import BATCH, LENGTH, global_batch, run_ranks

# Dropout and two micro-batches, so that the state of the random numbers counts.
RUN = {"name": "model", "steps": 9, "dropout": 0.1, "preset": "bert-tiny", "checkpoints": True, "micro_batch": 2}
RUN |= {"validate_every": 3}


@pytest.mark.parametrize(("world_size", "stage", "die_rank"), [(1, 0, 0), (2, 2, 1)])
def test_killed_and_continued_equals_undisturbed(tmp_path, world_size, stage, die_rank):
    undisturbed = run_ranks(world_size, tmp_path / "undisturbed", [{**RUN, "stage": stage}])
    assert undisturbed is not None, (tmp_path / "undisturbed/rank-0.log").read_text()
    killed = tmp_path / "killed"
    # Killed before its sixth step: between two logged ones, with checkpoints of 4 and 5 steps kept.
    assert run_ranks(world_size, killed, [{**RUN, "stage": stage, "die_at": 5, "die_rank": die_rank}]) is None
    assert sorted(p.name for p in (killed / "scratch").glob("step-*")) == ["step-00000004", "step-00000005"]
    continued = run_ranks(world_size, killed, [{**RUN, "stage": stage}])
    assert continued is not None, (killed / "rank-0.log").read_text()
    assert continued[0]["resumed_from"] == 5
    assert continued[0]["history"] == undisturbed[0]["history"]
    weights = [tmp_path / part / "model/model.safetensors" for part in ("undisturbed", "killed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_killed_while_writing_in_the_background(tmp_path):
    """Rank 1 dies in its third file: a checkpoint is in its place, the one after it is half written."""
    run = {**RUN, "stage": 2, "background": True}
    undisturbed = run_ranks(2, tmp_path / "undisturbed", [run])
    assert undisturbed is not None, (tmp_path / "undisturbed/rank-0.log").read_text()
    killed = tmp_path / "killed"
    assert run_ranks(2, killed, [{**run, "die_rank": 1, "die_at_sync": 3}]) is None
    (whole,) = (killed / "scratch").glob("step-*")
    (killed / "scratch/.partial-00000099").mkdir(exist_ok=True)  # rank 0 may have had the time to clean up its own
    continued = run_ranks(2, killed, [run])
    assert continued is not None, (killed / "rank-0.log").read_text()
    assert f"step-{continued[0]['resumed_from']:08d}" == whole.name
    assert continued[0]["history"] == undisturbed[0]["history"]
    weights = [tmp_path / part / "model/model.safetensors" for part in ("undisturbed", "killed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not list((killed / "scratch").glob(".partial-*"))


def arguments(**changes):
    import torch

    torch.manual_seed(0)
    model = LanguageModel(preset("modern-tiny", layers=1, width=32, heads=2, ff_width=64, vocab_size=90))
    loop = LoopConfig(steps=4, batch_size=BATCH, log_every_steps=1)
    config = engine_config(batch_size=BATCH, world_size=1, length_tokens=LENGTH, zero_stage=1, clip_norm=1.0)
    runtime = Runtime(checkpoint_every_seconds=1e-9, checkpoint_background=False)
    given = {"model": model, "loop": loop, "next_batch": global_batch, "engine_config": config, "runtime": runtime}
    return {**given, **changes}


def test_broken_checkpoints_are_passed_over_and_named(tmp_path):
    notes = []
    steps = iter(range(100))
    with pytest.raises(TrainingStopped, match="after step 3"):
        fit(**arguments(checkpoint_dir=tmp_path, hooks=Hooks(should_stop=lambda: next(steps) == 2)))
    newest, older = tmp_path / "step-00000003", tmp_path / "step-00000002"
    shard = next(newest.rglob("*optim_states.pt"))
    whole = bytearray(shard.read_bytes())
    for broken in (
        whole[:-100],
        whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :],
    ):
        folder = tmp_path / f"{len(broken)}-bytes"
        shutil.copytree(tmp_path, folder, ignore=shutil.ignore_patterns("*-bytes"))
        (folder / shard.relative_to(tmp_path)).write_bytes(broken)
        notes.clear()
        assert fit(**arguments(checkpoint_dir=folder, hooks=Hooks(note=notes.append))).resumed_from == 2
        assert any("step-00000003" in note and shard.name in note for note in notes)
        assert layout.read_note(folder / "step-00000003")["step"] == 3  # made again
    shutil.rmtree(newest)
    (older / "complete.json").write_text("{")
    for path in tmp_path.glob("step-*"):
        if path != older:
            (path / "complete.json").unlink()
    assert fit(**arguments(checkpoint_dir=tmp_path, hooks=Hooks(note=notes.append))).resumed_from == 0


def test_stopping_writes_a_checkpoint_and_the_rest_follows(tmp_path):
    full = fit(**arguments())
    with pytest.raises(TrainingStopped):
        fit(**arguments(checkpoint_dir=tmp_path, hooks=Hooks(should_stop=lambda: True)))
    checkpoints = []
    rest = fit(**arguments(checkpoint_dir=tmp_path, hooks=Hooks(on_checkpoint=checkpoints.append)))
    assert rest.resumed_from == 1
    assert checkpoints == [2, 3]
    assert rest.history == full.history
    note = json.loads((tmp_path / "step-00000003/complete.json").read_text())
    assert {name: note["fits"][name] for name in ("world_size", "zero_stage", "optimizer", "nvme")} == {
        "world_size": 1,
        "zero_stage": 1,
        "optimizer": "AdamW",
        "nvme": False,
    }


def test_the_policy_writes_and_keeps_the_best_and_every_few_steps(tmp_path):
    policy = {"checkpoint_keep_best": True, "checkpoint_keep_every_steps": 5, "checkpoint_keep_last": 1}
    runtime = Runtime(checkpoint_every_seconds=1e6, checkpoint_background=False, **policy)
    loop = LoopConfig(steps=7, batch_size=BATCH, log_every_steps=1, validate_every_steps=2)
    held_out = HeldOut(1, lambda chunk: global_batch(1000))
    made = []
    hooks = Hooks(on_checkpoint=made.append)
    result = fit(**arguments(loop=loop, runtime=runtime, held_out=held_out, checkpoint_dir=tmp_path, hooks=hooks))
    figures = {row["step"]: row["validation_loss"] for row in result.history if "validation_loss" in row}
    assert sorted(figures, key=figures.get, reverse=True) == [2, 4, 6, 7], "each is the best so far"
    assert made == [2, 4, 5, 6] and layout.steps(tmp_path) == [5, 6]
    assert layout.read_note(layout.final(tmp_path, 6))["validation_loss"] == figures[6]


def test_a_loss_that_is_not_finite_stops_with_step_and_samples(tmp_path):
    class Poisoned(LanguageModel):
        def forward(self, batch):
            loss, count = super().forward(batch)
            return LossSum(loss / (batch["input_ids"] != 1).all(), count)

    def next_batch(step):
        batch = global_batch(step)
        if step == 2:
            batch["input_ids"][3, 4] = 1
        return {**batch, "sample_ids": np.arange(BATCH) + 100 * step}

    loop = LoopConfig(steps=4, batch_size=BATCH, log_every_steps=1, guard=GuardConfig(non_finite="stop"))
    given = arguments(loop=loop, next_batch=next_batch, checkpoint_dir=tmp_path)
    given["model"] = Poisoned(given["model"].config)
    with pytest.raises(NonFiniteLoss) as caught:
        fit(**given)
    assert caught.value.step == 2
    assert caught.value.samples == list(range(200, 208))
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000001", "step-00000002"]


def test_a_batch_without_labels_moves_nothing_but_decay():
    def next_batch(step):
        batch = global_batch(step)
        batch["labels"][:] = -100
        return batch

    result = fit(**arguments(next_batch=next_batch))
    assert [row["loss"] for row in result.history] == [0.0] * 4


def test_rows_are_divided_among_ranks_and_too_many_ranks_are_refused():
    parts = [list(rank_rows(10, rank, 3)) for rank in range(3)]
    assert sum(parts, []) == list(range(10))
    assert sorted(map(len, parts)) == [3, 3, 4]
    with pytest.raises(ConfigError, match="less than the"):
        fit(**arguments(loop=LoopConfig(steps=1, batch_size=1).model_copy(update={"batch_size": 0})))
