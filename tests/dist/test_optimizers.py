"""Every optimizer goes on from a checkpoint with the bytes of a run that was not interrupted, growing batches too."""

import pytest
import torch

from cluster.deepspeed import engine_config
from modeling.errors import TrainingStopped
from modeling.heads.language import LanguageModel
from modeling.loop import fit
from modeling.records import Hooks
from modeling.schedule import LoopConfig, batch_size_at
from modeling.transformer import preset
from tasks.base import Runtime
from tests.dist.ranks import BATCH, LENGTH, global_batch


def run(optimizer, stage, folder=None, stop_after=0):
    torch.manual_seed(0)
    model = LanguageModel(preset("modern-tiny", layers=1, width=32, heads=2, ff_width=64, vocab_size=90))
    loop = LoopConfig(
        steps=6,
        batch_size=BATCH,
        batch_warmup_from=2,
        batch_warmup_sequences=2 * BATCH,
        optimizer=optimizer,
        log_every_steps=1,
    )
    looks = iter(range(100))
    result = fit(
        model,
        loop,
        lambda step: {name: a[: batch_size_at(loop, step)] for name, a in global_batch(step).items()},
        engine_config=engine_config(
            batch_size=BATCH, world_size=1, length_tokens=LENGTH, zero_stage=stage, micro_batch=3, clip_norm=1.0
        ),
        runtime=Runtime(checkpoint_every_seconds=1e-9, checkpoint_background=False),
        checkpoint_dir=folder,
        hooks=Hooks(should_stop=lambda: next(looks) + 1 == stop_after),
    )
    return model.state_dict(), result


@pytest.mark.parametrize(
    ("optimizer", "stage"),
    [("adafactor", 0), ("lion", 1), ("lamb", 2), ("lamb", 3), ("muon", 1), ("muon", 3)]
    + [({"kind": "adamw", "bias_correction": False, "layer_lr_decay": 0.8}, 2)],
)
def test_a_resumed_run_ends_with_the_bytes_of_an_undisturbed_one(tmp_path, optimizer, stage):
    with pytest.raises(TrainingStopped, match="after step 3"):
        run(optimizer, stage, tmp_path, stop_after=3)
    weights, continued = run(optimizer, stage, tmp_path)
    expected, undisturbed = run(optimizer, stage)
    assert continued.resumed_from == 3 and continued.history == undisturbed.history
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name
