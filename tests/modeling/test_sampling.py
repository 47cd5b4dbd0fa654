"""Filters of a distribution, ties and borders included, and draws from it."""

import itertools
from collections import Counter

import torch

from modeling.sampling import draw, keep_top_k, keep_top_p, shaped, uniform


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def test_top_k_keeps_exactly_k():
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert kept(keep_top_k(logits, 1)) == [[1], [0]], "of equal ones the lowest id"
    assert kept(keep_top_k(logits, 2)) == [[1, 3], [0, 1]]
    assert kept(keep_top_k(logits, 3)) == [[1, 2, 3], [0, 1, 2]]
    for k in (0, 5, 6):
        assert torch.equal(keep_top_k(logits, k), logits)
    excluded = torch.tensor([[float("-inf"), 1.0, float("-inf"), 2.0]])
    assert kept(keep_top_k(excluded, 3)) == [[1, 3]], "what is excluded stays so"


def test_top_p_keeps_the_fewest_tokens_that_reach_p():
    logits = torch.tensor([[0.125, 0.5, 0.25, 0.125], [0.25, 0.25, 0.25, 0.25]]).log()
    expected = {
        1e-9: [[1], [0]],  # at least one
        0.25: [[1], [0]],
        0.5: [[1], [0, 1]],  # reached exactly
        0.51: [[1, 2], [0, 1, 2]],
        0.75: [[1, 2], [0, 1, 2]],
        0.8: [[0, 1, 2], [0, 1, 2, 3]],  # of equal ones the lowest id
        0.9: [[0, 1, 2, 3], [0, 1, 2, 3]],
        1.0: [[0, 1, 2, 3], [0, 1, 2, 3]],
    }
    for p, ids in expected.items():
        assert kept(keep_top_p(logits, p)) == ids, p
    assert torch.equal(keep_top_p(logits, 0.8)[0, :3], logits[0, :3]), "what is kept is not changed"


def test_top_p_counts_what_top_k_leaves():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert kept(shaped(logits, 1.0, 0, 0.65)) == [[0, 1]]
    assert kept(shaped(logits, 1.0, 2, 0.55)) == [[0]]  # 0.4 of 0.7 is 0.57
    assert kept(shaped(logits, 0.5, 0, 0.5)) == [[0]]  # 0.16 of 0.3 is 0.53
    assert shaped(logits, 1e-300).softmax(-1).tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_filters_agree_with_transformers():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(0)) * 3
    for temperature, k, p in ((0.7, 50, 0.9), (1.0, 300, 0.5), (2.0, 5, 0.99)):
        theirs = logits
        for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(k), TopPLogitsWarper(p)):
            theirs = warper(None, theirs)
        assert kept(shaped(logits, temperature, k, p)) == kept(theirs)


def test_draws_follow_the_distribution():
    """A chi-square test: 5 degrees of freedom stay below 20.5 in 999 of 1,000 seeds, and this seed is fixed."""
    probability = torch.tensor([0.0, 0.5, 0.2, 0.15, 0.1, 0.04, 0.01])
    n = 20_000
    numbers = torch.tensor([uniform(5, row, 0, 0) for row in range(n)], dtype=torch.float64)
    ids = draw(probability.log().expand(n, -1), numbers)
    counts = Counter(ids.tolist())
    assert counts[0] == 0
    wanted = probability * n
    assert sum((counts[i] - float(wanted[i])) ** 2 / float(wanted[i]) for i in range(1, 7)) < 20.5
    least, most = torch.tensor([0.0], dtype=torch.float64), torch.tensor([1 - 2**-52], dtype=torch.float64)
    ends = torch.tensor([[float("-inf"), 1.0, 2.0, float("-inf")]])
    assert (draw(ends, least).item(), draw(ends, most).item()) == (1, 2)


def test_uniform_numbers_differ_in_every_coordinate():
    places = list(itertools.product(range(2), range(3), range(3), range(500)))
    numbers = torch.tensor([uniform(*place) for place in places], dtype=torch.float64)
    assert len(set(numbers.tolist())) == len(places) and numbers.min() >= 0 and numbers.max() < 1
    # the mean of 9,000 uniform numbers has a deviation of 0.003
    assert abs(numbers.mean() - 0.5) < 0.012
