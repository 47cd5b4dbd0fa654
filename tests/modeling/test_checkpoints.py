"""Parts of checkpoints by themselves: what is kept, copies on the host, files and their checks."""

from collections import OrderedDict

import pytest
import torch

from modeling.checkpoints import layout, shards
from modeling.checkpoints.policy import CheckpointPolicy, kept
from modeling.checkpoints.snapshot import HostBuffers
from modeling.errors import ConfigError

LOSSES = {10: 3.0, 20: 2.0, 30: None, 40: 2.0, 50: 2.5}


@pytest.mark.parametrize(
    ("policy", "stay"),
    [
        ({}, {40, 50}),
        ({"checkpoint_keep_last": 1}, {50}),
        ({"checkpoint_keep_last": 9}, {10, 20, 30, 40, 50}),
        ({"checkpoint_keep_last": 1, "checkpoint_keep_every_steps": 20}, {20, 40, 50}),
        ({"checkpoint_keep_last": 1, "checkpoint_keep_best": True}, {20, 50}),  # the first of the best
    ],
)
def test_which_checkpoints_stay(policy, stay):
    assert kept(CheckpointPolicy(**policy), LOSSES) == stay
    assert kept(CheckpointPolicy(checkpoint_keep_best=True), {1: None, 2: None, 3: None}) == {2, 3}


def test_host_copies_do_not_follow_and_use_their_memory_again():
    buffers = HostBuffers()
    tied = torch.arange(6.0).reshape(2, 3).t()
    live = OrderedDict(a=tied, b=[tied, torch.tensor(3)], shape=tied.shape, c={"n": 1, "empty": torch.zeros(0, 2)})
    taken = buffers.copy(live)
    address = taken["a"].data_ptr()
    assert taken["a"] is taken["b"][0] and isinstance(taken, OrderedDict) and taken["shape"] == (3, 2)
    tied += 1
    assert (
        taken["a"].tolist() == [[0, 3], [1, 4], [2, 5]] and taken["b"][1] == 3 and taken["c"]["empty"].shape == (0, 2)
    )
    buffers.restart()
    again = buffers.copy(live)
    assert again["a"].data_ptr() == address and again["a"].tolist() == [[1, 4], [2, 5], [3, 6]]


def test_a_file_is_what_was_meant(tmp_path):
    state = {"tensor": torch.arange(1000), "plain": [1, "two", None], "shape": torch.Size([2, 3])}
    meant = shards.write_state(tmp_path / "folder/state.pt", state, lambda: False)
    assert meant == layout.describe(tmp_path / "folder/state.pt")
    assert layout.damage(tmp_path, "folder/state.pt", meant) is None
    found = shards.read_state(tmp_path / "folder/state.pt")
    assert found["tensor"].equal(state["tensor"]) and {**found, "tensor": 0} == {**state, "tensor": 0}
    assert "missing" in str(layout.damage(tmp_path, "folder/other.pt", meant))
    with pytest.raises(shards.Abandoned):
        shards.write_state(tmp_path / "given-up.pt", state, lambda: True)


def test_a_full_device_is_an_os_error_from_every_writer():
    from pathlib import Path

    for write in (
        lambda path: shards.write_state(path, {"t": torch.zeros(100_000)}, lambda: False),
        lambda path: shards.write_bytes(path, bytes(100_000)),
    ):
        with pytest.raises(OSError, match="No space left"):
            write(Path("/dev/full"))


def test_no_code_is_run_from_a_file(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("it ran",)

    torch.save({"evil": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match="print"):
        shards.read_state(tmp_path / "evil.pt")


def test_state_that_cannot_be_divided_is_refused_by_name():
    from modeling.checkpoints.universal import _check_divisible

    _check_divisible({"step": torch.tensor(3.0), "exp_avg": torch.zeros(12)}, 12, "step-00000003", {})
    with pytest.raises(ConfigError, match="step-00000003: Adafactor keeps 'row' with 3 elements for 12 weights"):
        _check_divisible({"row": torch.zeros(3)}, 12, "step-00000003", {"optimizer": "Adafactor"})
