"""Parameter counts against the published sizes, FLOPs against the textbook's formulas."""

import pytest
import torch

from modeling.flops import forward_flops_per_token, parameter_counts, peak_flops, training_flops_per_token
from modeling.heads import MaskedLM, SequenceClassifier
from modeling.transformer import preset


def counts(name: str, vocab_size: int) -> dict[str, int]:
    with torch.device("meta"):
        return parameter_counts(MaskedLM(preset(name, vocab_size=vocab_size)))


def test_bert_base_has_the_published_parameters_group_by_group():
    found = counts("bert-base", 30_522)
    layer_attention, layer_ff = 4 * (768 * 768 + 768), 2 * 768 * 3072 + 3072 + 768
    assert found["embedding"] == 30_528 * 768  # rows rounded up to a multiple of 64
    assert found["position"] == 512 * 768
    assert found["token_type"] == 2 * 768
    assert found["attention"] == 12 * layer_attention
    assert found["feed_forward"] == 12 * layer_ff
    assert found["norm"] == (1 + 2 * 12) * 2 * 768
    assert found["head"] == 768 * 768 + 768 + 2 * 768 + 30_528
    assert found["total"] == 109_514_298 + 6 * 768 + 6  # transformers' BertForMaskedLM, and six padded rows
    assert found["total"] == pytest.approx(110e6, rel=0.005)  # Devlin et al. 2018
    assert found["non_embedding"] == found["total"] - 30_528 * 768 - 514 * 768


@pytest.mark.parametrize(
    ("name", "millions"),
    # Turc et al. 2019, table 1: with the pooler, without the MLM head.
    [("bert-tiny", 4.4), ("bert-mini", 11.3), ("bert-small", 29.1), ("bert-medium", 41.7), ("bert-large", 340)],
)
def test_the_other_berts(name, millions):
    with torch.device("meta"):
        found = parameter_counts(SequenceClassifier(preset(name, vocab_size=30_522), 2, pooling="cls"))
    assert found["total"] / 1e6 == pytest.approx(millions, rel=0.02)


def test_forward_flops_are_twice_the_matrices_plus_attention():
    config = preset("bert-base", vocab_size=30_522)
    matrices = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    assert forward_flops_per_token(config, 512, 0.0) == 2 * matrices + 12 * 4 * 512 * 768
    head = 2 * (768 * 768 + 768 * 30_528)
    assert forward_flops_per_token(config, 512, 0.15) - forward_flops_per_token(config, 512, 0) == pytest.approx(
        0.15 * head
    )
    assert training_flops_per_token(config, 512, 0.15) == 3 * forward_flops_per_token(config, 512, 0.15)


def test_flops_equal_those_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = preset("modern-tiny", vocab_size=640, activation="swiglu")
    model = MaskedLM(config)
    ids = torch.randint(0, 640, (2, 32))
    labels = torch.where(torch.arange(64).view(2, 32) % 4 == 0, ids, -100)
    with FlopCounterMode(display=False) as counter:
        model({"input_ids": ids, "labels": labels})
    # The counter knows matrix products; CPU attention kernels are unknown to some versions of it.
    attention = 64 * config.layers * 4 * 32 * config.width
    expected = 64 * forward_flops_per_token(config, 32, 0.25)
    assert counter.get_total_flops() in (expected, expected - attention)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpu_has_a_measured_peak_that_leaves_the_random_state_alone(precision):
    before = torch.random.get_rng_state()
    assert 1e8 < peak_flops(torch.device("cpu"), precision) < 1e15
    assert torch.equal(torch.random.get_rng_state(), before)
