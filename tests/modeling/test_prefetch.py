"""Batches a step ahead: the same ones, made before they are asked for, with errors where they belong."""

import threading

import numpy as np
import pytest

from modeling.prefetch import Prefetch


def test_batches_are_those_of_their_steps_in_any_order():
    with Prefetch(lambda step: {"x": np.array([step])}, 9) as batches:
        for step in (0, 1, 2, 7, 3, 4, 4, 8, 0):  # a roll-back or a resume does not follow
            assert batches(step)["x"].tolist() == [step]


def test_the_next_one_is_made_before_it_is_asked_for_and_none_after_the_last():
    made, second = [], threading.Event()

    def make(step):
        made.append((step, threading.current_thread() is threading.main_thread()))
        if step == 1:
            second.set()
        return {}

    with Prefetch(make, 2) as batches:
        batches(0)
        assert second.wait(30)
        batches(1)
    assert made == [(0, False), (1, False)]


def test_an_error_is_raised_at_its_own_step():
    def make(step):
        if step == 1:
            raise ValueError("row 7")
        return {}

    with Prefetch(make, 3) as batches:
        batches(0)
        with pytest.raises(ValueError, match="row 7"):
            batches(1)
