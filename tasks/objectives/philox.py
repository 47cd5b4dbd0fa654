"""Philox4x32-10, a counter-based random generator, over numpy arrays.

Random words are a function of (key, counter) alone, so each sample's choices can be computed by themselves,
for a whole batch at once. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3;
the known answers of the authors' library are in tests/tasks/test_objectives.py.
"""

from __future__ import annotations

import sys
from functools import lru_cache

import numpy as np

_M = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_W = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_COUNTERS_AT_ONCE = 1 << 14  # their words stay in the cache
_HIGH = 1 if sys.byteorder == "little" else 0  # where a word of 64 bits has its high half


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
    even, odd = _rounds(even, odd, key)
    return even[0].astype(np.uint64), odd[0].astype(np.uint64), even[1].astype(np.uint64), odd[1].astype(np.uint64)


def _rounds(even: np.ndarray, odd: np.ndarray, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """All rounds: words 0 and 2 of the counters [2, …], and words 1 and 3, as strided uint32; overwrites the given.

    The first pair is multiplied, the second is not: kept apart, since for a small batch each numpy call costs as much
    as its work. For the same reason a product's halves are not taken out of it but looked at where they are: the low
    ones are the next second pair, so there are two products, written by turns.
    """
    multiplier, keys = _constants(key, even.ndim)
    products = np.empty((2, *even.shape), dtype=np.uint64)
    halves = products[:, ::-1].view(np.uint32)
    high, low = halves[..., _HIGH::2], halves[..., 1 - _HIGH :: 2]
    first, second = (of.view(np.uint32)[..., 1 - _HIGH :: 2] for of in (even, odd))  # the other halves are 0
    for turn, round_key in enumerate(keys):
        now = turn & 1
        np.multiply(even, multiplier, out=products[now])
        np.bitwise_xor(high[now], second, out=first)
        np.bitwise_xor(first, round_key, out=first)
        second = low[now]
    return first, second


@lru_cache(maxsize=16)
def _constants(key: tuple[int, int], dimensions: int) -> tuple[np.ndarray, list[np.ndarray]]:
    shape = (2,) + (1,) * (dimensions - 1)
    rounds = np.arange(10, dtype=np.uint64)[:, None]
    keys = ((np.array(key, dtype=np.uint64) + rounds * _W) & _LOW).astype(np.uint32)
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
    low, high = index & _LOW, index >> _32
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    out = np.empty((B, blocks, 2, 2), dtype=np.uint64)
    step = max(1, _COUNTERS_AT_ONCE // max(1, blocks))
    for first in range(0, B, step):
        rows = slice(first, min(B, first + step))
        counters = np.empty((2, 2, rows.stop - first, blocks), dtype=np.uint64)
        (even, odd) = counters
        even[0], odd[0], even[1], odd[1] = block, low[rows], high[rows], epoch[rows]
        even, odd = _rounds(even, odd, key)
        out[rows, :, :, 0], out[rows, :, :, 1] = even.transpose(1, 2, 0), odd.transpose(1, 2, 0)
    return out.reshape(B, blocks * 4)


def below(words: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Uniform integers in [0, bound) from 32-bit words, by multiplication; bias below bound / 2^32."""
    return (words * _unsigned(bound) >> _32).view(np.int64)


def _unsigned(bound: np.ndarray | int) -> np.ndarray:
    """As uint64, without a copy where it can be."""
    bound = np.asarray(bound)
    return bound.view(np.uint64) if bound.dtype == np.int64 else bound.astype(np.uint64)
