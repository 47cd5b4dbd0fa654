"""The fast forms equal torch's, gradients included."""

import pytest
import torch
import torch.nn.functional as F

from modeling import nonlinearities
from modeling.nonlinearities import activate, gated


@pytest.mark.parametrize("name", ["geglu", "geglu-tanh", "swiglu"])
def test_a_gate_is_the_activation_of_the_first_half_times_the_second(name):
    torch.manual_seed(0)
    h = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(gated(h, name), activate(h[..., :6], name) * h[..., 6:])
    assert torch.autograd.gradcheck(lambda x: gated(x, name), (h,))
    assert torch.autograd.gradcheck(lambda x: gated(x.transpose(0, 1), name), (h,))


@pytest.mark.parametrize("name", ["gelu-tanh", "geglu-tanh"])
def test_the_tanh_form_is_torchs_over_its_whole_range(name, monkeypatch):
    """In fp32 too, where both are within some units in the last place of the same value; also piece by piece."""
    monkeypatch.setattr(nonlinearities, "CACHED_BYTES", 4 * 3 * 100)  # three rows at a time
    wide = torch.linspace(-12, 12, 1000).view(10, 100).requires_grad_()
    h = wide if name == "gelu-tanh" else torch.cat([wide, torch.ones(10, 100)], 1).detach().requires_grad_()
    found = activate(h, name) if name == "gelu-tanh" else gated(h, name)
    assert "Tanh" in str(found.grad_fn)
    found.backward(torch.ones_like(found))
    exact = wide.detach().double().requires_grad_()
    expected = F.gelu(exact, approximate="tanh")
    expected.sum().backward()
    # values of up to 12, so 1e-6 is a unit in the last place
    assert torch.allclose(found.double(), expected, atol=1e-6, rtol=1e-6)
    assert torch.allclose(h.grad[:, :100].double(), exact.grad, atol=1e-6, rtol=1e-6)


def test_the_tanh_form_has_the_right_gradient():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: activate(x, "gelu-tanh"), (x,))
    assert torch.autograd.gradcheck(lambda x: activate(x.transpose(0, 1), "gelu-tanh"), (x,))
    with torch.no_grad():
        assert torch.allclose(activate(x, "gelu-tanh"), F.gelu(x, approximate="tanh"))
