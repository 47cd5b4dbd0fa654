"""Whole-word masking (the authors' later BERT release; Cui et al. 2019): all pieces of a word, or none.

Words are taken in random order while they fit into BERT's budget n = max(1, round(mask_rate · len)); one that
would overflow it is passed over, not cut, so a row can stay below n. What becomes of a chosen piece ([MASK],
random, kept) is drawn for each piece, as in the authors' code.

Worked example (seed 0, epoch 0, index 1; asserted by a test). Ids from 40 on continue a word; mask_rate 0.4,
so n = round(0.4 · 10) = 4:

    tokens               2  11  41  12  13  42  43  14  15   3
    input_ids            2  11  41   4  13  42  43  14  15   3
    labels               .   .   .  12   .   .   .  14  15   .

11 and 41, or 13, 42 and 43, would have been five or six tokens.
"""

from __future__ import annotations

import numpy as np

from tasks.objectives.units import FATES, Chosen, Draw, Words, expand, take_fitting, words_for


def choose(words: Words, budget_B: np.ndarray, length: int, draw: Draw) -> Chosen:
    """Whole words of each row, budget_B tokens at most; rows are `length` tokens long."""
    taken = take_fitting(words.sizes, words.counts, budget_B, draw)
    places = expand(words.starts[taken], words.sizes[taken])
    return Chosen(places, words_for(places // length, len(budget_B), draw, FATES))
