"""MinHash signatures in one pass, and how many bands and rows find pairs of a given similarity.

A signature of K values estimates the Jaccard similarity of two sets of shingles: each value agrees with probability J
(Broder 1997). K independent permutations cost K hashes of every shingle. Here it is Fast Similarity Sketching
(Dahlgaard, Knudsen & Thorup 2017): in round r every shingle is hashed once, to a bin and a value; a bin keeps its
smallest (r, value); after the round in which a document's last bin was filled, it is done. Rounds K … 2K - 1 put every
shingle into bin r - K, so that all bins fill. A document of n shingles costs about max(n, K ln K) hashes. The estimate
has the expectation of K permutations, a variance no larger, and, unlike one-permutation hashing with densification
(Shrivastava 2017), also for short documents; and a set's signature is the minimum of its parts' signatures.

Values are cut to 16 bits (Li & König 2010): two that differ agree with probability 2^-16, far below the estimate's own
error.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tasks.cleaning.words import Hashes, Ints, Words, mixed

Signatures = np.ndarray[Any, np.dtype[np.uint16]]

_DOCUMENTS, _SHINGLES = 4096, 1 << 19  # sketched at a time: what of it is written at random stays in the cache
_THROWS = 1 << 14  # hashes per step: few enough for the cache, and so many that the steps' overhead does not count
_LOW = np.uint64(0xFFFFFFFF)
_BITS = np.uint64(32)


def signatures(shingles: Words, values: int) -> Signatures:
    """uint16 [N, values] of N documents' shingles; all ones where a document has none.

    Args:
        shingles: hashes of each document's shingles; how often one occurs does not matter.
        values: K, at most 2^15.
    """
    out = np.empty((len(shingles.offsets) - 1, values), dtype=np.uint16)
    for first, last in _batches(shingles.offsets):
        begin, end = shingles.offsets[first], shingles.offsets[last]
        out[first:last] = _sketch(shingles.hashes[begin:end], shingles.offsets[first : last + 1] - begin, values)
    return out


def _batches(offsets: Ints) -> Iterator[tuple[int, int]]:
    first, count = 0, len(offsets) - 1
    while first < count:
        last = int(np.searchsorted(offsets, offsets[first] + _SHINGLES, side="right")) - 1
        last = min(max(last, first + 1), first + _DOCUMENTS, count)
        yield first, last
        first = last


@cache
def _multipliers(rounds: int) -> Hashes:
    return mixed(np.arange(1, rounds + 1, dtype=np.uint64)) | np.uint64(1)


def _sketch(hashes: Hashes, offsets: Ints, values: int) -> Signatures:
    """The sketch of some thousand documents: every hash in round 0, then those of documents with empty bins."""
    counts = np.diff(offsets)
    bins = np.full((len(counts), values), ~np.uint64(0))
    document = np.repeat(np.arange(len(counts)), counts)
    round_ = 0
    while round_ < 2 * values and len(document):
        # bins are drawn up to round K, and given from there on
        rounds = min(max(1, _THROWS // len(document)), (values if round_ < values else 2 * values) - round_)
        each = max(1, _THROWS // rounds)
        for begin in range(0, len(document), each):
            _throw(bins, document[begin : begin + each], hashes[begin : begin + each], round_, rounds)
        round_ += rounds
        full = np.all(bins < (np.uint64(round_) << _BITS), axis=1)
        more = ~full[document]
        document, hashes = document[more], hashes[more]
    return bins.astype(np.uint16)


def _throw(bins: Hashes, document: Ints, hashes: Hashes, first: int, rounds: int) -> None:
    """Throw each hash into its document's bins, once in each of some rounds."""
    values = bins.shape[1]
    number = np.arange(first, first + rounds, dtype=np.uint64)[:, None]
    thrown = hashes[None, :] * _multipliers(2 * values)[first : first + rounds, None]
    thrown ^= thrown >> _BITS
    thrown *= np.uint64(0xBF58476D1CE4E5B9)
    if first < values:
        place = thrown >> _BITS
        place *= np.uint64(values)
        place >>= _BITS
    else:
        place = np.broadcast_to(number - np.uint64(values), thrown.shape)
    at = place.astype(np.int64)
    at += document * values
    thrown &= _LOW
    thrown |= number << _BITS
    np.minimum.at(bins.reshape(-1), at.reshape(-1), thrown.reshape(-1))


def similarity(left: Signatures, right: Signatures) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Estimated Jaccard similarity of rows: [P, K], [P, K] -> [P]."""
    return np.count_nonzero(left == right, axis=1) / left.shape[1]


# ---------------------------------------------------------------- bands


class Banding(NamedTuple):
    """A pair is compared if all `rows` values of one of `bands` agree."""

    bands: int
    rows: int

    def found(self, jaccard: float) -> float:
        """Probability that a pair of this similarity is compared (Leskovec et al., Mining of Massive Datasets, 3.4)."""
        return float(1 - (1 - jaccard**self.rows) ** self.bands)


@cache
def choose_banding(values: int, threshold: float, miss_weight: float) -> Banding:
    """The bands and rows, of at most `values`, with the smallest weighted area of error.

    Missed above the threshold: the integral of (1 - s^r)^b over s from the threshold to 1, times `miss_weight`;
    compared in vain below: that of 1 - (1 - s^r)^b from 0 to the threshold, times 1 - `miss_weight`.
    """
    points = 1000
    below = (np.arange(points) + 0.5) / points * threshold
    above = threshold + (np.arange(points) + 0.5) / points * (1 - threshold)
    best, least = Banding(1, 1), float("inf")
    for rows in range(1, values + 1):
        vain, missed = 1 - below**rows, 1 - above**rows
        for bands in range(1, values // rows + 1):
            error = miss_weight * np.mean(missed**bands) * (1 - threshold)
            error += (1 - miss_weight) * np.mean(1 - vain**bands) * threshold
            if error < least - 1e-12:
                best, least = Banding(bands, rows), float(error)
    return best


def buckets(signed: Signatures, banding: Banding) -> Hashes:
    """uint64 [N, bands]: where each band of a signature falls; equal bands of equal number fall together."""
    used = signed[:, : banding.bands * banding.rows].reshape(len(signed), banding.bands, banding.rows)
    out = np.broadcast_to(np.arange(banding.bands, dtype=np.uint64), (len(signed), banding.bands)).copy()
    for row in range(banding.rows):
        out *= np.uint64(0x9E3779B97F4A7C15)
        out += used[:, :, row]
        out ^= out >> np.uint64(29)
    return mixed(out)
