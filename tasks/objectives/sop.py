"""Sentence-order prediction (Lan et al. 2020, ALBERT, section 3.1).

From sentences gathered to the target length (`pairs.py`) the first ones and the others are the two segments;
half of the time they are swapped, label 1. So both always come from the same place of one document, and only
their order can tell. Where only one sentence was gathered, it is cut in two at a random token (the authors'
code takes a random second segment there, as for next-sentence prediction); one of a single token is left out.

Worked example (seed 1, copy 0, first document 0, length 12, no short rows; asserted by a test), of sentences
that are [10 11 12] [13 14] [15 16 17] [18 19] | [20 21 22 23 24 25]:

      2 13 14 15 16 17 18  3 10 11 12  3   boundary 8  label 1
      2 20 21 22  3 23 24 25  3  0  0  0   boundary 5  label 0

The first pair is swapped, and lost 19 to fit; the second is one sentence, cut in two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.objectives.pairs import Span, choices_of, gather, write_rows


def pair_rows(
    documents: Sequence[Sequence[np.ndarray]],
    length_tokens: int,
    special_tokens: Mapping[str, int],
    seed: int,
    copy: int,
    first_document: int,
    short_share: float,
    dtype: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [CLS] A [SEP] B [SEP], padded at the end; arguments as for `tasks.objectives.nsp.pair_rows`.

    Every random choice is a function of (seed, copy, first_document + place in `documents`, draw number), so a
    document's rows are the same in any slice.

    Returns:
        tokens [N, length_tokens]; boundary int32 [N], tokens of A with its [CLS] and [SEP]; pair_label int8 [N],
        1 where A and B are swapped.
    """
    text = gather(documents, first_document, dtype)
    pairs: list[tuple[Span, Span, int]] = []
    for (_, sentence, after), choices in zip(text.sentences, choices_of(text, seed, copy), strict=True):
        while sentence < after:
            target = choices.target(length_tokens, short_share)
            begin, end = text.ends[sentence], sentence + 1
            while end < after and text.ends[end] - begin < target:
                end += 1
            stop, gathered = text.ends[end], end - sentence
            if gathered > 1:
                middle = text.ends[sentence + 1 + choices.below(gathered - 1)]
            else:
                middle = begin + 1 + choices.below(stop - begin - 1) if stop - begin > 1 else stop
            sentence = end
            if middle == stop:
                continue
            a, b = (begin, middle), (middle, stop)
            swapped = choices.chance(0.5)
            pairs.append((*choices.truncated(*((b, a) if swapped else (a, b)), length_tokens - 3), int(swapped)))
    return write_rows(text, pairs, length_tokens, special_tokens)
