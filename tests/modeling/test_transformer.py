"""The transformer's architectures and options against what they promise; parity is in test_hub."""

import pytest
import torch

from modeling.errors import ConfigError
from modeling.kernels import rotate
from modeling.positions import near_bias, relative_bucket, rotary_turns
from modeling.transformer import (
    Transformer,
    TransformerConfig,
    hidden_states,
    preset,
)

SMALL = {"layers": 2, "width": 32, "heads": 4, "ff_width": 48, "max_length": 24, "vocab_size": 100}


ARCHITECTURES = ("encoder", "decoder", "prefix-lm", "encoder-decoder")
POSITIONS = ("learned", "relative", "rotary")


def small(**fields) -> TransformerConfig:
    return TransformerConfig(**{**SMALL, **fields})


def made(seed: int = 0, **fields) -> Transformer:
    """A transformer whose weights, norms and biases included, are all far from their defaults."""
    torch.manual_seed(seed)
    model = Transformer(small(**fields)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


def run(model: Transformer, ids: torch.Tensor, prefix: int = 0, **more: torch.Tensor) -> torch.Tensor:
    """Hidden states where labels would stand; an encoder-decoder reads `ids` on both sides."""
    batch = {"input_ids": ids, "decoder_input_ids": ids, **more}
    if prefix:
        batch["prefix_mask"] = torch.arange(ids.shape[1]).expand_as(ids) < prefix
    return hidden_states(model, batch)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_who_sees_whom(architecture, positions):
    """A changed token moves exactly the states that may see it."""
    model = made(architecture=architecture, positions=positions)
    ids = torch.randint(0, 100, (1, 10))
    prefix = 4 if architecture == "prefix-lm" else 0
    before = run(model, ids, prefix)
    for place in range(10):
        changed = ids.clone()
        changed[0, place] = (ids[0, place] + 1) % 100
        if architecture == "encoder-decoder":  # change the decoder's side alone
            batch = {"input_ids": ids, "decoder_input_ids": changed}
            after = hidden_states(model, batch)
        else:
            after = run(model, changed, prefix)
        moved = ((after - before).abs().amax(-1)[0] > 1e-6).tolist()
        sees_all = architecture == "encoder" or place < prefix
        assert moved == [sees_all or at >= place for at in range(10)], place


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_documents_packed_into_one_row_are_as_if_alone(architecture, positions):
    model = made(architecture=architecture, positions=positions)
    lengths = (3, 5, 4)
    documents = [torch.randint(0, 100, (1, n)) for n in lengths]
    ids = torch.cat(documents, 1)
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    places = torch.cat([torch.arange(n) for n in lengths])[None]
    names = ("segment_ids", "decoder_segment_ids", "position_ids", "decoder_position_ids")
    packed = run(model, ids, **dict(zip(names, (segments, segments, places, places), strict=True)))
    alone = torch.cat([run(model, document) for document in documents], 1)
    # float32 sums in another order
    assert torch.allclose(packed, alone, atol=1e-5)
    assert not torch.allclose(run(model, ids), alone, atol=1e-2), "the documents did not see each other before"


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("architecture", ["decoder", "prefix-lm", "encoder-decoder"])
def test_a_cache_changes_nothing(architecture, positions):
    model = made(architecture=architecture, positions=positions)
    ids, inputs = torch.randint(0, 100, (2, 9)), torch.randint(0, 100, (2, 6))
    cache = model.new_cache()
    pieces = (ids[:, :4], ids[:, 4:5], ids[:, 5:7], ids[:, 7:])
    if architecture == "encoder-decoder":
        memory = model(inputs)
        whole = model.decode(ids, memory)
        steps = [model.decode(piece, memory, cache=cache) for piece in pieces]
    else:
        whole = model(ids)
        steps = [model(piece, cache=cache) for piece in pieces]
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)
    assert cache.length == 9


def test_layers_and_stacks_can_share_their_weights():
    def count(**fields) -> int:
        return sum(p.numel() for p in Transformer(small(**fields)).parameters())

    one = count(layers=1)
    assert count(share_layers=True, layers=7) == one < count(layers=7)
    apart = count(architecture="encoder-decoder")
    shared = count(architecture="encoder-decoder", share_stacks=True)
    block = count(layers=2) - one
    assert apart - shared == 2 * block
    model = Transformer(small(architecture="encoder-decoder", share_stacks=True))
    memory = model(torch.randint(0, 100, (1, 5)))
    model.decode(torch.randint(0, 100, (1, 4)), memory).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert count(embedding_width=8) < count() and Transformer(small(embedding_width=8)).tokens.weight.shape == (128, 8)


