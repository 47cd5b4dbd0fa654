"""The order of samples: permutations that are computed, not stored, so that a reader has no state.

A split of at most `WINDOW_SHARDS` shards is permuted as a whole. A larger one would need all of its shards at once, so
its order has two levels: the shards in a permuted order, cut into windows of `WINDOW_SHARDS`, and the rows of a window
permuted among themselves. A window is then all that must be near: in memory, or in the local copies of a remote store.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from tasks.example_files import ShardIndex

WINDOW_SHARDS = 16  # 4 GB, with shards of their largest size

_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # splitmix64's multipliers
_ROUNDS = 6
_WORD = (1 << 64) - 1
_FEW = 12  # positions up to which plain integers are faster than arrays


class Order:
    """Which row stands where in an epoch.

    Args:
        index: of the split.
        seed: of the run.
        window_shards: shards of a window.
    """

    def __init__(self, index: ShardIndex, seed: int, window_shards: int = WINDOW_SHARDS) -> None:
        self.index, self.seed, self.window_shards = index, seed, window_shards
        self.windows = -(-index.shards // window_shards)
        self._plan = lru_cache(4)(self._planned)

    def rows(self, within: np.ndarray, epoch: int) -> np.ndarray:
        """The rows at these positions of an epoch: int64, any shape."""
        if self.windows == 1:
            return permuted(within, self.index.rows, self.seed, epoch)
        shards, ends = self._plan(epoch)
        window = np.searchsorted(ends, within, side="right")
        found = np.empty_like(within)
        for each in np.unique(window).tolist():
            chosen = window == each
            first = int(ends[each - 1]) if each else 0
            place = permuted(within[chosen] - first, int(ends[each]) - first, self.seed, epoch, each)
            slot, row = np.divmod(place, self.index.rows_per_shard)
            found[chosen] = shards[each * self.window_shards + slot] * self.index.rows_per_shard + row
        return found

    def window(self, position: int, epoch: int) -> int:
        """The window of a position of an epoch."""
        return int(np.searchsorted(self._plan(epoch)[1], position, side="right")) if self.windows > 1 else 0

    def shards(self, window: int, epoch: int) -> list[int]:
        """The shards of a window."""
        first = window * self.window_shards
        return self._plan(epoch)[0][first : first + self.window_shards].tolist()

    def _planned(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(shards in the epoch's order, position after the last of each window); the short shard ends its window."""
        count, last = self.index.shards, self.index.shards - 1
        shards = np.arange(count) if self.windows == 1 else permuted(np.arange(count), count, self.seed, epoch, -1)
        at = int(np.flatnonzero(shards == last)[0])
        stop = min(count, (at // self.window_shards + 1) * self.window_shards)
        shards[at : stop - 1] = shards[at + 1 : stop]
        shards[stop - 1] = last
        sizes = np.full(count, self.index.rows_per_shard, dtype=np.int64)
        sizes[stop - 1] = self.index.rows_of(last)
        ends = np.cumsum(sizes)
        stops = np.minimum(np.arange(1, self.windows + 1) * self.window_shards, count)
        return shards, ends[stops - 1]


def permuted(positions: np.ndarray, size: int, seed: int, epoch: int, part: int | None = None) -> np.ndarray:
    """Where each position goes in a pseudo-random permutation of range(size), without storing it.

    A balanced Feistel network over the smallest even number of bits that holds `size`; what falls outside
    walks on until it is inside (cycle walking, Black and Rogaway 2002): fewer than four steps on average.

    Args:
        positions: integers in [0, size), any shape.
        size: at least 1.
        part: another permutation of the same epoch.
    """
    half = max(1, -(-(size - 1).bit_length() // 2))
    keys = _keys(seed, epoch, part)
    half_bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    result = positions.astype(np.uint64).ravel()
    outside = np.arange(result.size)
    while outside.size > _FEW:
        value = result[outside]
        left, right = value >> half_bits, value & mask
        for key in keys:
            mixed = right + np.uint64(key)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_MIX[0])
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_MIX[1])
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
        result[outside] = (left << half_bits) | right
        outside = outside[result[outside] >= size]
    for place in outside.tolist():
        result[place] = _one(int(result[place]), size, half, keys)
    return result.astype(np.int64).reshape(positions.shape)


@lru_cache(64)
def _keys(seed: int, epoch: int, part: int | None) -> tuple[int, ...]:
    """The network's round keys, 64 bits each."""
    name = f"{seed}/{epoch}" if part is None else f"{seed}/{epoch}/{part}"
    digest = hashlib.blake2b(name.encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))


def _one(value: int, size: int, half: int, keys: tuple[int, ...]) -> int:
    """`permuted` of one position, in plain integers."""
    mask = (1 << half) - 1
    while True:
        left, right = value >> half, value & mask
        for key in keys:
            mixed = (right + key) & _WORD
            mixed = ((mixed ^ (mixed >> 30)) * _MIX[0]) & _WORD
            mixed = ((mixed ^ (mixed >> 27)) * _MIX[1]) & _WORD
            left, right = right, left ^ ((mixed ^ (mixed >> 31)) & mask)
        value = (left << half) | right
        if value < size:
            return value
