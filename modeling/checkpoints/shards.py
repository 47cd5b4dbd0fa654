"""Files of tensors: DeepSpeed's shards through torch, weights in safetensors; what was written, and safe reading."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from modeling.checkpoints.layout import describe


class Abandoned(Exception):
    """The checkpoint is given up; its writers stop where they are."""


class _Checked:
    """A file that adds up what is written to it, and stops when it is told to."""

    def __init__(self, file: BinaryIO, stopped: Callable[[], bool]) -> None:
        self._file, self._stopped = file, stopped
        self.size = self.crc = 0
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            if self._stopped():
                raise Abandoned
            view = memoryview(data).cast("B")
            done = 0
            while done < len(view):
                done += self._file.write(view[done:])
        except BaseException as error:
            self.error = self.error or error  # torch turns it into an error of its own
            raise
        self.size, self.crc = self.size + len(view), zlib.crc32(view, self.crc)
        return len(view)

    def flush(self) -> None:
        pass


def write_state(path: Path, state: Any, stopped: Callable[[], bool]) -> dict[str, int]:
    """Write nested state as torch does; {size, crc32} of the bytes that were meant, on the disk when this returns.

    Raises:
        OSError: the disk is full, or the like.
        Abandoned: `stopped` said so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=0) as file:
        checked = _Checked(file, stopped)  # type: ignore[arg-type]
        try:
            torch.save(state, checked)  # type: ignore[arg-type]
        except BaseException:
            if checked.error is not None:
                raise checked.error from None
            raise
        os.fsync(file.fileno())
    return {"size": checked.size, "crc32": checked.crc}


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Write tensors as safetensors, one that has several names under each; {size, crc32}. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(apart(weights), str(path))
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # it has no other way to say so
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    return settle(path)


def apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those that share memory with an earlier one copied: safetensors has no way to say it."""
    seen: set[int] = set()
    found = {}
    for name, tensor in weights.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def write_bytes(path: Path, data: bytes) -> dict[str, int]:
    """Write a small file; {size, crc32}. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return settle(path)


def settle(path: Path) -> dict[str, int]:
    """{size, crc32} of a file that another hand wrote, once it is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return describe(path)


def read_state(path: Path, *, mapped: bool = False) -> Any:
    """What `write_state` wrote, without running code from the file: tensors, plain values and a few known classes.

    Args:
        mapped: leave the tensors in the file and read what is touched; they must not be written to.

    Raises:
        pickle.UnpicklingError: the file names anything else.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([fragment_address, ZeroStageEnum, LossScaler, DynamicLossScaler]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
