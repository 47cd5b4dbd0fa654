"""Parameter groups, and FLOPs against the textbook's formulas and against those that torch counts."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modeling.architecture import generator_config, model_config, preset
from modeling.checkpoint import build_model
from modeling.flops import GROUPS, forward_flops_per_token, parameter_counts, peak_flops, training_flops_per_token
from modeling.heads.classification import SequenceClassifier

LM = {"name": "language-model", "settings": {}}
RTD = {"name": "replaced-token-detection", "settings": {}}
PERMUTATION = {"name": "permutation-language-model", "settings": {}}


def counts(name: str, vocab_size: int, head: dict = LM, **changes) -> dict[str, int]:
    with torch.device("meta"):
        return parameter_counts(build_model(model_config({"preset": name, **changes, "vocab_size": vocab_size}), head))


# ---------------------------------------------------------------- groups


def test_bert_base_group_by_group():
    found = counts("bert-base", 30_522)
    assert found["embedding"] == 30_528 * 768  # rows rounded up to a multiple of 64
    assert found["position"] == 512 * 768
    assert found["token_type"] == 2 * 768
    assert found["attention"] == 12 * 4 * (768 * 768 + 768)
    assert found["feed_forward"] == 12 * (2 * 768 * 3072 + 3072 + 768)
    assert found["norm"] == (1 + 2 * 12) * 2 * 768
    assert found["head"] == 768 * 768 + 768 + 2 * 768 + 30_528
    assert found["cross_attention"] == found["recurrent"] == 0
    assert found["total"] == 109_514_298 + 6 * 768 + 6  # transformers' BertForMaskedLM, and six padded rows
    assert found["non_embedding"] == found["total"] - 30_528 * 768 - 514 * 768 - 30_528  # the output bias, too


def test_kaplans_n_of_gpt2():
    """Kaplan et al. 2020, table 1: 12 · layers · d², 84.9 M for GPT-2 small; biases and norms are little."""
    found = counts("gpt2-124M", 50_257)
    assert 12 * 12 * 768**2 == 84_934_656
    assert found["non_embedding"] == pytest.approx(84_934_656, rel=0.002)
    assert found["head"] == 0 and found["position"] == 1024 * 768


def test_kaplans_n_is_the_same_with_an_output_matrix_of_its_own():
    tied, own = (counts("gpt2-124M", 50_257, tie_embeddings=tied) for tied in (True, False))
    assert own["total"] - tied["total"] == own["head"] == 50_304 * 768
    assert own["non_embedding"] == tied["non_embedding"]
    assert counts("t5.1.1-small", 32_128)["non_embedding"] < 45e6 < counts("t5.1.1-small", 32_128)["total"]
    elmo = counts("elmo", 30_522, {"name": "bidirectional-lm", "settings": {}})
    assert elmo["non_embedding"] == elmo["recurrent"] == elmo["total"] - elmo["embedding"] - elmo["head"]
    rtd = counts("electra-small", 30_522, RTD)
    assert rtd["non_embedding"] == rtd["total"] - rtd["embedding"] - rtd["position"] - rtd["token_type"] - 30_528


def test_an_encoder_decoder_has_cross_attention_and_relative_positions():
    found = counts("t5-small", 32_128)
    assert found["cross_attention"] == 6 * 4 * 512 * 512
    assert found["attention"] == 12 * 4 * 512 * 512
    assert found["feed_forward"] == 12 * 2 * 512 * 2048
    assert found["position"] == 2 * 32 * 8
    assert found["norm"] == (2 * 6 + 1 + 3 * 6 + 1) * 512
    assert found["embedding"] == 32_128 * 512 and found["head"] == 0
    assert counts("t5.1.1-small", 32_128)["head"] == 32_128 * 512


def test_shared_weights_count_once():
    found = counts("albert-base", 30_000)
    assert found["embedding"] == 30_016 * 128 + 128 * 768 + 768
    assert found["attention"] == 4 * (768 * 768 + 768)
    alone, shared = counts("t5-small", 32_128), counts("t5-small", 32_128, share_stacks=True)
    assert shared["attention"] == alone["attention"] / 2 and shared["cross_attention"] == alone["cross_attention"]


def test_electra_has_one_set_of_embeddings():
    config = preset("electra-small", vocab_size=30_522)
    kept = counts("electra-small", 30_522, {"name": "discriminator", "settings": {}})
    both = counts("electra-small", 30_522, RTD)
    with torch.device("meta"):
        generator = parameter_counts(build_model(generator_config(config), LM))
    for group in ("attention", "feed_forward", "norm"):
        assert both[group] - kept[group] == generator[group]
    assert both["position"] == kept["position"] == 512 * 128
    assert both["embedding"] == 30_528 * 128 + (128 * 256 + 256) + (128 * 64 + 64)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("xlnet-base", PERMUTATION),
        ("elmo", {"name": "bidirectional-lm", "settings": {}}),
        ("word2vec", {"name": "word-vectors", "settings": {"kind": "skip-gram"}}),
        ("glove", {"name": "glove", "settings": {}}),
        ("bert-tiny", {**LM, "settings": {"pairs": "nsp", "span_boundary": True, "span_max": 10}}),
        ("modern-tiny", LM),
    ],
)
def test_every_parameter_has_a_group(name, head):
    found = counts(name, 640, head)
    assert sum(found[group] for group in GROUPS) == found["total"]
    with torch.device("meta"):
        model = build_model(model_config({"preset": name, "vocab_size": 640}), head)
    assert found["total"] == sum(parameter.numel() for parameter in model.parameters())
    by_hand = {
        "xlnet-base": ("attention", 12 * (5 * 768**2 + 3 * 768 + 2 * 768)),
        "elmo": ("recurrent", 4 * (4 * 4096 * (512 + 512) + 4 * 4096 + 4096 * 512)),
        "word2vec": ("embedding", 2 * 640 * 300),
        "glove": ("embedding", 2 * 640 * 301),
        "bert-tiny": ("attention", 2 * 4 * (128 * 128 + 128)),
        "modern-tiny": ("attention", 2 * (4 * 128 * 128 + 2 * 64)),
    }
    group, expected = by_hand[name]
    assert found[group] == expected


def test_a_classifiers_head_is_its_head():
    with torch.device("meta"):
        model = SequenceClassifier(preset("bert-tiny", vocab_size=640), 3)
    assert parameter_counts(model)["head"] == 3 * 128 + 3


# ---------------------------------------------------------------- FLOPs


def test_forward_flops_are_twice_the_matrices_plus_attention():
    config = preset("bert-base", vocab_size=30_522)
    matrices = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    head = 2 * (768 * 768 + 768 * 30_528)
    everywhere = 2 * matrices + 12 * 4 * 512 * 768 + head
    assert forward_flops_per_token(config, 512, 1.0) == everywhere
    # where nothing is labelled the last block ends with its attention's weighted sum
    last = 2 * (768 * 768 + 2 * 768 * 3072)
    assert forward_flops_per_token(config, 512, 0.15) == pytest.approx(everywhere - 0.85 * (head + last))
    assert training_flops_per_token(config, 512, 0.15) == 3 * forward_flops_per_token(config, 512, 0.15)


def test_training_takes_six_flops_per_parameter_and_token():
    """C ≈ 6ND with N the matrices, the output's included; attention adds 12 · layers · heads · head size · context."""
    config = preset("gpt2-124M", vocab_size=50_257)
    found = counts("gpt2-124M", 50_257)
    matrices = found["attention"] + found["feed_forward"] + found["embedding"]
    attention = 12 * 12 * 12 * 64 * 1024
    # biases are counted with the matrices, a thousandth of them
    assert training_flops_per_token(config, 1024, 1.0) == pytest.approx(6 * matrices + attention, rel=0.002)


