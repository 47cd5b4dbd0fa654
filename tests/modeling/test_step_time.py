"""The model of a step: volumes and rings by hand, what scales how, and published shares of peak."""

import pytest

from modeling.activations import Workload
from modeling.architecture import model_config
from modeling.hardware import gpu
from modeling.memory import Placed
from modeling.step_time import Device, Network, communication, copies, gpu_device, gpu_network, step_time, volumes

LM = {"name": "language-model", "settings": {}}
GPT2 = Workload(model_config({"preset": "gpt2-124M", "vocab_size": 50_257}), LM, "bf16", 32, 1024)


def test_volumes_by_stage():
    assert volumes(10, Placed(1, 3)) == {}
    assert volumes(10, Placed(2, 0, 4)) == {"all_reduce": 40}
    assert volumes(10, Placed(2, 1, 4)) == {"all_reduce": 40, "all_gather": 40}
    assert volumes(10, Placed(2, 2, 4)) == {"all_reduce": 160, "all_gather": 40}
    assert volumes(10, Placed(2, 3, 4)) == {"all_gather": 160, "reduce_scatter": 160}
    assert volumes(10, Placed(2, 3, 1, gathered=5)) == {"all_gather": 80, "reduce_scatter": 40}


def test_a_ring_by_hand():
    """1 M parameters on 4 workers over 1 GB/s: 2 · 3/4 · 4 MB are 6 ms, and 6 messages of 1 ms."""
    found = communication(1_000_000, Placed(4, 1), Network(1e9, 1e-3))
    assert found == pytest.approx({"small": 4 * 0.006, "all_reduce": 0.006 + 0.006, "all_gather": 0.003 + 0.003})
    assert communication(1_000_000, Placed(1, 0), Network(1e9, 1e-3)) == {}
    slow = communication(1_000_000, Placed(4, 1), Network(1e9, 1e-3, gather=1.5))
    assert slow["all_gather"] == pytest.approx(3 * found["all_gather"])


def test_stage_3_gathers_matrix_by_matrix():
    """Ten matrices in two micro-batches: twenty calls; gradients go in one bucket a micro-batch."""
    found = communication(1000, Placed(2, 3, 2), Network(1e9, 1e-3), matrices=10)
    moved = 8000 / 1e9
    assert found["all_gather"] == pytest.approx((moved + 20 * 2e-3) / 2)
    assert found["reduce_scatter"] == pytest.approx((moved + 2 * 2e-3) / 2)
    again = communication(1000, Placed(2, 3, 2, gathered=999), Network(1e9, 1e-3), matrices=10)
    assert again["all_gather"] == pytest.approx(2 * found["all_gather"])


def test_what_deepspeed_copies():
    """Read and written, 4 bytes each: gradients above stage 0, at stage 3 also gathered weights, once or twice."""
    assert [copies(100, Placed(2, stage)) for stage in range(4)] == [0, 800, 800, 1600]
    assert copies(100, Placed(2, 3, gathered=99)) == 2400


def test_a_slow_processor_waits_for_its_operations_to_start():
    device = Device(1e12, 1e12, 1e-3)
    small = Workload(model_config({"preset": "bert-tiny", "vocab_size": 1000}), LM, "fp32", 1, 16)
    assert step_time(small, Placed(), device, Network(1, 0)).seconds > 2 * 100 * 1e-3


def test_sharing_processors_slows_all_that_is_computed():
    device, network = Device(1e12, 1e11, 0), Network(1e9, 0)
    alone, shared = (step_time(GPT2, Placed(4, 0), device, network, slowdown=s) for s in (1.0, 2.0))
    assert shared.seconds - shared.communication == pytest.approx(2 * (alone.seconds - alone.communication))
    assert shared.communication == alone.communication > 0


def test_hooks_cost_most_at_stage_3():
    device, network = Device(1e15, 1e15, 1e-5), Network(1e12, 0)
    times = [step_time(GPT2, Placed(2, stage), device, network).seconds for stage in range(4)]
    assert times[0] < times[1] < times[3]


def test_overlap_hides_communication_behind_the_backward_pass():
    device = gpu_device(gpu("h100"), "bf16")
    assert device is not None
    network = gpu_network(gpu("h100"), 8, 8, 400)
    plain, hidden = (step_time(GPT2, Placed(8, 1, overlap=o), device, network).communication for o in (False, True))
    assert 0 < hidden < plain / 2  # what is left is the all-gather of the new weights, half of the all-reduce before it


def test_the_network_is_the_machines_own_until_a_ring_leaves_it():
    inside, outside = gpu_network(gpu("h100"), 8, 8, 400), gpu_network(gpu("h100"), 16, 8, 400)
    assert inside.bytes_per_second > 7 * outside.bytes_per_second
    assert gpu_device(gpu("t4"), "bf16") is None


@pytest.mark.parametrize(
    ("work", "name", "low", "high"),
    [
        (GPT2, "h100", 0.35, 0.50),  # nanochat and its kin: 40 to 46 % of an H100
        # Megatron-LM, GPT of 1.7 B on A100s: 44 % (Narayanan et al. 2021, table 1); ours keeps its states in fp32
        (Workload(model_config({"preset": "gpt2-1558M", "vocab_size": 50_257}), LM, "bf16", 8, 1024), "a100", 0.4, 0.6),
    ],
)
def test_shares_of_peak_are_those_published_of_such_runs(work, name, low, high):
    device = gpu_device(gpu(name), "bf16")
    assert device is not None
    step = step_time(work, Placed(8, 1), device, gpu_network(gpu(name), 8, 8, 400))
    found = step.mfu(device, 8)
    assert found is not None and low < found < high
