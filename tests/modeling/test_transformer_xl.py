"""Relative attention against its definition, pair by pair, and the two streams against what they promise."""

import math

import pytest
import torch

from modeling.errors import ConfigError
from modeling.masks import Visibility
from modeling.transformer import Transformer, TransformerConfig
from modeling.transformer_xl import QueryStream, RelativeAttention, RelativeStack, _Unseen, sinusoids

SMALL = {"layers": 2, "width": 16, "heads": 2, "ff_width": 24, "max_length": 12, "vocab_size": 50}
XLNET = {"positions": "transformer-xl", "embedding_norm": False, "head_transform": False}
# Float32 scores near 10 round by 1e-6; a few such errors in another order, then products with values near 1.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def config(**changes) -> TransformerConfig:
    return TransformerConfig(**{**SMALL, **XLNET, **changes})


def widened(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """With weights large enough for every term to show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.dim() > 1 else 0.5))
    return module.eval()


def by_definition(attention: RelativeAttention, x, queries, places, allowed, types):
    """Every score from the three terms of the papers, in loops; queries [T, D] at `places` of one row x [L, D]."""
    H, d, inner = attention.heads, attention.head_width, attention.inner
    wq, (wk, wv) = attention.query.weight, attention.key_value.weight.split(inner)
    width = x.shape[1]
    out = torch.zeros(len(places), inner)
    for n, i in enumerate(places):
        for h in range(H):
            of = slice(h * d, (h + 1) * d)
            q = (wq @ queries[n])[of]
            keys = [j for j in range(len(x)) if allowed[n][j]]
            scores = []
            for j in keys:
                angles = [(i - j) / 10_000 ** (2 * m / width) for m in range(width // 2)]
                encoding = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
                k, r = (wk @ x[j])[of], (attention.position.weight @ encoding)[of]
                score = (q + attention.content_bias[of]) @ k + (q + attention.position_bias[of]) @ r
                if types is not None:
                    segment = attention.segments[int(types[i] != types[j]), of]
                    score = score + (q + attention.segment_bias[of]) @ segment
                scores.append(score / d**0.5)
            if keys:
                weights = torch.stack(scores).softmax(0)
                out[n, of] = sum(w * (wv @ x[j])[of] for w, j in zip(weights, keys, strict=True))
    return out @ attention.output.weight.T


@pytest.mark.parametrize("length", [1, 2, 5, 12])
@pytest.mark.parametrize("typed", [False, True])
def test_attention_is_the_three_terms_of_every_pair(length, typed):
    generator = torch.Generator().manual_seed(length)
    stack = widened(RelativeStack(config(layers=1, token_types=2 if typed else 0)))
    attention = stack.blocks[0].attention
    x = torch.randn(2, length, 16, generator=generator)
    places = torch.randint(length, (2, 3), generator=generator)
    g = torch.randn(2, 3, 16, generator=generator)
    allowed_h = torch.rand(2, length, length, generator=generator) < 0.7
    allowed_g = torch.rand(2, 3, length, generator=generator) < 0.7
    allowed_g[0, 0] = False  # sees nothing
    types = torch.randint(2, (2, length), generator=generator) if typed else None
    found = {}
    attention.register_forward_hook(lambda _, inputs, outputs: found.update(out=outputs))
    with torch.no_grad():
        stack.mask_embedding.copy_(g[0, 0])
        stream = QueryStream(places, Visibility(allowed_g[:, None]))
        stack(x, Visibility(allowed_h[:, None]), token_type_ids_BL=types, query_stream=stream)
        _, from_query = found["out"]
        stack(x, Visibility(allowed_h[:, None]), token_type_ids_BL=types)
        from_content, _ = found["out"]
        for b in range(2):
            row = None if types is None else types[b]
            expected = by_definition(attention, x[b], x[b], range(length), allowed_h[b], row)
            assert torch.allclose(from_content[b], expected, **CLOSE)
            start = g[0, 0].expand(3, -1)
            expected = by_definition(attention, x[b], start, places[b].tolist(), allowed_g[b], row)
            assert torch.allclose(from_query[b], expected, **CLOSE)


def test_gradients_equal_those_of_the_definition():
    stack = widened(RelativeStack(config(layers=1, token_types=2, width=8, heads=2)), seed=1)
    attention = stack.blocks[0].attention
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 5, 8, generator=generator, requires_grad=True)
    allowed = torch.ones(5, 5).tril().bool()
    types = torch.tensor([0, 0, 1, 1, 0])
    out_weight = torch.randn(5, 8, generator=generator)
    wanted = [x, *attention.parameters()]

    expected = by_definition(attention, x[0], x[0], range(5), allowed, types)
    expected = torch.autograd.grad((expected * out_weight).sum(), wanted)
    found = {}
    attention.register_forward_hook(lambda _, inputs, outputs: found.update(out=outputs[0]))
    stack(x, Visibility(allowed[None, None]), token_type_ids_BL=types[None])
    found = torch.autograd.grad((found["out"][0] * out_weight).sum(), wanted)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)  # sums of up to 40 products


def test_query_gradients_equal_the_content_streams():
    """At places 0 … L − 1, from the same states: the two ways to the distances' scores, backwards."""
    stack = widened(RelativeStack(config(layers=1)))
    attention, L = stack.blocks[0].attention, 7
    x = torch.randn(2, L, 16, requires_grad=True)
    places = torch.arange(L).expand(2, -1)
    distances = sinusoids(L, 16)
    out_weight = torch.randn(2, L, 16)
    unseen = _Unseen(torch.rand(1, 2, L, L) < 0.3, None)
    wanted = [x, *attention.parameters()]
    h, _ = attention(x, distances, unseen, None)
    _, g = attention(x, distances, unseen, None, (x, places, unseen, None), content=False)
    assert torch.allclose(h, g, **CLOSE)
    of_h, of_g = (torch.autograd.grad((y * out_weight).sum(), wanted) for y in (h, g))
    for one, other in zip(of_h, of_g, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)


def test_a_row_is_the_same_wherever_it_stands_in_its_padding():
    model = widened(Transformer(config(token_types=2)))
    ids = torch.randint(50, (1, 5))
    types = torch.tensor([[0, 0, 1, 1, 1]])
    plain = model(ids, None, types)
    for left, right in ((0, 4), (4, 0), (3, 2)):
        padded = torch.nn.functional.pad(ids, (left, right), value=3)
        mask = torch.nn.functional.pad(torch.ones(1, 5, dtype=torch.int64), (left, right))
        padded_types = torch.nn.functional.pad(types, (left, right), value=1)
        found = model(padded, mask, padded_types)[:, left : left + 5]
        assert torch.allclose(found, plain, atol=1e-5)


def test_packed_documents_equal_documents_alone():
    model = widened(Transformer(config()))
    a, b = torch.randint(50, (1, 4)), torch.randint(50, (1, 6))
    packed = model(torch.cat([a, b], 1), segment_ids_BL=torch.tensor([[0] * 4 + [1] * 6]))
    assert torch.allclose(packed[:, :4], model(a), atol=1e-5)
    assert torch.allclose(packed[:, 4:], model(b), atol=1e-5)


def test_only_equality_of_segments_matters_and_one_segment_is_none():
    model = widened(Transformer(config(token_types=2)))
    ids, types = torch.randint(50, (2, 8)), torch.randint(2, (2, 8))
    assert torch.allclose(model(ids, None, types), model(ids, None, 1 - types), atol=1e-5)
    assert torch.allclose(model(ids, None, torch.ones_like(types)), model(ids), atol=1e-5)
    assert not torch.allclose(model(ids, None, types), model(ids), atol=1e-4)


def test_query_states_at_targets_equal_those_at_all_places():
    stack = widened(RelativeStack(config(layers=3)))
    x, L = torch.randn(2, 9, 16), 9
    allowed = torch.rand(2, 1, L, L) < 0.6
    everywhere = stack(
        x, Visibility(allowed), query_stream=QueryStream(torch.arange(L).expand(2, -1), Visibility(allowed))
    )
    places = torch.tensor([[7, 2, 2], [0, 8, 4]])
    rows = allowed.gather(2, places[:, None, :, None].expand(-1, -1, -1, L))
    some = stack(x, Visibility(allowed), query_stream=QueryStream(places, Visibility(rows)))
    assert torch.allclose(some, everywhere.gather(1, places[..., None].expand(-1, -1, 16)), atol=1e-5)


def test_bf16_autocast_is_near_fp32_and_every_weight_learns():
    torch.manual_seed(0)
    model = Transformer(config(token_types=2))
    ids, types = torch.randint(50, (2, 8)), torch.randint(2, (2, 8))
    stream = QueryStream(torch.tensor([[1, 3], [0, 7]]), Visibility(torch.rand(2, 1, 2, 8) < 0.5))
    x = model.tokens(ids)
    full = model.encoder(x, Visibility(), token_type_ids_BL=types, query_stream=stream)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.encoder(x, Visibility(), token_type_ids_BL=types, query_stream=stream)
    # bf16 has 8 bits: 2⁻⁸ relative on states of deviation 1, through two layers
    assert torch.allclose(half.float(), full, atol=0.06)
    half.float().square().mul(torch.randn(half.shape)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_initial_weights_have_the_configured_deviation():
    torch.manual_seed(0)
    model = Transformer(config(width=256, heads=4, token_types=2, init_std=0.05))
    attention = model.encoder.blocks[1].attention
    for p in (attention.content_bias, attention.position_bias, attention.segment_bias, model.encoder.mask_embedding):
        assert 0.04 < p.std() < 0.06  # 256 draws: within 4.4 % of 0.05 in two of three cases
    assert {name.partition("attention.")[2] for name in model.state_dict() if "attention." in name} == {
        "query.weight",
        "key_value.weight",
        "position.weight",
        "output.weight",
        "content_bias",
        "position_bias",
        "segment_bias",
        "segments",
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"width": 15, "heads": 3}, "width"), ({"qk_norm": True}, "qk_norm"), ({"embedding_width": 8}, "embedding_width")],
)
def test_options_it_has_not_are_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=named):
        RelativeStack(config(**{"tie_embeddings": False, **changes}))


def test_a_sequence_beyond_max_length_is_refused():
    with pytest.raises(ConfigError, match=r"13 tokens.*max_length is 12"):
        Transformer(config())(torch.zeros(1, 13, dtype=torch.int64))
