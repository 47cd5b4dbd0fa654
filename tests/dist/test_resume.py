"""A run that is killed goes on, and ends with the bytes of one that was not."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.deepspeed import engine_config
from modeling.errors import ConfigError, NonFiniteLoss, TrainingStopped
from modeling.heads.base import LossSum
from modeling.heads.language import LanguageModel
from modeling.loop import fit
from modeling.records import Hooks
from modeling.schedule import LoopConfig
from modeling.step import rank_rows
from modeling.transformer import preset
from tests.dist.ranks import BATCH, LENGTH, global_batch, run_ranks, train

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


def arguments(**changes):
    import torch

    torch.manual_seed(0)
    model = LanguageModel(preset("modern-tiny", layers=1, width=32, heads=2, ff_width=64, vocab_size=90))
    loop = LoopConfig(steps=4, batch_size=BATCH, log_every_steps=1)
    config = engine_config(batch_size=BATCH, world_size=1, length_tokens=LENGTH, zero_stage=1, clip_norm=1.0)
    runtime = SimpleNamespace(cpus=1, checkpoint_every_seconds=1e-9)
    given = {"model": model, "loop": loop, "next_batch": global_batch, "engine_config": config, "runtime": runtime}
    return {**given, **changes}


def test_broken_checkpoints_are_passed_over_and_named(tmp_path):
    notes = []
    steps = iter(range(100))
    with pytest.raises(TrainingStopped, match="after step 3"):
        fit(**arguments(checkpoint_dir=tmp_path, hooks=Hooks(should_stop=lambda: next(steps) == 2)))
    newest, older = tmp_path / "step-00000003", tmp_path / "step-00000002"
    shard = next(newest.rglob("*optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert fit(**arguments(checkpoint_dir=tmp_path, hooks=Hooks(note=notes.append))).resumed_from == 2
    assert any("step-00000003" in note and shard.name in note for note in notes)
    (older / "complete.json").write_text("{")
    for path in tmp_path.glob("step-*"):
        if path != older:
            (path / "complete.json").unlink()
    assert fit(**arguments(checkpoint_dir=tmp_path, hooks=Hooks(note=notes.append))).resumed_from == 0


def test_a_checkpoint_of_another_placement_is_named_and_not_used(tmp_path):
    train(tmp_path, name="a", steps=3, checkpoints=True)
    found = train(tmp_path, name="b", steps=3, checkpoints=True, stage=2)
    assert found["resumed_from"] == 0
    assert any("zero_stage 0 → 2" in note for note in found["notes"])


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
    assert note["fits"] == {"parameters": note["fits"]["parameters"], "world_size": 1, "zero_stage": 1}


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

    given = arguments(next_batch=next_batch, checkpoint_dir=tmp_path)
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