SHAPE = {"vocab_size": 640, "layers": 2, "width": 64, "heads": 4, "ff_width": 96, "max_length": 48}
COUNTED = {
    "bert": ({"preset": "bert-tiny", **SHAPE}, LM),
    "bert, boundaries": ({"preset": "bert-tiny", **SHAPE}, {**LM, "settings": {"span_boundary": True, "span_max": 3}}),
    "swiglu": ({"preset": "modern-tiny", **SHAPE, "activation": "swiglu"}, LM),
    "albert": ({"preset": "albert-base", **SHAPE, "embedding_width": 24}, LM),
    "electra": ({"preset": "electra-small", **SHAPE, "embedding_width": 24}, RTD),
    "gpt2": ({"preset": "gpt2-124M", **SHAPE}, LM),
    "prefix-lm": ({"preset": "prefix-lm-base", **SHAPE, "head_size": 8}, LM),
    "t5": ({"preset": "t5-small", **SHAPE, "head_size": 8, "decoder_layers": 3}, LM),
    "t5.1.1": ({"preset": "t5.1.1-small", **SHAPE, "share_stacks": True}, LM),
    "bart": ({"preset": "bart-base", **SHAPE}, LM),
}


@pytest.mark.parametrize("name", COUNTED)
def test_flops_equal_those_torch_counts(name):
    fields, head = COUNTED[name]
    config = model_config(fields)
    model = build_model(config, head).eval()
    B, length, targets = 2, 32, 16 if config.architecture == "encoder-decoder" else 0
    ids = torch.randint(0, 640, (B, length))
    chosen = torch.arange(B * (targets or length)).view(B, -1) % 4 == 0
    batch = {"input_ids": ids, "labels": torch.where(chosen, 5, -100)}
    if targets:
        batch["decoder_input_ids"] = torch.randint(0, 640, (B, targets))
    if head is RTD:
        batch |= {"original_ids": ids, "uniforms": torch.rand(B, length)}
    batch |= {
        "boundary_left": ids * 0,
        "boundary_right": ids * 0,
        "boundary_offset": chosen.long() if not targets else ids,
    }
    # torch counts the matrix products that its plain attention is made of; fused kernels for CPUs it does not know
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch)
    tokens = B * (length + targets)
    found = forward_flops_per_token(config, length, int(chosen.sum()) / tokens, target_length=targets, head=head)
    if head is RTD:  # it multiplies by the output matrix twice: for the loss and, without a gradient, to sample
        sampled = int(chosen.sum()) * 2 * config.token_width * config.padded_vocab_size
        assert counter.get_total_flops() - sampled == pytest.approx(found * tokens)
    else:
        assert counter.get_total_flops() == pytest.approx(found * tokens)


def test_two_streams_cost_what_their_products_do():
    """By hand for one layer, whose content stream only gives keys and values: D = 8, length 16, a label in four."""
    config = preset("xlnet-base", vocab_size=64, layers=1, width=8, heads=2, ff_width=10)
    D, L, F, V = 8, 16, 10, 64
    keys_and_values, distances = 2 * D * D, 2 * D * D
    query = 2 * D * D + 3 * L * D + 2 * D * F  # query and output; content, position and sum of values; feed-forward
    expected = 2 * (keys_and_values + distances + (query + D * V) / 4)
    assert forward_flops_per_token(config, L, 0.25, head=PERMUTATION) == expected


def test_the_earlier_systems():
    elmo = model_config({"preset": "elmo", "vocab_size": 640})
    assert training_flops_per_token(elmo, 128, 2.0) == 3 * elmo.forward_flops_per_token(128, 2.0)
    assert training_flops_per_token(model_config({"preset": "word2vec", "vocab_size": 640}), 128, 1.0) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpu_has_a_measured_peak_that_leaves_the_random_state_alone(precision):
    before = torch.random.get_rng_state()
    assert 1e8 < peak_flops(torch.device("cpu"), precision) < 1e15
    assert torch.equal(torch.random.get_rng_state(), before)
