"""Where a tensor's parts are when ZeRO has taken it apart: for optimizers that need more than single numbers.

ZeRO hands an optimizer flat vectors instead of tensors. At stages 1 and 2 a rank's vector is a stretch of all tensors
of a group one after another, so it may begin and end inside of one; at stage 3 it is a rank's equal share of each.
`pieces_of` says which stretch of the vector belongs to which part of which tensor. Norms of whole tensors are then sums
over the ranks' pieces, and a whole tensor is what the ranks' pieces give put together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

GATHERED_ELEMENTS = 1 << 25
"""Elements that are brought together at once, to bound the memory of it."""


class OfWholeTensors(torch.optim.Optimizer):
    """Base of optimizers that need whole tensors; `pieces` says what is in ZeRO's vectors. None: nothing is apart."""

    pieces: Pieces | None = None


@dataclass(frozen=True)
class Piece:
    """Elements `begin` … `begin + high − low` of a tensor are elements low … high of a rank's flat vector."""

    low: int
    high: int
    begin: int
    shape: tuple[int, ...]
    """Of the whole tensor."""

    @property
    def numel(self) -> int:
        """Elements of the whole tensor."""
        return torch.Size(self.shape).numel()


Pieces = dict[int, list[Piece]]
"""{id of a flat vector: its pieces}: one for each tensor of the group, in the same order everywhere; some are empty."""


def pieces_of(zero: Any, stage: int) -> Pieces:
    """The pieces of this rank's vectors; `zero` is DeepSpeed's optimizer of that stage."""
    if stage == 3:
        found = {}
        for flat, tensors, parts in zip(
            zero.fp32_partitioned_groups_flat, zero.fp16_groups, zero.fp16_partitioned_groups, strict=True
        ):
            offset, pieces = 0, []
            for tensor, part in zip(tensors, parts, strict=True):
                size = int(part.ds_numel)
                begin = min(dist.get_rank() * size, int(tensor.ds_numel))
                count = min(size, int(tensor.ds_numel) - begin)  # the last rank's is padded
                pieces.append(Piece(offset, offset + count, begin, tuple(tensor.ds_shape)))
                offset += size
            found[id(flat)] = pieces
        return found
    found = {}
    for number, flat in enumerate(zero.single_partition_of_fp32_groups):
        size = int(zero.partition_size[number])
        first = dist.get_rank(group=zero.real_dp_process_group[number]) * size
        pieces = []
        for tensor, offset in zip(
            zero.round_robin_bit16_groups[number], zero.round_robin_bit16_offsets[number], strict=True
        ):
            low, high = max(offset, first), min(offset + tensor.numel(), first + size)
            high = max(low, high)
            inside = low < high
            pieces.append(
                Piece(low - first if inside else 0, high - first if inside else 0, low - offset, tuple(tensor.shape))
            )
        found[id(flat)] = pieces
    return found


def whole(tensor: Tensor) -> list[Piece]:
    """The pieces of a tensor that nobody took apart: one."""
    return [Piece(0, tensor.numel(), 0, tuple(tensor.shape))]


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's `values`, on the device they are on."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    reduced = values.cuda() if dist.get_backend() == "nccl" else values
    dist.all_reduce(reduced)
    return reduced.to(values.device)


def gathered(pieces: list[Piece], flat: Tensor) -> list[Tensor | None]:
    """The whole tensors of a vector, where this rank has a piece of them; None elsewhere. Every rank calls it."""
    found: list[Tensor | None] = []
    batch: list[Piece] = []
    for number, piece in enumerate(pieces):
        batch.append(piece)
        if number + 1 == len(pieces) or sum(each.numel for each in batch) >= GATHERED_ELEMENTS:
            found += _gathered(batch, flat)
            batch = []
    return found


def _gathered(pieces: list[Piece], flat: Tensor) -> list[Tensor | None]:
    together = torch.zeros(sum(piece.numel for piece in pieces), dtype=flat.dtype, device=flat.device)
    offset = 0
    for piece in pieces:
        begin = offset + piece.begin
        together[begin : begin + piece.high - piece.low] = flat[piece.low : piece.high]
        offset += piece.numel
    together = sum_over_ranks(together)  # each element is one rank's, and zero on all others
    parts = together.split([piece.numel for piece in pieces])
    return [
        part.view(piece.shape) if piece.high > piece.low else None for part, piece in zip(parts, pieces, strict=True)
    ]
