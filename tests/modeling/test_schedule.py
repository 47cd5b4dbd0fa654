"""Learning rates, batches and budgets as functions of the step."""

from __future__ import annotations

import math

import pytest

from modeling.errors import ConfigError
from modeling.schedule import (
    LoopConfig,
    batch_size_at,
    batch_warmup_steps,
    first_sample,
    learning_rate,
    resolved,
    steps_for,
    warmup,
    with_rows,
)


def test_warmup_reaches_the_peak_and_decay_ends_above_zero():
    loop = LoopConfig(steps=10, warmup_steps=4, peak_lr=1.0)
    assert [learning_rate(loop, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert 0 < learning_rate(loop, 9) < learning_rate(loop, 8)


def test_cosine_and_constant():
    loop = LoopConfig(steps=10, peak_lr=2.0, schedule="cosine", final_lr_fraction=0.1)
    assert learning_rate(loop, 0) == 2.0
    assert 0.2 < learning_rate(loop, 9) < 0.3
    assert learning_rate(LoopConfig(steps=10, schedule="constant", peak_lr=3.0), 9) == 3.0


def test_inverse_square_root_is_t5_s():
    loop = LoopConfig(steps=500, warmup_steps=100, warmup_shape="constant", schedule="inverse-sqrt", peak_lr=0.1)
    for step in (0, 5, 99, 100, 399):
        assert learning_rate(loop, step) == pytest.approx(1 / math.sqrt(max(step + 1, 100)))
    ramped = LoopConfig(steps=500, warmup_steps=100, schedule="inverse-sqrt", peak_lr=0.1, final_lr_fraction=0.5)
    assert learning_rate(ramped, 49) == 0.05 and learning_rate(ramped, 499) == 0.05


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_wsd_warms_up_stays_and_decays_in_the_last_share(shape, half):
    loop = LoopConfig(steps=100, warmup_steps=10, schedule="wsd", decay_share=0.2, decay_shape=shape, peak_lr=1.0)
    assert learning_rate(loop, 4) == 0.5
    assert {learning_rate(loop, step) for step in range(9, 81)} == {1.0}
    assert learning_rate(loop, 90) == pytest.approx(half)
    assert 0 < learning_rate(loop, 99) < 0.1


def test_the_batch_grows_linearly_with_the_samples_and_then_stays():
    loop = LoopConfig(steps=100, batch_size=32, batch_warmup_from=4, batch_warmup_sequences=200)
    sizes = [batch_size_at(loop, step) for step in range(60)]
    firsts = [first_sample(loop, step) for step in range(61)]
    assert [b - a for a, b in zip(firsts, firsts[1:], strict=False)] == sizes and firsts[0] == 0
    ramp = batch_warmup_steps(loop)
    assert sizes[0] == 4 and sizes == sorted(sizes) and sizes[ramp - 1] < 32 and set(sizes[ramp:]) == {32}
    for step in range(ramp):
        assert sizes[step] == 4 + (32 - 4) * firsts[step] // 200
    for rows in (1, 4, 5, 150, firsts[ramp], firsts[ramp] + 1, 900):
        steps = steps_for(loop, rows)
        assert first_sample(loop, steps - 1) < rows <= first_sample(loop, steps)
    plain = LoopConfig(steps=3, batch_size=8)
    assert [first_sample(plain, step) for step in range(4)] == [0, 8, 16, 24]


def test_budgets_and_warmups_become_steps():
    tokens = LoopConfig(tokens=1_000_000, batch_size=10, warmup_tokens=50_000)
    found = resolved(tokens, row_tokens=100)
    assert (found.steps, found.tokens, warmup(found)) == (1000, 0, 50)
    flops = resolved(LoopConfig(flops=6e9, batch_size=10), row_tokens=100, flops_per_token=6e4)
    assert flops.steps == 100
    growing = LoopConfig(tokens=100_000, batch_size=10, batch_warmup_from=1, batch_warmup_tokens=20_000)
    found = resolved(growing, row_tokens=100)
    assert found.batch_warmup_sequences == 200 and first_sample(found, found.steps) >= 1000
    assert found.steps > 100
    minutes = LoopConfig(wall_minutes=5, batch_size=10)
    assert resolved(minutes, row_tokens=100) == minutes and with_rows(minutes, 95).steps == 10
    assert LoopConfig().steps == 1000 and resolved(LoopConfig(), row_tokens=7) == LoopConfig()
    with pytest.raises(ConfigError, match="no formula"):
        resolved(LoopConfig(flops=1e9), row_tokens=100)
    with pytest.raises(ConfigError, match="warmup_steps 100 is more than steps 10"):
        resolved(LoopConfig(flops=10_000, warmup_tokens=100_000, batch_size=10), row_tokens=100, flops_per_token=1)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="warmup_steps 20 is more than steps 10"):
        LoopConfig(steps=10, warmup_steps=20)
    with pytest.raises(ValueError, match="betas"):
        LoopConfig(optimizer={"betas": (0.9, 1.0)})
    with pytest.raises(ValueError, match="steps and tokens are both given"):
        LoopConfig(steps=10, tokens=1000)
    with pytest.raises(ValueError, match="no budget"):
        LoopConfig(steps=0)
    with pytest.raises(ValueError, match="found batch_warmup_from 0"):
        LoopConfig(batch_warmup_tokens=1000)
    with pytest.raises(ValueError, match="at most batch_size 32"):
        LoopConfig(batch_warmup_from=64, batch_warmup_sequences=1000)
