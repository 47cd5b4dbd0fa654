"""Philox4x32-10, a counter-based random generator, over numpy arrays.

Random words are a function of (key, counter) alone, so each sample's choices can be computed by themselves,
for a whole batch at once. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3;
the known answers of the authors' library are in tests/tasks/test_objectives.py.
"""

from __future__ import annotations

import sys
from functools import lru_cache

import numpy as np

_M0, _M1 = np.array(0xD2511F53, dtype=np.uint64), np.array(0xCD9E8D57, dtype=np.uint64)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
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
    counters = np.empty((4, *shape), dtype=np.uint64)
    for word, given in zip(counters, counter, strict=True):
        word[...] = given
    words = _rounds(counters.reshape(4, -1), key)
    return tuple(word.reshape(shape).astype(np.uint64) for word in words)  # type: ignore[return-value]


def _rounds(counters_4N: np.ndarray, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The four words of each counter, strided uint32 [N]; the counters' memory is used for them.

    For a small batch each numpy call costs as much as its work. So a product's halves are not taken out of it but
    looked at where they are: the low ones are the next words 1 and 3. And words 0 and 2 are apart, of one dimension
    each: numpy then runs its simplest loop.
    """
    first, second, third, fourth = counters_4N
    products = np.empty((4, counters_4N.shape[1]), dtype=np.uint64)
    halves = products.view(np.uint32)
    high, low = halves[:, _HIGH::2], halves[:, 1 - _HIGH :: 2]
    first_low, second, third_low, fourth = (
        word.view(np.uint32)[1 - _HIGH :: 2] for word in (first, second, third, fourth)
    )  # their high halves are 0
    turns = [(*products[turn : turn + 2], *high[turn : turn + 2], *low[turn : turn + 2]) for turn in (0, 2)] * 5
    multiply, xor = np.multiply, np.bitwise_xor
    for (key_0, key_1), turn in zip(_round_keys(key), turns, strict=True):
        product_0, product_2, high_0, high_2, low_0, low_2 = turn
        multiply(first, _M0, product_0)
        multiply(third, _M1, product_2)
        xor(high_2, second, first_low)
        xor(first_low, key_0, first_low)
        xor(high_0, fourth, third_low)
        xor(third_low, key_1, third_low)
        second, fourth = low_2, low_0
    return first_low, second, third_low, fourth


@lru_cache(maxsize=16)
def _round_keys(key: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of ten rounds, 0-dimensional uint32: numpy need not convert them."""
    return [
        (
            np.array((key[0] + n * _W0) & 0xFFFFFFFF, dtype=np.uint32),
            np.array((key[1] + n * _W1) & 0xFFFFFFFF, np.uint32),
        )
        for n in range(10)
    ]


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
    out = np.empty((B, blocks, 4), dtype=np.uint64)
    step = max(1, _COUNTERS_AT_ONCE // max(1, blocks))
    for first in range(0, B, step):
        rows = slice(first, min(B, first + step))
        counters = np.empty((4, rows.stop - first, blocks), dtype=np.uint64)
        counters[0], counters[1], counters[2], counters[3] = block, low[rows], high[rows], epoch[rows]
        for n, word in enumerate(_rounds(counters.reshape(4, -1), key)):
            out[rows, :, n] = word.reshape(rows.stop - first, blocks)
    return out.reshape(B, blocks * 4)


def below(words: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Uniform integers in [0, bound) from 32-bit words, by multiplication; bias below bound / 2^32."""
    return (words * _unsigned(bound) >> _32).view(np.int64)


def _unsigned(bound: np.ndarray | int) -> np.ndarray:
    """As uint64, without a copy where it can be."""
    bound = np.asarray(bound)
    return bound.view(np.uint64) if bound.dtype == np.int64 else bound.astype(np.uint64)
