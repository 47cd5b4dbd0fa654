"""The transformer against Hugging Face's BERT, and its options against what they promise."""

import pytest
import torch

from modeling.errors import ConfigError
from modeling.heads import MaskedLM
from modeling.kernels import rotate
from modeling.transformer import PRESETS, Transformer, TransformerConfig, preset, rotary_turns

SMALL = {"layers": 2, "width": 32, "heads": 4, "ff_width": 48, "max_length": 24, "vocab_size": 100}


def copy_from_bert(ours: Transformer, theirs) -> None:
    """Weights of a transformers.BertModel into our layout: one matrix for queries, keys and values."""
    vocab = theirs.config.vocab_size
    with torch.no_grad():
        ours.tokens.weight[:vocab] = theirs.embeddings.word_embeddings.weight
        ours.positions.weight.copy_(theirs.embeddings.position_embeddings.weight)
        ours.token_types.weight.copy_(theirs.embeddings.token_type_embeddings.weight)
        ours.norm.load_state_dict(theirs.embeddings.LayerNorm.state_dict())
        for block, layer in zip(ours.blocks, theirs.encoder.layer, strict=True):
            attention = layer.attention
            parts = [attention.self.query, attention.self.key, attention.self.value]
            block.attention.qkv.weight.copy_(torch.cat([p.weight for p in parts]))
            block.attention.qkv.bias.copy_(torch.cat([p.bias for p in parts]))
            block.attention.output.load_state_dict(attention.output.dense.state_dict())
            block.attention_norm.load_state_dict(attention.output.LayerNorm.state_dict())
            block.ff.input.load_state_dict(layer.intermediate.dense.state_dict())
            block.ff.output.load_state_dict(layer.output.dense.state_dict())
            block.ff_norm.load_state_dict(layer.output.LayerNorm.state_dict())


def bert(attention: str):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
        attn_implementation=attention,
    )
    theirs = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():  # its init leaves norms and biases at 1 and 0, which would hide a mix-up
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return theirs


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_equals_hugging_face_bert_with_padding_and_segments(attention):
    theirs = bert(attention)
    ours = Transformer(TransformerConfig(**SMALL, token_types=2)).eval()
    copy_from_bert(ours, theirs)
    ids = torch.randint(0, 100, (3, 17))
    mask = torch.ones(3, 17, dtype=torch.int64)
    mask[1, 9:], mask[2, 3:] = 0, 0
    types = torch.randint(0, 2, (3, 17))
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        found = ours(ids, mask, types)
        assert torch.allclose(found[mask.bool()], expected[mask.bool()], atol=1e-5)
        unpadded = theirs(input_ids=ids).last_hidden_state
        assert torch.allclose(ours(ids), unpadded, atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_names_its_shape(name):
    config = preset(name, layers=1, vocab_size=100)
    with torch.device("meta"):
        model = MaskedLM(config)
    assert model.transformer.tokens.weight.shape == (128, config.width)


@pytest.mark.parametrize("activation", ["gelu", "relu", "geglu", "swiglu"])
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
    assert torch.equal(model(ids), model.norm(model.tokens(ids)))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"width": 30, "heads": 4}, "width 30 is not a multiple of heads 4"),
        ({"width": 12, "heads": 4, "positions": "rotary"}, "even head size"),
        ({"zero_init_residual": True}, "zero_init_residual needs norm_placement pre"),
        ({"dropout": 1.0}, "dropout"),
        ({"preset": "bert-minni"}, "did you mean 'bert-mini'"),
        ({"attention_heads": 4}, "attention_heads"),
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