def test_relative_buckets_are_those_of_t5():
    """As transformers computes them, for every distance up to far beyond the largest."""
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-300, 301)
    for buckets, most in ((32, 128), (16, 40), (8, 20)):
        for both in (True, False):
            expected = T5Attention._relative_position_bucket(distance, both, buckets, most)
            assert torch.equal(relative_bucket(distance, buckets, most, both), expected)


def test_a_prefix_sees_the_order_of_what_follows_within_it():
    """As T5's code has it: distances of two directions unless a stack is causal throughout."""
    model = made(architecture="prefix-lm", positions="relative", layers=1)
    ids = torch.randint(0, 100, (1, 10))
    turned = ids[:, [0, 1, 5, 4, 3, 2, 6, 7, 8, 9]]
    moved = (run(model, ids, prefix=6) - run(model, turned, prefix=6)).abs().amax(-1)[0]
    assert (moved[:2] > 1e-3).all()
    assert made(architecture="prefix-lm", positions="relative").decoder.two_directions
    assert not made(architecture="decoder", positions="relative").decoder.two_directions
    assert not made(architecture="encoder-decoder", positions="relative").decoder.two_directions


def test_near_biases_fall_with_the_distance_on_each_heads_side():
    """Golden: slopes 1 and 1/16 for two heads a side, a bucket's mean distance, 4 less on the other side."""
    # Buckets of distance 0, −1, −2..−3 and −4..−6, then (none), 1, 2..3 and 4..6; heads begin left, right, left, right.
    left = torch.tensor([0, -1, -2.5, -5])
    right = torch.tensor([0, -5, -6.5, -9])
    found = near_bias(8, 6, 4, bidirectional=True)
    assert torch.equal(found[:4, 0], left)
    assert torch.equal(found[4:, 0], right)
    assert torch.equal(found[:4, 1], right)
    assert torch.equal(found[4:, 1], left)
    assert torch.equal(found[:4, 2], left / 16)
    assert torch.equal(found[5:, 3], left[1:] / 16)
    assert torch.equal(near_bias(8, 6, 1, bidirectional=True)[:, 0], torch.cat((left, left)))  # one head: both sides
    assert torch.equal(near_bias(8, 20, 2, bidirectional=False)[:4, 1], -torch.arange(4) / 16)  # causal: no other side


def test_near_start_is_of_the_bias_alone_and_is_learnt_from():
    """All other weights are as drawn without it; heads differ in number and layout."""
    for architecture in ("encoder", "encoder-decoder", "prefix-lm"):
        found = []
        for start in ("normal", "near"):
            torch.manual_seed(0)
            found.append(Transformer(small(architecture=architecture, positions="relative", relative_init=start)))
        plain, near = (dict(model.named_parameters()) for model in found)
        different = {name for name, weight in plain.items() if not torch.equal(weight, near[name])}
        assert different == {name for name in plain if name.endswith("relative.weight")}
        assert all(near[name].requires_grad for name in different)
        if architecture != "prefix-lm":
            assert torch.equal(near["encoder.relative.weight"], near_bias(32, 128, 4, bidirectional=True))
        if architecture != "encoder":
            both = architecture == "prefix-lm"
            assert torch.equal(near["decoder.relative.weight"], near_bias(32, 128, 4, bidirectional=both))
    with pytest.raises(ValueError, match="relative_init near needs positions relative, found rotary"):
        small(positions="rotary", relative_init="near")


@pytest.mark.parametrize("fields", [{"init": "fan-in", "attention_scale": False}, {"scaled_init_residual": True}])
def test_initial_weights_have_the_deviations_of_the_papers(fields):
    torch.manual_seed(0)
    config = small(layers=6, width=64, ff_width=256, heads=4, architecture="decoder", norm_placement="pre", **fields)
    block = Transformer(config).decoder.blocks[0]
    query, rest = block.attention.qkv.weight[:64].std(), block.attention.qkv.weight[64:].std()
    found = [query, rest, block.attention.output.weight.std(), block.ff.output.weight.std()]
    if "init" in fields:
        wanted = [(64 * 16) ** -0.5, 64**-0.5, 64**-0.5, 256**-0.5]
    else:
        wanted = [0.02, 0.02, 0.02 / 12**0.5, 0.02 / 12**0.5]
    # a deviation over 4,096 draws is known to 1.1 %: four of its own deviations
    assert torch.allclose(torch.stack(found), torch.tensor(wanted), rtol=0.05)


