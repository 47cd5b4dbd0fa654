"""The fast forms equal the plain ones, gradients included."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention

from modeling import kernels
from modeling.architecture import TransformerConfig
from modeling.blocks import Block
from modeling.kernels import attention, block_mask, packed_attention, rms_norm, rotate
from modeling.masks import EVERYTHING, Visibility, self_visibility

B, H, L, D = 3, 2, 150, 8  # more queries than a causal tile of fp32 has (128)


def test_rms_norm_equals_torchs_and_has_the_right_gradient():
    x = torch.randn(5, 7, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(rms_norm(x, weight, 1e-3), F.rms_norm(x, (12,), weight, 1e-3))
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, weight))
    across = x.transpose(0, 1)
    assert torch.allclose(rms_norm(across, weight, 1e-3), F.rms_norm(across, (12,), weight, 1e-3))


def test_rms_norm_gives_what_the_next_matrix_product_wants():
    x, weight = torch.randn(4, 16), torch.ones(16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = rms_norm(x, weight, 1e-6)
        assert y.dtype == torch.bfloat16
        assert rms_norm(x, weight, 1e-6, torch.float32).dtype == torch.float32
    y.sum().backward()
    assert weight.grad.dtype == torch.float32


def test_rotation_keeps_lengths_and_turns_back():
    x = torch.randn(2, 9, 8, requires_grad=True)
    turn = torch.polar(torch.ones(9, 4), torch.randn(9, 4))
    y = rotate(x, turn)
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.allclose(rotate(y, turn.conj()), x, atol=1e-5)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    assert torch.allclose(x.grad, rotate(gradient, turn.conj()), atol=1e-5)


def definition(q, k, v, visible, scale, bias=None):
    """Softmax(scale · q kᵀ + bias) v as it stands in the paper."""
    scores = scale * q @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    if visible.allowed is not None:
        scores = scores.masked_fill(~visible.allowed, -1e30)
    if visible.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -1e30)
    return scores.softmax(-1) @ v


def visibilities():
    torch.manual_seed(2)
    padding = torch.arange(L) < torch.tensor([[L], [90], [1]])
    documents = torch.arange(L).expand(B, L) // 40
    device = torch.device("cpu")
    return {
        "everything": EVERYTHING,
        "causal": Visibility(causal=True),
        "padding": self_visibility(L, causal=False, device=device, attention_mask_BL=padding),
        "documents": self_visibility(L, causal=False, device=device, segment_ids_BL=documents),
        "causal documents": self_visibility(L, causal=True, device=device, segment_ids_BL=documents),
        "both": Visibility((torch.rand(B, 1, L, L) < 0.5).tril() | torch.eye(L, dtype=torch.bool), causal=True),
        "two dimensions": Visibility(torch.ones(L, L, dtype=torch.bool).tril(5)),
    }


VISIBILITIES = visibilities()


@pytest.mark.parametrize("name", VISIBILITIES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_is_its_definition(name, with_bias):
    torch.manual_seed(0)
    visible = VISIBILITIES[name]
    qkv = torch.randn(B, L, 3, H, D, dtype=torch.float64).permute(2, 0, 3, 1, 4).requires_grad_()
    bias = torch.randn(1, H, L, L, dtype=torch.float64, requires_grad=True) if with_bias else None
    inputs = [qkv] if bias is None else [qkv, bias]
    expected = definition(*qkv.unbind(0), visible, 0.3, bias)
    gradient = torch.randn_like(expected)
    want = torch.autograd.grad(expected, inputs, gradient)
    for found in (
        packed_attention(qkv, visible, 0.3, 0.0, bias),
        attention(*qkv.unbind(0), visible, 0.3, 0.0, bias),
        kernels._Attention.apply(0.3, visible, bias, qkv),
        kernels._Attention.apply(0.3, visible, bias, *(x[None] for x in qkv.unbind(0))),
    ):
        assert torch.allclose(found, expected)
        for ours, theirs in zip(torch.autograd.grad(found, inputs, gradient), want, strict=True):
            assert torch.allclose(ours, theirs)
    with torch.no_grad():  # torch's own kernels
        assert torch.allclose(attention(*qkv.unbind(0), visible, 0.3, 0.0, bias), expected)


@pytest.mark.parametrize(
    ("dtype", "length", "causal", "with_bias", "written_out"),
    [
        (torch.float32, 128, True, False, False),
        (torch.float32, 256, True, False, True),
        (torch.float32, 128, False, False, False),
        (torch.float32, 256, False, False, False),
        (torch.float32, 128, False, True, True),
        (torch.bfloat16, 128, False, False, True),
        (torch.bfloat16, 128, True, False, True),
    ],
)
def test_the_faster_way_is_taken(dtype, length, causal, with_bias, written_out):
    qkv = torch.randn(3, 1, 2, length, 8, dtype=dtype, requires_grad=True)
    bias = torch.zeros(1, 2, length, length, requires_grad=True) if with_bias else None
    found = packed_attention(qkv, Visibility(causal=causal), 0.3, 0.0, bias)
    assert ("_Attention" in str(found.grad_fn)) == written_out


def test_the_memory_formula_has_the_same_limits():
    """`modeling.activations` says them again, since it must not import torch."""
    from modeling import activations

    assert activations.CAUSAL_TILE == {4: kernels.CAUSAL_QUERIES_FP32, 2: kernels.CAUSAL_QUERIES_BF16}
    for name in ("PLAIN_ATTENTION_BYTES", "FLASH_SCORES_FP32"):
        assert getattr(activations, name) == getattr(kernels, name)


def test_gradients_where_only_some_are_wanted():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64).unbind(0)
    bias = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: attention(q, k, v, Visibility(causal=True), 0.5, 0.0, b), (bias,))
    q.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attention(x, k, v, EVERYTHING, 0.5, 0.0), (q,))


def test_attention_over_other_states_and_rows_without_anything_to_see():
    torch.manual_seed(0)
    q = torch.randn(2, 2, 7, 4, requires_grad=True)
    kv = torch.randn(2, 2, 2, 5, 4, requires_grad=True)
    sees = Visibility(torch.tensor([[True] * 5, [False] * 5])[:, None, None, :])
    found = attention(q, *kv.unbind(0), sees, 0.5, 0.0)
    found.sum().backward()
    assert torch.allclose(found[0], definition(q, *kv.unbind(0), EVERYTHING, 0.5)[0], atol=1e-6)
    assert torch.isfinite(found).all()
    assert torch.isfinite(q.grad).all()


@pytest.mark.parametrize("name", ["everything", "causal", "padding"])
def test_attention_in_bf16_is_as_near_to_fp32_as_the_plain_products(name):
    torch.manual_seed(0)
    visible = VISIBILITIES[name]
    exact_inputs = [t.requires_grad_() for t in torch.randn(3, B, H, L, 16).bfloat16().float().unbind(0)]
    half = [t.detach().bfloat16().requires_grad_() for t in exact_inputs]
    exact = definition(*exact_inputs, visible, 0.25)
    gradient = torch.randn_like(exact).bfloat16()
    want = torch.autograd.grad(exact, exact_inputs, gradient.float())
    plain, found = definition(*half, visible, 0.25), attention(*half, visible, 0.25, 0.0)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 1.5 * (plain - exact).norm()
    got, plains = torch.autograd.grad(found, half, gradient), torch.autograd.grad(plain, half, gradient)
    for ours, theirs, exactly in zip(got, plains, want, strict=True):
        assert (ours - exactly).norm() < 1.5 * (theirs - exactly).norm()


def test_large_weights_are_left_to_torchs_kernels(monkeypatch):
    monkeypatch.setattr(kernels, "FLASH_SCORES_FP32", 0)
    monkeypatch.setattr(kernels, "PLAIN_ATTENTION_BYTES", 4 * B * H * L * L - 1)
    qkv = torch.randn(3, B, H, L, D, requires_grad=True)
    found = packed_attention(qkv, Visibility(causal=True), 0.3, 0.0)
    assert "_Attention" not in str(found.grad_fn)
    # fp32 sums in another order
    assert torch.allclose(found, definition(*qkv.unbind(0), Visibility(causal=True), 0.3), atol=1e-5)


def test_dropout_of_weights_keeps_the_mean():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 4, 8)
    v = torch.ones(1, 1, 6, 1).expand(400, 1, 6, 1).requires_grad_()
    out = attention(q.expand(400, 1, 4, 8), k[:, :, :1].expand(400, 1, 6, 8), v, EVERYTHING, 1.0, 0.25)
    assert out.std() > 0.1
    # 1,600 means of six draws each: a standard error of 0.006
    assert abs(out.mean() - 1) < 0.03


@pytest.mark.filterwarnings("ignore:flex_attention called without")  # compiled it is for GPUs only
def test_blocks_of_packed_rows_are_the_mask():
    torch.manual_seed(0)
    length = 300
    segments = torch.tensor([[0] * 130 + [1] * 170, [0] * 299 + [1]])
    for causal in (False, True):
        visible = self_visibility(length, causal=causal, device=torch.device("cpu"), segment_ids_BL=segments)
        q, k, v = torch.randn(3, 2, 2, length, 16).unbind(0)
        mask = block_mask(visible, length, length)
        assert mask is block_mask(visible, length, length)
        found = flex_attention(q, k, v, block_mask=mask, scale=0.25)
        # fp32 sums in another order
        assert torch.allclose(found, attention(q, k, v, visible, 0.25, 0.0), atol=1e-5)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_block_at_some_places_is_the_block_there(placement):
    torch.manual_seed(0)
    config = TransformerConfig(width=32, heads=4, ff_width=48, norm_placement=placement)
    block, x = Block(config), torch.randn(2, 9, 32)
    at = torch.tensor([0, 5, 17])
    expected = block(x, Visibility(causal=True)).flatten(0, 1)[at]
    found = block(x, Visibility(causal=True), at=at)
    # fp32 products of other sizes may sum in another order
    assert torch.allclose(found, expected, atol=1e-5)
