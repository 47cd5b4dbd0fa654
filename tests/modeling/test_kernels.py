"""The fast forms equal the plain ones, gradients included."""

import pytest
import torch
import torch.nn.functional as F

from modeling.kernels import attention, rms_norm, rotate


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


@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_in_bf16_is_as_near_to_fp32_as_torchs(masked):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 20, 16).unbind(0)
    mask = (torch.arange(20) < torch.tensor([[12], [20]]))[:, None, None] if masked else None
    exact = F.scaled_dot_product_attention(q, k, v, mask)
    half = [t.bfloat16() for t in (q, k, v)]
    torchs = F.scaled_dot_product_attention(*half, mask)
    found = attention(*half, mask, 0.0)
    assert found.dtype == torch.bfloat16
    assert (found - exact).abs().mean() < 1.5 * (torchs - exact).abs().mean()
