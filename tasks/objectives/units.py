"""What is masked at once: where the words of a batch begin and end, and taking units until a budget is full.

Places are flat, row · L + column, so that one array holds the units of all rows, row after row. A word begins
at a piece that starts one, and at any ordinary token that follows a special one or begins a row; it ends
before the next word, a special token or the row's end. So no word, and nothing made of words, crosses a
special token, and with it a document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from tasks.objectives.philox import below

Draw = Callable[[int, int], np.ndarray]
"""(count, stream) → 32-bit random words uint64 [B, ≥ count], as `tasks.objectives.philox.sample_words`."""

TOKENS, ORDER, FATES, PICKS = range(4)
"""Random streams: which tokens and what becomes of them; order of units; fate of units; random tokens."""

_NEVER = 1 << 30  # the size of a unit that is not there: fits no budget


class Chosen(NamedTuple):
    """What is masked in a batch.

    places: int64 [N], flat. fates: uint64 [N], the random word that says what becomes of each (equal within a
    unit that shares one fate). picks: uint64 [N], the random word for a random token; None: what the fate's
    word leaves is used.
    """

    places: np.ndarray
    fates: np.ndarray
    picks: np.ndarray | None = None


class Words(NamedTuple):
    """Whole words of a batch, row after row.

    starts, stops: int64 [W], flat, stop exclusive. counts: int64 [B], words of each row. begins_run: bool [W],
    a special token or the row's start stands before it.
    """

    starts: np.ndarray
    stops: np.ndarray
    counts: np.ndarray
    begins_run: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each word: int64 [W]."""
        return self.stops - self.starts

    @property
    def first(self) -> np.ndarray:
        """Words before each row: int64 [B]."""
        return np.cumsum(self.counts) - self.counts

    def last_of_run(self) -> np.ndarray:
        """The last word that follows each without a special token between: int64 [W], numbers of words."""
        begins = np.flatnonzero(self.begins_run)
        sizes = np.diff(begins, append=len(self.starts))
        return np.repeat(begins + sizes - 1, sizes)


def find_words(candidate_BL: np.ndarray, starts_BL: np.ndarray) -> Words:
    """The words of the ordinary tokens (`candidate_BL`); `starts_BL`: what begins a word by itself. Both bool."""
    after_special = np.ones(candidate_BL.shape, dtype=bool)
    np.logical_not(candidate_BL[:, :-1], out=after_special[:, 1:])
    starts = starts_BL | after_special
    starts &= candidate_BL
    ends = np.ones(candidate_BL.shape, dtype=bool)  # a row's last token ends its word
    np.logical_not(candidate_BL[:, 1:], out=ends[:, :-1])
    ends[:, :-1] |= starts[:, 1:]
    ends &= candidate_BL
    at = np.flatnonzero(starts)
    return Words(at, np.flatnonzero(ends) + 1, np.count_nonzero(starts, axis=1), after_special.ravel()[at])


