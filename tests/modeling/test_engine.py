"""Settings that DeepSpeed, or this machine, cannot follow end in one message before training."""

import pytest
import torch

from cluster.deepspeed import engine_config
from modeling.errors import ConfigError
from modeling.loop import fit
from tests.dist.ranks import BATCH, LENGTH, train
from tests.dist.test_resume import arguments

RUN = {"batch_size": BATCH, "world_size": 1, "length_tokens": LENGTH}


def test_a_key_that_deepspeed_does_not_know_is_named():
    own = {"zero_optimization": {"sub_group_sise": 10, "round_robin_gradients": "often"}}
    with pytest.raises(ConfigError) as caught:
        fit(**arguments(engine_config=engine_config(**RUN, zero_stage=1, own=own)))
    assert "sub_group_sise" in str(caught.value) and "round_robin_gradients" in str(caught.value)


def test_nvme_without_libaio_or_without_the_folder_is_said_before_training(monkeypatch, tmp_path):
    from deepspeed.accelerator import get_accelerator

    builder = type(get_accelerator().create_op_builder("AsyncIOBuilder"))
    monkeypatch.setattr(builder, "has_function", lambda *_, **__: False)  # a machine without the library
    place = {"zero_stage": 3, "offload_optimizer": "nvme"}
    with pytest.raises(ConfigError, match="install libaio-dev"):
        fit(**arguments(engine_config=engine_config(**RUN, **place, nvme_path=str(tmp_path / "nvme"))))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="placement.nvme_path"):
        fit(**arguments(engine_config=engine_config(**RUN, **place, nvme_path=str(tmp_path / "file/nvme"))))


def test_state_goes_to_a_disk_and_the_curve_stays(tmp_path):
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().create_op_builder("AsyncIOBuilder").is_compatible():
        pytest.skip("libaio is not installed here")
    disk = tmp_path / "disk"
    places = {"offload_optimizer": "nvme", "offload_parameters": "nvme", "nvme_path": str(disk)}
    wide = {"width": 512, "heads": 8, "ff_width": 2048, "init_std": 0.004}  # tensors below 1 MB are kept in memory
    run = {"stage": 3, "steps": 4, "peak_lr": 1e-4, "shape": wide}
    plain = train(tmp_path, name="plain", **run)
    found = train(tmp_path, name="found", placement=places, **run)
    on_disk = {path.parent.parent.name for path in disk.rglob("*.swp") if path.stat().st_size}
    assert on_disk >= {"bfloat16params", "optimizer"}  # so DeepSpeed calls the first, whatever they are in
    assert plain["history"][0]["loss"] > 1
    for a, b in zip(found["history"], plain["history"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)  # as between ZeRO stages


def test_nothing_of_zero_3_stays_in_the_process():
    """The next stage of a reused worker must not run with ZeRO 3's linear layer, which rounds otherwise."""
    linear, before = torch.nn.functional.linear, fit(**arguments(engine_config=engine_config(**RUN, clip_norm=1.0)))
    seen = []

    def batch(step: int):
        seen.append(torch.nn.functional.linear)
        return batches(step)

    batches = arguments()["next_batch"]
    fit(**arguments(engine_config=engine_config(**RUN, zero_stage=3, clip_norm=1.0), next_batch=batch))
    assert seen[0] is not linear  # while it trains
    assert torch.nn.functional.linear is linear
    after = fit(**arguments(engine_config=engine_config(**RUN, clip_norm=1.0)))
    assert after.history == before.history


def test_a_single_worker_computes_what_deepspeeds_own_reduction_would(monkeypatch):
    """Also of a weight that no loss reaches: it decays, as it does on several workers."""
    from modeling import step

    def trained(reduces: bool):
        given = arguments(engine_config=engine_config(**RUN, clip_norm=1.0))
        given["model"].unused = torch.nn.Parameter(torch.ones(3, 3))
        if reduces:
            stepper = step.Stepper.__init__

            def with_reduction(self, engine, *rest):
                stepper(self, engine, *rest)
                assert self._alone
                self._alone, engine.enable_backward_allreduce = False, True

            monkeypatch.setattr(step.Stepper, "__init__", with_reduction)
        fit(**given)
        return given["model"].state_dict()

    alone, reduced = trained(False), trained(True)
    assert (alone["unused"] < 1).all()
    for name, weight in alone.items():
        assert torch.equal(weight, reduced[name]), name


def test_the_seed_of_a_step_is_torchs_own():
    from modeling.step import _seed

    torch.manual_seed(2**62 + 5)
    expected = torch.rand(4)
    _seed(2**62 + 5, torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)
