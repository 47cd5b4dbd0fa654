"""Philox4x32-10, a counter-based random generator, over numpy arrays.

Random words are a function of (key, counter) alone, so each sample's choices can be computed by themselves,
for a whole batch at once. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3;
the known answers of the authors' library are in tests/tasks/test_objectives.py.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_M = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_W = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_COUNTERS_AT_ONCE = 1 << 14  # their words stay in the cache


def philox4x32(
    counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Four 32-bit random words per counter.

    Args:
        counter: four arrays that broadcast together, of 32-bit values in uint64.
        key: two 32-bit values.

    Returns:
        Four uint64 arrays of 32-bit values, of the counters' common shape.
    """
    shape = np.broadcast_shapes(*(np.shape(c) for c in counter))
    even, odd = np.empty((2, *shape), dtype=np.uint64), np.empty((2, *shape), dtype=np.uint64)
    even[0], odd[0], even[1], odd[1] = counter
    _rounds(even, odd, key)
    return even[0], odd[0], even[1], odd[1]


def _rounds(even: np.ndarray, odd: np.ndarray, key: tuple[int, int]) -> None:
    """All rounds, in place: words 0 and 2 of the counters [2, …], and words 1 and 3.

    The first pair is multiplied, the second is not: kept apart, since for a small batch each numpy call costs as much
    as its work. In place, since allocation would cost as much, too.
    """
    product = np.empty_like(even)
    swapped = product[::-1]
    multiplier, keys = _constants(key, even.ndim)
    for round_key in keys:
        np.multiply(even, multiplier, out=product)
        np.right_shift(swapped, _32, out=even)
        np.bitwise_xor(even, odd, out=even)
        np.bitwise_xor(even, round_key, out=even)
        np.bitwise_and(swapped, _LOW, out=odd)


@lru_cache(maxsize=16)
def _constants(key: tuple[int, int], dimensions: int) -> tuple[np.ndarray, list[np.ndarray]]:
    shape = (2,) + (1,) * (dimensions - 1)
    rounds = np.arange(10, dtype=np.uint64)[:, None]
    keys = (np.array(key, dtype=np.uint64) + rounds * _W) & _LOW
    return _M.reshape(shape), [each.reshape(shape) for each in keys]


def sample_words(seed: int, epochs_B: np.ndarray, indices_B: np.ndarray, count: int, stream: int = 0) -> np.ndarray:
    """`count` random 32-bit words for each sample: uint64 [B, count rounded up to a multiple of 4].

    A sample's words depend on (seed, its epoch, its index, stream) and on nothing else; the first words do not
    depend on `count`.

    Args:
        seed: any integer below 2^64.
        epochs_B, indices_B: epoch below 2^32 and index below 2^64 of each sample.
        stream: below 2^12; separate streams are independent.
    """
    B, blocks = len(indices_B), -(-count // 4)
    block = np.arange(stream << 20, (stream << 20) + blocks, dtype=np.uint64)
    index, epoch = indices_B.astype(np.uint64)[:, None], epochs_B.astype(np.uint64)[:, None]
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    out = np.empty((B, blocks, 4), dtype=np.uint64)
    step = max(1, _COUNTERS_AT_ONCE // max(1, blocks))
    for first in range(0, B, step):
        rows = slice(first, first + step)
        even = np.empty((2, len(index[rows]), blocks), dtype=np.uint64)
        odd = np.empty_like(even)
        even[0], odd[0], even[1], odd[1] = block, index[rows] & _LOW, index[rows] >> _32, epoch[rows]
        _rounds(even, odd, key)
        out[rows, :, 0::2] = even.transpose(1, 2, 0)
        out[rows, :, 1::2] = odd.transpose(1, 2, 0)
    return out.reshape(B, blocks * 4)


def below(words: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Uniform integers in [0, bound) from 32-bit words, by multiplication; bias below bound / 2^32."""
    return ((words * np.asarray(bound, dtype=np.uint64)) >> _32).astype(np.int64)
