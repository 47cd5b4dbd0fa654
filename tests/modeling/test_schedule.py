import pytest

from modeling.schedule import LoopConfig, learning_rate


def test_linear_warms_up_to_the_peak_and_decays_to_just_above_zero():
    loop = LoopConfig(steps=10, warmup_steps=4, peak_lr=1.0)
    assert [learning_rate(loop, step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(loop, 4) == 1.0
    assert learning_rate(loop, 9) == pytest.approx(1 / 6)


def test_cosine_and_constant_and_the_final_fraction():
    loop = LoopConfig(steps=10, peak_lr=2.0, schedule="cosine", final_lr_fraction=0.1)
    assert learning_rate(loop, 0) == 2.0
    assert learning_rate(loop, 5) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert learning_rate(LoopConfig(steps=10, schedule="constant", peak_lr=3.0), 9) == 3.0


def test_impossible_loops_are_refused_by_name():
    with pytest.raises(ValueError, match="warmup_steps 20 is more than steps 10"):
        LoopConfig(steps=10, warmup_steps=20)
    with pytest.raises(ValueError, match="betas"):
        LoopConfig(betas=(0.9, 1.0))
