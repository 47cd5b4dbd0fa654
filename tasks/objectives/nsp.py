"""Next-sentence prediction (Devlin et al. 2019, section 3.1; details as in the authors' code).

From sentences gathered to the target length (`pairs.py`) the first ones are A. Half of the time B are the
others, label 0. Otherwise, and always where only one sentence was gathered, B is random, label 1: sentences
from a random place of another document on, until the target length is reached; what was gathered and not
used goes back, to begin the next row. So more than half of the labels are 1. The other document is drawn up to
ten times, while it is this one: a text of a single document is paired with itself.

The target length is drawn for each row; the authors draw it once for each document.

Worked example (seed 1, copy 0, first document 0, length 12, no short rows; asserted by a test), of sentences
that are [10 11 12] [13 14] [15 16 17] [18 19] | [20 21] [22 23 24 25] [26]:

      2 10 11 12  3 22 23 24 25 26  3  0   boundary 5  label 1
      2 13 14 15 16 17  3 22 23 24 25  3   boundary 7  label 1
      2 18 19  3 20 21 22 23 24 25 26  3   boundary 4  label 1
      2 20 21  3 22 23 24 25 26  3  0  0   boundary 4  label 0

In the first row [13 14] and what followed was not used, and begins the second; the third is of one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.objectives.pairs import Choices, Span, Text, choices_of, gather, write_rows


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
    """Rows [CLS] A [SEP] B [SEP], padded at the end.

    Every random choice is a function of (seed, copy, first_document + place in `documents`, draw number). Random
    segments come from `documents` only, so these must be sliced in the same way for the same result.

    Args:
        documents: each a list of sentences, each an integer array [tokens].
        length_tokens: of a row, at least 5.
        special_tokens: {role: id} with pad, cls, sep.
        copy: number of the duplicate; another one is another set of rows.
        short_share: share of rows with a random shorter target length.
        dtype: of the rows.

    Returns:
        tokens [N, length_tokens]; boundary int32 [N], tokens of A with its [CLS] and [SEP]; pair_label int8 [N],
        1 where B is random. N depends on the choices.
    """
    text = gather(documents, first_document, dtype)
    pairs: list[tuple[Span, Span, int]] = []
    for place, choices in enumerate(choices_of(text, seed, copy)):
        _, sentence, after = text.sentences[place]
        while sentence < after:
            target = choices.target(length_tokens, short_share)
            begin, end = text.ends[sentence], sentence + 1
            while end < after and text.ends[end] - begin < target:
                end += 1
            gathered = end - sentence
            middle = sentence + 1 + (choices.below(gathered - 1) if gathered > 1 else 0)
            a = begin, text.ends[middle]
            is_random = gathered == 1 or choices.chance(0.5)
            if is_random:
                b = _random_segment(text, place, target - (a[1] - a[0]), choices)
            else:
                b = text.ends[middle], text.ends[end]
            pairs.append((*choices.truncated(a, b, length_tokens - 3), int(is_random)))
            sentence = middle if is_random else end
    return write_rows(text, pairs, length_tokens, special_tokens)


def _random_segment(text: Text, place: int, target: int, choices: Choices) -> Span:
    """Sentences of another document from a random one on, at least one, until there are `target` tokens."""
    for _ in range(10):
        other = choices.below(len(text.sentences))
        if other != place:
            break
    _, first, after = text.sentences[other]
    sentence = first + choices.below(after - first)
    begin, end = text.ends[sentence], sentence + 1
    while end < after and text.ends[end] - begin < target:
        end += 1
    return begin, text.ends[end]
