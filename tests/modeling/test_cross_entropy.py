"""The fused cross-entropy is the plain formula: values, gradients, dtypes, and inputs that want no gradient."""

import pytest
import torch
import torch.nn.functional as F

from modeling import cross_entropy
from modeling.cross_entropy import linear_cross_entropy

N, V, E = 11, 7, 5


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch):
    """Three chunks, the last one short, in two stretches of kept gradients."""
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 4)
    monkeypatch.setattr(cross_entropy, "KEPT_BYTES", 8 * V * 8)


def inputs(dtype=torch.float32, rows=N, deviation=1.0):
    torch.manual_seed(0)
    states = (deviation * torch.randn(rows, E, dtype=dtype)).requires_grad_()
    weight, bias = torch.randn(V, E, dtype=dtype).requires_grad_(), torch.randn(V, dtype=dtype).requires_grad_()
    return states, weight, bias, torch.randint(0, V, (rows,))


def plain(states, weight, bias, labels):
    return F.cross_entropy(F.linear(states, weight, bias).float(), labels, reduction="sum")


def test_gradients_in_float64():
    states, weight, bias, labels = inputs(torch.float64)
    found = linear_cross_entropy(states, weight, bias, labels)
    expected = F.cross_entropy(F.linear(states, weight, bias), labels, reduction="sum")
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected)
    assert torch.autograd.gradcheck(lambda *x: linear_cross_entropy(*x, labels), (states, weight, bias))
    assert torch.autograd.gradcheck(lambda *x: linear_cross_entropy(*x, None, labels), (states, weight))


@pytest.mark.parametrize("deviation", [1.0, 50.0])
def test_equals_the_plain_formula_in_fp32(deviation):
    states, weight, bias, labels = inputs(deviation=deviation)
    found, expected = linear_cross_entropy(states, weight, bias, labels), plain(states, weight, bias, labels)
    # sums of eleven terms in fp32: rounding of the last digits
    assert torch.allclose(found, expected, rtol=1e-6)
    got = torch.autograd.grad(3 * found, (states, weight, bias))
    want = torch.autograd.grad(3 * expected, (states, weight, bias))
    for ours, theirs in zip(got, want, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_under_autocast_it_is_as_near_to_fp32_as_the_plain_formula():
    torch.manual_seed(1)
    states, weight = torch.randn(200, 64, requires_grad=True), (torch.randn(300, 64) / 8).requires_grad_()
    bias, labels = torch.zeros(300, requires_grad=True), torch.randint(0, 300, (200,))
    tensors = (states, weight, bias)
    exact = plain(*tensors, labels)
    want = torch.autograd.grad(exact, tensors)
    with torch.autocast("cpu", torch.bfloat16):
        found, half = linear_cross_entropy(*tensors, labels), plain(*tensors, labels)
    assert found.dtype == torch.float32
    assert abs(found - exact) <= 1.5 * abs(half - exact) + 1e-4 * exact  # both are off by bf16's rounding only
    got, plains = torch.autograd.grad(found, tensors), torch.autograd.grad(half, tensors)
    for ours, theirs, exactly in zip(got, plains, want, strict=True):
        assert ours.dtype == torch.float32
        # 50 chunks of 4 rows, each product rounded to bf16: still no further off than twice one product
        assert (ours - exactly).norm() <= 2 * (theirs - exactly).norm()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_only_what_wants_a_gradient_gets_one(wanted):
    tensors = inputs()
    labels = tensors[-1]
    for place, tensor in enumerate(tensors[:3]):
        tensor.requires_grad_(place in wanted)
    linear_cross_entropy(*tensors).backward()
    got = [tensor.grad for tensor in tensors[:3]]
    fresh = [tensor.detach().clone().requires_grad_() for tensor in tensors[:3]]
    plain(*fresh, labels).backward()
    for place in range(3):
        if place in wanted:
            assert torch.allclose(got[place], fresh[place].grad, atol=1e-5)
        else:
            assert got[place] is None


@pytest.mark.parametrize("half", [False, True])
def test_without_gradients_it_keeps_none(half):
    states, weight, bias, labels = inputs()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = linear_cross_entropy(states, weight, bias, labels)
        expected = plain(states, weight, bias, labels)
    assert not found.requires_grad
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=1e-6)


def test_no_labels_no_loss():
    states, weight, bias, labels = inputs(rows=0)
    loss = linear_cross_entropy(states, weight, bias, labels)
    loss.backward()
    assert loss == 0
    assert torch.all(weight.grad == 0)
    assert torch.all(bias.grad == 0)


def test_a_weight_that_is_also_the_embedding_gets_both_gradients():
    _, weight, bias, labels = inputs()
    ids = torch.randint(0, V, (N,))
    linear_cross_entropy(F.embedding(ids, weight), weight, bias, labels).backward()
    found, weight.grad = weight.grad.clone(), None
    plain(F.embedding(ids, weight), weight, bias, labels).backward()
    assert torch.allclose(found, weight.grad, atol=1e-5)


def test_a_kept_graph_gives_the_same_gradients_again():
    states, weight, bias, labels = inputs()
    loss = linear_cross_entropy(states, weight, bias, labels)
    first = torch.autograd.grad(loss, (states, weight, bias), torch.tensor(2.0), retain_graph=True)
    second = torch.autograd.grad(loss, (states, weight, bias))
    for double, single in zip(first, second, strict=True):
        assert torch.equal(double, 2 * single)


def test_a_row_that_is_certain_has_no_loss_and_no_nan():
    states = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = linear_cross_entropy(states, weight, None, torch.tensor([0, 0]))
    loss.backward()
    assert loss == 2000
    assert torch.equal(states.grad, torch.tensor([[0.0], [-2.0]]))


def test_padded_rows_of_the_weight_have_no_probability_and_no_gradient():
    states, weight, _, labels = inputs()
    kept = V - 3
    labels = labels % kept
    loss = linear_cross_entropy(states, weight, None, labels, kept)
    got = torch.autograd.grad(loss, (states, weight))
    expected = F.cross_entropy(states @ weight[:kept].T, labels, reduction="sum")
    want = torch.autograd.grad(expected, (states, weight))
    assert torch.allclose(loss, expected, rtol=1e-6)
    assert torch.all(got[1][kept:] == 0)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(linear_cross_entropy(states, weight, None, labels, kept), expected, rtol=1e-6)


def test_losses_beyond_what_a_probability_can_say_stay_exact_beside_ordinary_ones():
    states = torch.tensor([[0.0], [50.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    labels = torch.tensor([0, 1, 0])
    loss = linear_cross_entropy(states, weight, None, labels)
    expected = F.cross_entropy(states @ weight.T, labels, reduction="sum")
    assert expected > 100
    assert torch.allclose(loss, expected, rtol=1e-6)
