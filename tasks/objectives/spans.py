"""Span masking and the span-boundary objective (Joshi et al. 2020, SpanBERT, section 3; as in the authors' code).

Until ceil(mask_rate · n) of a row's n ordinary tokens are chosen, exactly (special tokens are not counted, as
the authors add them afterwards):

    a length ℓ in whole words is drawn, p(ℓ) ∝ span_p · (1 - span_p)^(ℓ-1) for ℓ = 1 … span_max
        (truncated and renormalised: mean 3.797 words for 0.2 and 10),
    an anchor token is drawn, again while it falls on a chosen one,
    and ℓ words from the start of the anchor's word on are chosen.

A span ends early at a special token, and the last one is cut where the budget is full. Spans that meet or
touch are one. There is one draw of [MASK], random or kept for each span; random tokens differ within it.

With `span_boundary` every token of a span also says where the tokens just outside the span are and which place
it has in the span, from 1. Where the row begins or ends with the span, so that there is no such token, it
says nothing (-1, -1, 0). Offsets count tokens, so they can be above span_max, which counts words.

Worked example (seed 0, epoch 0, index 7; asserted by a test). Ids from 40 on continue a word; mask_rate 0.4,
so ceil(0.4 · 12) = 5 tokens (. = -100, -1 and 0):

    tokens               2  11  12  41  13  14  42  43  15  16  17  18  19   3
    input_ids            2  11  12  41  13   4   4   4  15  16  81  94  19   3
    labels               .   .   .   .   .  14  42  43   .   .  17  18   .   .
    boundary_left        .   .   .   .   .   4   4   4   .   .   9   9   .   .
    boundary_right       .   .   .   .   .   8   8   8   .   .  12  12   .   .
    boundary_offset      .   .   .   .   .   1   2   3   .   .   1   2   .   .

The span [14 42 43] became masks, [17 18] random tokens.
"""

from __future__ import annotations

import numpy as np

from tasks.objectives.philox import below
from tasks.objectives.units import FATES, ORDER, PICKS, Chosen, Draw, Words, words_for


def length_thresholds(p: float, longest: int) -> np.ndarray:
    """A 32-bit word below thresholds[ℓ-1], and not below the ones before, stands for the length ℓ: uint64."""
    shares = (1 - p) ** np.arange(longest)
    return np.rint(np.cumsum(shares) / shares.sum() * 2**32).astype(np.uint64)


def lengths(words: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Lengths 1 … len(thresholds) from 32-bit random words: int64, of the words' shape."""
    return np.searchsorted(thresholds, words, side="right") + 1


def choose(words: Words, budget_B: np.ndarray, length: int, thresholds: np.ndarray, draw: Draw) -> Chosen:
    """budget_B tokens of each row, in spans; no row's budget is above its ordinary tokens."""
    B = len(budget_B)
    last = words.last_of_run()
    sizes = words.sizes
    word_of = np.repeat(np.arange(len(sizes)), sizes)  # of each ordinary token, row after row
    after = np.append(0, np.cumsum(sizes))
    first_word = words.first
    first = after[first_word]
    available = after[first_word + words.counts] - first

    masked = np.zeros(B * length, dtype=bool)
    left = budget_B.copy()
    rows = np.flatnonzero(left)
    done, upto = 0, 4 + int(budget_B.max(initial=0)) // 2  # tries; mostly enough
    while len(rows):
        drawn = draw(2 * upto, ORDER)[rows, 2 * done : 2 * upto].T
        word = word_of[below(drawn[0::2], available[rows]) + first[rows]]
        end = words.stops[np.minimum(word + lengths(drawn[1::2], thresholds) - 1, last[word])]
        start = words.starts[word]
        active = np.arange(len(rows))
        for step_start, step_end in zip(start, end, strict=True):
            # Chosen words are chosen whole while a row has budget, so the anchor's word can stand for the anchor.
            active = active[left[rows[active]] > 0]
            now = active[~masked[step_start[active]]]
            if not len(now):
                continue
            begin, size = step_start[now], step_end[now] - step_start[now]
            ahead = np.arange(int(size.max()))
            places = begin[:, None] + ahead
            free = ahead < size[:, None]
            free &= ~masked[np.minimum(places, len(masked) - 1)]
            room = left[rows[now], None]
            free &= np.cumsum(free, axis=1) <= room
            masked[places[free]] = True
            left[rows[now]] -= np.count_nonzero(free, axis=1)
        rows = rows[left[rows] > 0]
        done, upto = upto, 2 * upto

    places = np.flatnonzero(masked)
    begins = runs(places, length)
    span_sizes = np.diff(begins, append=len(places))
    fates = words_for(places[begins] // length, B, draw, FATES)
    return Chosen(places, np.repeat(fates, span_sizes), words_for(places // length, B, draw, PICKS))


def runs(places: np.ndarray, length: int) -> np.ndarray:
    """Where a new span begins among ascending flat places: int64, indices into `places`."""
    begins = np.ones(len(places), dtype=bool)
    begins[1:] = (np.diff(places) != 1) | (places[1:] % length == 0)
    return np.flatnonzero(begins)


def boundaries(places: np.ndarray, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """boundary_left, boundary_right, boundary_offset int64 [B, L] of ascending flat places of masked tokens."""
    L = shape[1]
    begins = runs(places, L)
    sizes = np.diff(begins, append=len(places))
    start = places[begins] % L
    inside = (start > 0) & (start + sizes < L)
    columns = {
        "boundary_left": (np.where(inside, start - 1, -1), -1),
        "boundary_right": (np.where(inside, start + sizes, -1), -1),
        "boundary_offset": (np.where(inside, 1 - start, 0), 0),
    }
    found = {}
    for name, (of_span, elsewhere) in columns.items():
        found[name] = np.full(shape, elsewhere, dtype=np.int64)
        found[name].ravel()[places] = np.repeat(of_span, sizes)
    # Counted from the row's start so far: the offset of a token is its column less the span's start.
    offset = found["boundary_offset"]
    seen = places[np.repeat(inside, sizes)]
    offset.ravel()[seen] += seen % L
    return found
