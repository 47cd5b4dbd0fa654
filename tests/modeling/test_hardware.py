"""The table of GPUs: names as people and as CUDA say them, and figures that belong together."""

import pytest

from modeling.errors import ConfigError
from modeling.hardware import GPUS, gpu, gpu_of_device


def test_a_gpu_is_found_by_any_spelling():
    assert gpu("h100").name == gpu("H100").name == gpu("NVIDIA H100").name == "H100"
    assert gpu("a100").name == "A100-80GB" and gpu("a100_40gb").name == "A100-40GB"
    assert gpu("rtx 4090").tflops["bf16"] == 165


def test_an_unknown_gpu_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown GPU 'h10'; did you mean 'H100'\? known: B200, H200"):
        gpu("h10")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("NVIDIA GeForce RTX 3090", "RTX-3090"),
    ],
)
def test_a_gpu_is_found_by_what_cuda_calls_it(device, name):
    found = gpu_of_device(device)
    assert found is not None and found.name == name


def test_a_gpu_that_is_not_in_the_table_has_no_peak():
    assert gpu_of_device("Some Other Card") is None
    assert "bf16" not in gpu("T4").tflops  # older than bf16: no peak is better than a wrong one


def test_every_entry_is_within_what_gpus_have():
    """Guards against a slip of a decimal point; the memory is below a data sheet's round figure."""
    for each in GPUS:
        assert 10 < each.memory_gib < 200 and 4 * each.tflops["fp32"] > each.tflops["fp16"] / 25
        assert each.tflops["fp16"] >= 1.9 * each.tflops["fp32"]
        assert each.link_gb_per_second < each.memory_gb_per_second