def expand(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """start, start + 1 … start + size - 1 of each, one after another: int64 [Σ sizes]."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))


def number_in_row(rows: np.ndarray, rows_count: int) -> np.ndarray:
    """0, 1, 2 … within each row, of things in ascending `rows`: int64 [N]."""
    per_row = np.bincount(rows, minlength=rows_count)
    return np.arange(len(rows)) - (np.cumsum(per_row) - per_row)[rows]


def words_for(rows: np.ndarray, rows_count: int, draw: Draw, stream: int) -> np.ndarray:
    """A random word for each of things in ascending `rows`: uint64 [N]; it depends on its number in the row."""
    numbers = number_in_row(rows, rows_count)
    return draw(int(numbers.max(initial=-1)) + 1, stream)[rows, numbers] if len(rows) else np.empty(0, np.uint64)


def bert_budget(attention_mask_BL: np.ndarray, rate: float, most: int) -> np.ndarray:
    """min(most, max(1, round(rate · len))) of each row, special tokens counted in len: int64 [B]."""
    B, L = attention_mask_BL.shape
    if attention_mask_BL.all():  # packed rows
        return np.array([min(max(round(L * rate), 1), most)]).repeat(B)
    wanted = np.rint(np.count_nonzero(attention_mask_BL, axis=1) * rate).astype(np.int64)
    return np.minimum(np.maximum(wanted, 1), most)


def choose_tokens(
    candidate_BL: np.ndarray, wanted_B: np.ndarray, draw: Draw, stream: int = TOKENS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`wanted` candidates of each row, or all where there are fewer, uniform without replacement.

    Floyd's sampling, all rows in step: for j = N-n … N-1 take a uniform t in [0, j], or j itself where t is
    taken already. Its cost goes with the chosen tokens, not with the length of the row.

    Returns:
        places int64 [N], flat, row after row; how many of each row, int64 [B]; and for each place a second random word
        uint64 [N].
    """
    B, L = candidate_BL.shape
    positions = candidate_BL.ravel().nonzero()[0]  # of all candidates, row after row
    first = positions.searchsorted(np.arange(0, B * L + 1, L))
    first, available = first[:-1], first[1:] - first[:-1]
    wanted = np.minimum(wanted_B, available)
    most = int(wanted.max(initial=0))
    words = draw(2 * most, stream)[:, : 2 * most]  # two for each choice: which token, and what becomes of it
    steps = np.arange(most)[:, None]
    last = (available - wanted) + steps  # j, [step, row]
    everywhere = bool((wanted == most).all())
    active = None if everywhere else steps < wanted
    # Ranks as numbers of candidates; a row that has all it wants goes on into a spare one behind them.
    flat = below(words.T[0::2], last + 1 if active is None else np.where(active, last + 1, 1))
    flat += first
    last += first
    if active is not None:
        np.copyto(last, len(positions), where=~active)
        np.copyto(flat, len(positions), where=~active)
    taken = np.zeros(len(positions) + 1, dtype=bool)
    for now, otherwise in zip(flat, last, strict=True):
        np.copyto(now, otherwise, where=taken[now])
        taken[now] = True
    if active is None:
        return positions.take(flat.T.ravel()), wanted, words[:, 1::2].ravel()
    kept = active.T
    return positions[flat.T[kept]], wanted, words[:, 1::2][kept]


def take_fitting(sizes: np.ndarray, counts_B: np.ndarray, budget_B: np.ndarray, draw: Draw) -> np.ndarray:
    """Units in random order, each taken if it still fits into its row's budget: bool [units].

    A Fisher-Yates shuffle, all rows in step, that stops as soon as no row has room for its smallest unit.

    Args:
        sizes: int64 [units], in tokens, row after row.
        counts_B: units of each row; budget_B: tokens to take at most.
    """
    B, most = len(counts_B), int(counts_B.max(initial=0))
    if not most:
        return np.zeros(0, dtype=bool)
    present = np.arange(most) < counts_B[:, None]
    padded = np.full((B, most), _NEVER)
    padded[present] = sizes
    smallest, flat = padded.min(axis=1), padded.ravel()
    taken, left = np.zeros(B * most, dtype=bool), budget_B.copy()
    for units in shuffled(counts_B, draw, int(budget_B.max(initial=0)) + 8):
        size = flat[units]
        fits = size <= left
        taken[units] = fits
        left -= size * fits
        if (left < smallest).all():
            break
    return taken.reshape(B, most)[present]


def shuffled(counts_B: np.ndarray, draw: Draw, expected: int, stream: int = ORDER) -> Iterator[np.ndarray]:
    """Yields a random order of each row's units, step by step: int64 [B], row · max(counts) + unit.

    A row with fewer units than others ends with numbers ≥ its count. Words are drawn for `expected` steps,
    and again for twice as many whenever these are used up.
    """
    B, most = len(counts_B), int(counts_B.max(initial=0))
    rows = np.arange(B) * most
    order = np.arange(B * most)
    done = 0
    while done < most:
        upto = min(most, max(2 * done, expected))
        steps = np.arange(done, upto)[:, None]
        words = draw(upto, stream)[:, done:upto].T
        places = below(words, np.maximum(counts_B - steps, 1)) + (rows + steps)
        for step, place in zip(range(done, upto), places, strict=True):
            now = order[place]
            order[place] = order[rows + step]
            yield now
        done = upto
