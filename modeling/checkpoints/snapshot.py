"""Copies of live training state in host memory, so that training can go on while they are written."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor


class HostBuffers:
    """Takes copies of nested state; its buffers are used again, in order, by the next snapshot.

    Fresh memory costs a page fault for every 4 KiB, which takes longer than the copy itself. With a GPU the
    buffers are pinned, so that the copies run at the bus's speed. Only one snapshot is alive at a time.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._used = 0
        self._pinned = torch.cuda.is_available()

    def restart(self) -> None:
        """The last snapshot is not needed any more: use its memory again."""
        del self._buffers[self._used :]
        self._used = 0

    def copy(self, value: Any) -> Any:
        """`value` with all its tensors on the host, at any depth; tensors that are one stay one.

        Call `wait` before the copies are read.
        """
        return self._copy(value, {})

    def wait(self) -> None:
        if self._pinned:
            torch.cuda.synchronize()

    def _copy(self, value: Any, seen: dict[Any, Tensor]) -> Any:
        if isinstance(value, Tensor):
            name = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else id(value)
            if name not in seen:
                seen[name] = self._taken(value)
            return seen[name]
        if isinstance(value, dict):
            kind = OrderedDict if isinstance(value, OrderedDict) else dict
            return kind((key, self._copy(inner, seen)) for key, inner in value.items())
        if isinstance(value, torch.Size):
            return value
        if isinstance(value, (list, tuple)):
            return type(value)([self._copy(inner, seen) for inner in value])
        return copy.deepcopy(value)

    def _taken(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        size = tensor.numel() * tensor.element_size()
        if self._used == len(self._buffers) or self._buffers[self._used].numel() != size:
            del self._buffers[self._used :]
            self._buffers.append(torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned and size > 0))
        buffer = self._buffers[self._used].view(tensor.dtype).view(tensor.shape)
        self._used += 1
        return buffer.copy_(tensor, non_blocking=True)
