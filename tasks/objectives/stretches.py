"""Stretches: the runs of ordinary tokens between a row's special ones, and random subsets within groups.

What the objectives with inputs and targets share. A flat array holds what belongs to all rows, row after row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tasks.objectives.base import Vocabulary
from tasks.objectives.philox import below
from tasks.objectives.units import number_in_row


def row_lengths(tokens_BL: np.ndarray, pad: int) -> np.ndarray:
    """Tokens of each row without its padding: int64 [B]."""
    if (tokens_BL[:, -1] != pad).all():  # padding stands at a row's end only
        return np.full(len(tokens_BL), tokens_BL.shape[1])
    return np.count_nonzero(tokens_BL != pad, axis=1)


def is_ordinary(tokens_BL: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """bool [B, L]: not a special token."""
    ordinary = vocabulary.ordinary
    if len(ordinary):
        # Special tokens stand before and behind the others in most vocabularies: comparing is faster than looking up.
        first, last = int(ordinary[0]), int(ordinary[-1])  # of Python's, so that numpy computes in the tokens' type
        if last - first + 1 == len(ordinary):
            if tokens_BL.dtype.kind == "u" and last <= np.iinfo(tokens_BL.dtype).max:
                return tokens_BL - first <= last - first  # what is below `first` comes out as very large
            return (tokens_BL >= first) & (tokens_BL <= last)
    return ~vocabulary.special.take(tokens_BL)


def runs(flags_BL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, end) int64 [K] of the maximal runs of true in each row, as places in the flattened array."""
    B, L = flags_BL.shape
    fenced = np.zeros((B, L + 1), dtype=bool)  # a false behind each row parts it from the next
    fenced[:, :-1] = flags_BL
    flat = fenced.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[:1].any():
        edges = np.concatenate([[0], edges])
    row = edges[0::2] // (L + 1)
    return edges[0::2] - row, edges[1::2] - row


class Stretches(NamedTuple):
    """Maximal runs of ordinary tokens, in the order of the batch.

    Attributes:
        rows: B.
        place: int64 [S], where each begins in the flattened batch.
        first: int64 [S], where it begins among the batch's ordinary tokens.
        size: int64 [S], its tokens.
        row: int64 [S].
        number: int64 [S], within the row, from 0.
    """

    rows: int
    place: np.ndarray
    first: np.ndarray
    size: np.ndarray
    row: np.ndarray
    number: np.ndarray

    @classmethod
    def of(cls, ordinary_BL: np.ndarray) -> Stretches:
        B, L = ordinary_BL.shape
        if ordinary_BL.all():  # the common case, at once
            row = np.arange(B)
            return cls(B, row * L, row * L, np.full(B, L), row, np.zeros_like(row))
        place, end = runs(ordinary_BL)
        size, row = end - place, place // L
        return cls(B, place, np.cumsum(size) - size, size, row, number_in_row(row, B))

    def per_row(self, values_S: np.ndarray) -> np.ndarray:
        """Sums over each row's stretches: int64 [B]."""
        return np.bincount(self.row, values_S, self.rows).astype(np.int64)  # exact: far below 2^53


def subsets(
    first_G: np.ndarray,
    sizes_G: np.ndarray,
    counts_G: np.ndarray,
    total: int,
    words_BN: np.ndarray,
    row_G: np.ndarray,
    word_G: np.ndarray | int = 0,
    stride: int = 1,
) -> np.ndarray:
    """Uniform random subsets without replacement: the places chosen, int64 [Σ counts], in no order.

    Of group g's places first … first + size − 1, all below `total`, `count` are chosen. Floyd's sampling, all groups in
    step: for j = size − count … size − 1 take a uniform place in [0, j], or j itself where that is taken already. Its
    cost goes with what is chosen, not with what is chosen from.

    Args:
        words_BN: 32-bit random words; a group uses those of its row from `word` on, every `stride`th.
    """
    first_word_G = row_G * words_BN.shape[1] + word_G
    most = int(counts_G.max(initial=0))
    steps = np.arange(most)
    if most and (counts_G == most).all():  # the common case, without a list of who is at work
        last = ((sizes_G - counts_G) + steps[:, None]).ravel()
        base = np.tile(first_G, most)
        words = words_BN.ravel().take(first_word_G + stride * steps[:, None]).ravel()
        ends = len(counts_G) * (steps + 1)
        working = np.full(most, len(counts_G))
    else:
        # Groups with more to choose first: so the groups that are at work in a step are the first ones.
        order = np.argsort(-counts_G, kind="stable")
        working = len(counts_G) - np.searchsorted(counts_G[order[::-1]], steps, "right")
        ends = np.cumsum(working)
        step = np.repeat(steps, working)
        group = order[np.arange(len(step)) - np.repeat(ends - working, working)]
        last = (sizes_G - counts_G)[group] + step
        base = first_G[group]
        words = words_BN.ravel().take(first_word_G[group] + stride * step)
    places = base + below(words, last + 1)
    last += base
    taken = np.zeros(total, dtype=bool)
    for begin, end in zip(ends - working, ends, strict=True):
        place = places[begin:end]
        np.copyto(place, last[begin:end], where=taken[place])
        taken[place] = True
    return places
