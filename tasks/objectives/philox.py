"""Philox4x32-10, a counter-based random generator, over numpy arrays.

Random words are a function of (key, counter) alone, so each sample's choices can be computed by themselves,
for a whole batch at once. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3;
the known answers of the authors' library are in tests/tasks/test_objectives.py.
"""

from __future__ import annotations

import numpy as np

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)


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
    c0, c1, c2, c3 = (np.array(c, dtype=np.uint64, order="C") for c in np.broadcast_arrays(*counter))
    p0, p1 = np.empty_like(c0), np.empty_like(c0)
    k0, k1 = key
    for _ in range(10):  # in place: small batches live in the cache, and allocation would cost as much as the work
        np.multiply(c0, _M0, out=p0)
        np.multiply(c2, _M1, out=p1)
        np.right_shift(p1, _32, out=c0)
        c0 ^= c1
        c0 ^= np.uint64(k0)
        np.right_shift(p0, _32, out=c2)
        c2 ^= c3
        c2 ^= np.uint64(k1)
        np.bitwise_and(p1, _LOW, out=c1)
        np.bitwise_and(p0, _LOW, out=c3)
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def sample_words(seed: int, epochs_B: np.ndarray, indices_B: np.ndarray, count: int, stream: int = 0) -> np.ndarray:
    """`count` random 32-bit words for each sample: uint64 [B, count rounded up to a multiple of 4].

    A sample's words depend on (seed, its epoch, its index, stream) and on nothing else; the first words do not
    depend on `count`.

    Args:
        seed: any integer below 2^64.
        epochs_B, indices_B: epoch below 2^32 and index below 2^64 of each sample.
        stream: below 2^12; separate streams are independent.
    """
    blocks = -(-count // 4)
    index = indices_B.astype(np.uint64)
    counter = (
        (np.arange(blocks, dtype=np.uint64) + np.uint64(stream << 20))[None, :],
        (index & _LOW)[:, None],
        (index >> _32)[:, None],
        epochs_B.astype(np.uint64)[:, None],
    )
    words = philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return np.stack(words, axis=2).reshape(len(index), blocks * 4)


def below(words: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Uniform integers in [0, bound) from 32-bit words, by multiplication; bias below bound / 2^32."""
    return ((words * np.asarray(bound, dtype=np.uint64)) >> _32).astype(np.int64)