@pytest.mark.parametrize("activation", ["gelu", "gelu-tanh", "relu", "geglu", "swiglu"])
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_padding_changes_nothing(activation, placement, positions):
    torch.manual_seed(0)
    config = TransformerConfig(
        **SMALL, activation=activation, norm_placement=placement, positions=positions, norm="rmsnorm", qk_norm=True
    )
    model = Transformer(config).eval()
    ids = torch.randint(0, 100, (2, 12))
    alone = model(ids[:, :7])
    ids[:, 7:] = 0
    mask = torch.arange(12).expand(2, 12) < 7
    assert torch.allclose(model(ids, mask)[:, :7], alone, atol=1e-5)


def test_position_ids_take_the_place_of_the_order():
    torch.manual_seed(0)
    ids, shuffled = torch.randint(0, 100, (1, 10)), torch.randperm(10)
    for positions in ("learned", "rotary"):
        model = Transformer(TransformerConfig(**SMALL, positions=positions)).eval()
        moved = model(ids[:, shuffled], position_ids_BL=shuffled[None])
        assert torch.allclose(moved, model(ids)[:, shuffled], atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_model_cast_to_bfloat16_runs(positions: str):
    model, ids = made(positions=positions, norm_placement="pre"), torch.randint(100, (2, 9))
    with torch.inference_mode():
        expected = model(ids)
        found = model.bfloat16()(ids)
    assert found.dtype == torch.bfloat16
    # bfloat16 has 8 bits: a rounding is up to 0.4 %, and some ten of them follow each other here
    assert (found.float() - expected).norm() < 0.05 * expected.norm()


def test_rotary_products_depend_on_distance_alone():
    config = TransformerConfig(**SMALL, positions="rotary")
    turns = rotary_turns(config)
    q, k = torch.randn(8), torch.randn(8)
    rotated_q, rotated_k = (rotate(x.expand(24, 8), turns) for x in (q, k))
    assert torch.allclose(rotated_q[3] @ rotated_k[1], rotated_q[20] @ rotated_k[18], atol=1e-5)
    assert torch.allclose(rotated_q[0], q)
    angle = 5 * config.rotary_base ** (-2 / 8)  # position 5, pair 1
    expected = q[2] * torch.tensor(angle).cos() - q[3] * torch.tensor(angle).sin()
    assert torch.allclose(rotated_q[5, 2], expected, atol=1e-5)


def test_zero_init_starts_as_the_identity():
    config = preset("modern-tiny", vocab_size=100)
    model = Transformer(config)
    ids = torch.randint(0, 100, (2, 9))
    assert torch.equal(model(ids), model.encoder.final_norm(model.tokens(ids)))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"width": 30, "heads": 4}, "width 30 is not a multiple of heads 4"),
        ({"width": 12, "heads": 4, "positions": "rotary"}, "even head size"),
        ({"zero_init_residual": True}, "zero_init_residual needs norm_placement pre"),
        ({"dropout": 1.0}, "dropout"),
        ({"preset": "bert-minni"}, "did you mean 'bert-mini'"),
        ({"attention_heads": 4}, "attention_heads"),
        ({"share_stacks": True}, "share_stacks needs architecture encoder-decoder, found encoder"),
        ({"decoder_layers": 2, "architecture": "decoder"}, "decoder_layers needs architecture encoder-decoder"),
        ({"positions": "transformer-xl", "architecture": "decoder"}, "need a post-norm encoder"),
        ({"embedding_width": 64, "head_transform": False}, "tied output matrix needs head_transform"),
    ],
)
def test_impossible_configs_are_refused_by_name(fields, named):
    with pytest.raises(ValueError, match=named):
        TransformerConfig.model_validate(fields)


def test_sequences_longer_than_positions_and_missing_vocabulary_are_refused():
    model = Transformer(TransformerConfig(**SMALL))
    with pytest.raises(ConfigError, match="25 tokens, but model.max_length is 24"):
        model(torch.zeros(1, 25, dtype=torch.int64))
    with pytest.raises(ConfigError, match="vocab_size is 0"):
        Transformer(preset("bert-tiny"))
    with pytest.raises(ConfigError, match="tokenizer has 90"):
        TransformerConfig(**SMALL).with_vocabulary(90)


def test_a_preset_can_be_changed_field_by_field():
    config = TransformerConfig.model_validate({"preset": "bert-mini", "layers": 2})
    assert (config.layers, config.width, config.token_types) == (2, 256, 2)
    assert TransformerConfig.model_validate("bert-mini") == preset("bert-mini")
