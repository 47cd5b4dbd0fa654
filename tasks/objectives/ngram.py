"""N-gram masking (Lan et al. 2020, ALBERT, section 4.1, equation 4; details as in the authors' code).

A word is taken in random order as the start of an n-gram of whole words, with

    p(n) = (1/n) / Σ_k (1/k),  k = 1 … ngram_max.

An n-gram that would overflow BERT's budget is tried shorter, word by word, and passed over where not even its
first word fits; one that meets a word which is masked already is passed over. It ends early at a special token.
What becomes of a chosen piece is drawn for each piece.

Worked example (seed 0, epoch 0, index 0; asserted by a test). Ids from 40 on continue a word; mask_rate 0.5,
so n = round(0.5 · 12) = 6:

    tokens               2  11  12  41  13  14  15  42  16  17  18   3
    input_ids            2  11   4   4  13   4  37   4  16  17  11   3
    labels               .   .  12  41   .  14  15  42   .   .  18   .

[12 41], [14 15 42] and [18]; 15 and 18 became random tokens.
"""

from __future__ import annotations

import numpy as np

from tasks.objectives.units import FATES, PICKS, Chosen, Draw, Words, expand, shuffled, words_for


def length_thresholds(longest: int) -> np.ndarray:
    """A 32-bit word below thresholds[n-1], and not below the ones before, stands for the length n: uint64."""
    shares = 1 / np.arange(1, longest + 1)
    return np.rint(np.cumsum(shares) / shares.sum() * 2**32).astype(np.uint64)


def choose(words: Words, budget_B: np.ndarray, length: int, longest: int, draw: Draw) -> Chosen:
    """N-grams of up to `longest` words, budget_B tokens of each row at most."""
    B, most = len(budget_B), int(words.counts.max(initial=0))
    if not most:
        return Chosen(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64))
    # By row and number of the word, with words that are not there: sizes[n-1], tokens of the n-gram from there.
    present = np.arange(most) < words.counts[:, None]
    sizes = np.full((longest, B * most), 1 << 30)
    last = words.last_of_run()
    numbers, flat = np.arange(len(words.starts)), np.flatnonzero(present)
    for n in range(longest):
        sizes[n, flat] = words.stops[np.minimum(numbers + n, last)] - words.starts
    room = np.zeros(B * most, dtype=np.int64)  # words from here to the end of the run
    room[flat] = last - numbers + 1
    smallest = sizes[0].reshape(B, most).min(axis=1)

    covered = np.zeros(B * most + longest, dtype=bool)
    left = budget_B.copy()
    expected = int(budget_B.max(initial=0)) + 8
    thresholds, grams = length_thresholds(longest), np.empty((0, B), dtype=np.int64)
    for step, first in enumerate(shuffled(words.counts, draw, expected)):
        if step >= len(grams):
            drawn = draw(min(most, max(2 * step, expected)), PICKS).T
            grams = np.searchsorted(thresholds, drawn, side="right")  # n - 1
        n = np.minimum(grams[step], np.maximum(room[first] - 1, 0))
        for _ in range(longest - 1):
            n -= (sizes[n, first] > left) & (n > 0)
        size = sizes[n, first]
        free = size <= left
        for k in range(longest):
            free &= ~(covered[first + k] & (n >= k))
        for k in range(longest):
            covered[(first + k)[free & (n >= k)]] = True
        left -= size * free
        if (left < smallest).all():
            break
    taken = covered[: B * most].reshape(B, most)[present]
    places = expand(words.starts[taken], words.sizes[taken])
    return Chosen(places, words_for(places // length, B, draw, FATES))
