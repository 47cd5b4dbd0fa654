"""Validation on the way: figures by hand, bits per byte, early stop, the best weights, the same after a resume."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from cluster.deepspeed import engine_config
from modeling.architecture import preset
from modeling.best import Best
from modeling.errors import ConfigError, TrainingStopped
from modeling.heads.language import LanguageModel
from modeling.loop import fit
from modeling.records import Hooks, Progress
from modeling.schedule import LoopConfig
from modeling.validation import LABEL_BYTES, HeldOut
from tasks.base import Runtime
from tests.dist.ranks import BATCH, LENGTH, VOCABULARY, global_batch


def trained(tmp_path=None, held_out=None, hooks=None, **loop):
    torch.manual_seed(0)
    shape = preset("modern-tiny", layers=1, width=32, heads=2, ff_width=64, vocab_size=VOCABULARY, max_length=LENGTH)
    model = LanguageModel(shape)
    settings = LoopConfig(**{"steps": 6, "batch_size": BATCH, "log_every_steps": 4, **loop})
    result = fit(
        model,
        settings,
        global_batch,
        engine_config=engine_config(batch_size=BATCH, world_size=1, length_tokens=LENGTH, zero_stage=1, clip_norm=1.0),
        runtime=Runtime(checkpoint_every_seconds=1e-9, checkpoint_background=False),
        checkpoint_dir=tmp_path,
        hooks=hooks,
        held_out=held_out,
    )
    return model, result


def with_bytes(chunk):
    batch = global_batch(500 + chunk)
    # tokens below 10 are special; the others stand for one to four bytes
    return {**batch, LABEL_BYTES: np.where(batch["labels"] >= 10, batch["labels"] % 4 + 1, 0)}


def test_figures_are_those_of_all_held_out_labels_and_bytes_those_of_the_text_among_them():
    model, result = trained(held_out=HeldOut(2, with_bytes), validate_every_steps=4)
    nats, text_nats, right, labels, size = 0.0, 0.0, 0, 0, 0
    with torch.no_grad():
        for chunk in range(2):
            rows = with_bytes(chunk)
            batch = {name: torch.from_numpy(array) for name, array in rows.items()}
            logits, wanted = model.logits(model.hidden(batch)).flatten(0, 1), batch["labels"].flatten()
            each = cross_entropy(logits, wanted, ignore_index=-100, reduction="none").double()
            text = batch[LABEL_BYTES].flatten() > 0
            nats, text_nats = nats + float(each.sum()), text_nats + float(each[text].sum())
            right += int((logits.argmax(-1) == wanted)[wanted >= 0].sum())
            labels, size = labels + int((wanted >= 0).sum()), size + int(rows[LABEL_BYTES].sum())
    assert 0 < text_nats < nats
    expected = {
        "validation_loss": nats / labels,
        "validation_accuracy": right / labels,
        "validation_perplexity": math.exp(nats / labels),
        "validation_bits_per_byte": text_nats / (math.log(2) * size),
    }
    assert result.validation == pytest.approx(expected, rel=1e-6)
    assert [(row["step"], "validation_loss" in row) for row in result.history] == [(4, True), (6, True)]
    assert result.history[-1]["validation_loss"] == result.validation["validation_loss"]


def worse_later(chunk):
    """Labels that training never asks for, so that the validation loss rises."""
    batch = global_batch(900 + chunk)
    return {**batch, "labels": np.where(batch["labels"] >= 0, 1, -100)}


def test_early_stop_and_the_best_weights_also_after_a_resume(tmp_path):
    rules = {
        "steps": 20,
        "peak_lr": 1e-2,
        "validate_every_steps": 1,
        "patience": 3,
        "keep": "best",
        "schedule": "constant",
    }
    notes = []
    model, result = trained(None, HeldOut(1, worse_later), Hooks(note=notes.append), **rules)
    losses = [row["validation_loss"] for row in result.history]
    assert result.stopped_early and result.step == len(losses) < 20
    assert result.best_step == 1 + int(np.argmin(losses)) == result.step - 3 == 2
    assert f"stopped early after step {result.step}" in notes[-1]
    assert result.validation["validation_loss"] == min(losses)
    begin, _ = trained(None, HeldOut(1, worse_later), **{**rules, "patience": 0, "keep": "last", "steps": 2})
    for (name, kept), first in zip(model.state_dict().items(), begin.state_dict().values(), strict=True):
        assert torch.equal(kept, first), name

    calls = iter(range(100))
    with pytest.raises(TrainingStopped):
        trained(tmp_path, HeldOut(1, worse_later), Hooks(should_stop=lambda: next(calls) == 1), **rules)
    again, continued = trained(tmp_path, HeldOut(1, worse_later), **rules)
    assert continued.resumed_from == 2 and continued.history == result.history
    assert continued.validation == result.validation
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name

    for file in (tmp_path / "best").iterdir():
        file.unlink()
    lost = []
    trained(tmp_path, HeldOut(1, worse_later), Hooks(note=lost.append), **rules)
    assert any("of step 2, the best so far, are lost" in line for line in lost)


def test_the_best_is_the_lowest_and_patience_asks_for_more():
    loop = LoopConfig(validate_every_steps=1, patience=3, min_delta=0.1, keep="best")
    best, progress, seen = Best(loop, None, 0), Progress(), []
    for step, loss in enumerate([3.0, 2.95, 2.97, 2.89, 2.85, 2.8, 2.81]):
        lowest = best.improved(progress, step, loss)
        seen.append((lowest, progress.best_step, progress.loss_to_beat, progress.waited))
    assert seen == [
        (True, 0, 3.0, 0),
        (True, 1, 3.0, 1),
        (False, 1, 3.0, 2),
        (True, 3, 2.89, 0),
        (True, 4, 2.89, 1),
        (True, 5, 2.89, 2),  # lower by less than 0.1
        (False, 5, 2.89, 3),
    ]
    assert best.stops(progress)
    assert best.why(progress) == (
        "the last 3 validations were not lower by more than 0.1 than 2.8900 nats; the lowest, 2.8000, was after step 5"
    )
    unknown = Progress()
    assert not any(best.improved(unknown, step, float("nan")) for step in range(3))
    assert best.stops(unknown) and best.why(unknown) == "the last 3 validations were not finite"


def test_the_kept_weights_are_those_of_the_lowest_loss():
    """A loss that falls by less than min_delta each time."""
    rules = {"steps": 4, "schedule": "constant", "peak_lr": 1e-4, "validate_every_steps": 1, "keep": "best"}
    _, result = trained(None, HeldOut(1, lambda chunk: global_batch(0)), **rules, min_delta=1.0)
    losses = [row["validation_loss"] for row in result.history]
    assert result.best_step == 4 and losses == sorted(losses, reverse=True)
    assert result.validation["validation_loss"] == min(losses)


def test_patience_without_validation_is_refused():
    with pytest.raises(ValueError, match="patience 2 needs validation"):
        LoopConfig(patience=2)
    with pytest.raises(ConfigError, match="no validation examples"):
        trained(validate_every_steps=2)
