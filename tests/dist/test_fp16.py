"""fp16: near fp32's curve at every ZeRO stage; a step that overflows is skipped, recorded, and survived."""

import numpy as np
import pytest

import modeling.step
from modeling.errors import NonFiniteLoss
from modeling.heads.base import LossSum
from modeling.heads.language import LanguageModel
from modeling.loop import fit
from modeling.precision import GROWTH_STEPS, LossScale
from modeling.schedule import LoopConfig
from tests.dist.ranks import BATCH, train
from tests.dist.test_resume import arguments

TOO_LARGE = 2.0**21


def column(result, name):
    return [row[name] for row in result["history"]]


def test_the_scale_halves_at_an_overflow_and_doubles_after_many_good_steps():
    scale = LossScale(scale=8.0)
    scale.update(overflow=True)
    assert scale == LossScale(scale=4.0, skipped_steps=1)
    for _ in range(GROWTH_STEPS):
        scale.update(overflow=False)
    assert scale == LossScale(scale=8.0, skipped_steps=1)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory):
    return train(tmp_path_factory.mktemp("fp32"), name="model")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_curve_is_near_fp32s_at_every_stage(fp32, tmp_path, stage):
    found = train(tmp_path, name="model", stage=stage, precision="fp16", micro_batch=3)
    # fp16 keeps 11 bits: a relative error of 5e-4 in a product, less in the mean over all labels.
    np.testing.assert_allclose(column(found, "loss"), column(fp32, "loss"), rtol=5e-4)
    np.testing.assert_allclose(column(found, "grad_norm"), column(fp32, "grad_norm"), rtol=5e-3)
    assert column(found, "loss_scale") == [2.0**16] * 6
    assert "loss_scale" not in fp32["history"][0]


@pytest.mark.parametrize(("stage", "offload"), [(0, "none"), (2, "none"), (2, "cpu"), (3, "none")])
def test_steps_that_overflow_are_skipped_recorded_and_part_of_a_checkpoint(monkeypatch, tmp_path, stage, offload):
    monkeypatch.setattr(modeling.step, "LossScale", lambda: LossScale(scale=TOO_LARGE))
    run = {"stage": stage, "precision": "fp16", "placement": {"offload_optimizer": offload}}
    found = train(tmp_path / "found", name="model", **run)
    skipped = column(found, "skipped_steps")
    assert 1 <= skipped[-1] < 6, "some steps overflow, and some do not"
    assert [n is None for n in column(found, "grad_norm")] == [
        b > a for a, b in zip([0, *skipped], skipped, strict=False)
    ]
    assert column(found, "loss_scale") == [TOO_LARGE / 2**n for n in skipped]
    train(tmp_path, name="model", checkpoints=True, **run)
    again = train(tmp_path, name="model", checkpoints=True, **run)
    assert again["resumed_from"] == 5
    for name in ("grad_norm", "loss_scale", "skipped_steps"):
        assert column(again, name)[-1] == column(found, name)[-1]
    weights = [folder / "model/model.safetensors" for folder in (tmp_path / "found", tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_gradient_that_no_scale_helps_is_not_skipped_for_ever():
    class Broken(LanguageModel):
        def forward(self, batch):
            loss, count = super().forward(batch)
            return LossSum(loss + (0 * self.transformer.tokens.weight.sum()).sqrt(), count)  # √ has no slope at 0

    given = arguments(loop=LoopConfig(steps=40, batch_size=BATCH, precision="fp16"))
    given["model"] = Broken(given["model"].config)
    with pytest.raises(NonFiniteLoss) as caught:
        fit(**given)
    assert caught.value.step == 16  # the scale is at 1 by then
