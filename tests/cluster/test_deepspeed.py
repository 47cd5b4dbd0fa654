"""DeepSpeed's config from placement, and a user's own settings over it."""

import json

import pytest
from pydantic import ValidationError

from cluster.deepspeed import engine_config
from cluster.errors import BadConfig
from tasks.base import Runtime

RUN = {"batch_size": 30, "world_size": 4, "length_tokens": 128}


def test_the_global_batch_is_split_into_ranks_accumulation_and_micro_batches():
    for micro_batch, expected in ((0, (8, 1)), (8, (8, 1)), (3, (3, 3)), (5, (4, 2)), (1, (1, 8))):
        config = engine_config(**RUN, micro_batch=micro_batch)
        assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == expected
        assert config["train_batch_size"] == expected[0] * expected[1] * 4 >= 30


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_and_buckets_follow_the_placement(stage):
    zero = engine_config(**RUN, zero_stage=stage, offload_optimizer="cpu", bucket_elements=1000)["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == 1000
    assert ("stage3_prefetch_bucket_size" in zero) == (stage == 3)


def test_parameters_go_to_a_disk_at_stage_3():
    zero = engine_config(**RUN, zero_stage=3, offload_parameters="nvme", nvme_path="/nvme")["zero_optimization"]
    assert zero["offload_param"] == {"device": "nvme", "pin_memory": True, "nvme_path": "/nvme"}
    assert "offload_optimizer" not in zero


def test_own_settings_go_over_the_generated_ones_key_by_key():
    own = {"zero_optimization": {"sub_group_size": 10, "offload_optimizer": {"pin_memory": False}}, "aio": {"x": 1}}
    config = engine_config(**RUN, zero_stage=2, offload_optimizer="cpu", own=own)
    plain = engine_config(**RUN, zero_stage=2, offload_optimizer="cpu")
    zero = plain["zero_optimization"]
    zero |= {"sub_group_size": 10, "offload_optimizer": {"device": "cpu", "pin_memory": False}}
    assert config == {**plain, "aio": {"x": 1}}


@pytest.mark.parametrize(
    ("own", "key", "instead"),
    [
        ({"train_batch_size": 4}, "train_batch_size", "loop.batch_size"),
        ({"optimizer": {"type": "SGD"}}, "optimizer", "set it in loop"),
        ({"scheduler": {}}, "scheduler", "set it in loop"),
        ({"fp16": {"enabled": True}}, "fp16", "loop.precision"),
        ({"bf16": {"enabled": True}}, "bf16", "loop.precision"),
        ({"gradient_clipping": 1.0}, "gradient_clipping", "loop.clip_norm"),
        ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage", "placement.zero_stage"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "device", "placement.offload_optimizer"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, "zero_quantized_weights", "change what is computed"),
        ({"wal_clock_breakdown": True}, "wal_clock_breakdown", "did you mean 'wall_clock_breakdown'"),
    ],
)
def test_settings_that_would_change_the_mathematics_are_refused_by_name(own, key, instead):
    with pytest.raises(BadConfig) as caught:
        Runtime(deepspeed=own)
    assert key in caught.value.message
    assert instead in str(caught.value)


def test_own_settings_come_from_a_file_once(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"sub_group_size": 10}}))
    runtime = Runtime(deepspeed=str(path))
    assert runtime.deepspeed == {"zero_optimization": {"sub_group_size": 10}}
    assert Runtime.model_validate(runtime.model_dump()) == runtime
    for text, said in ((None, "No such file"), ("{", "is not JSON"), ("[]", "holds a list")):
        other = tmp_path / "other.json"
        if text is not None:
            other.write_text(text)
        with pytest.raises(BadConfig, match=said):
            Runtime(deepspeed=str(other))


def test_a_switch_for_offload_means_the_host_and_impossible_placements_are_refused():
    assert Runtime(zero_stage=1, offload_optimizer=True).offload_optimizer == "cpu"
    assert Runtime(offload_optimizer=False).offload_optimizer == "none"
    for given, said in (
        ({"offload_optimizer": "cpu"}, "set zero_stage to 1, 2 or 3"),
        ({"offload_parameters": "cpu", "zero_stage": 2}, "set zero_stage to 3"),
        ({"offload_optimizer": "nvme", "zero_stage": 2, "nvme_path": "/x"}, "set zero_stage to 3, or offload to cpu"),
        ({"offload_parameters": "nvme", "zero_stage": 3}, "set nvme_path"),
    ):
        with pytest.raises(ValidationError, match=said):
            Runtime(**given)
