"""What every kind of tokenizer shares: its settings, and the letters it starts from."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

from cluster.errors import BadData
from tasks.tokenizers.sample import count_letters

USUAL_ALPHABET = 1000
COVERED = 0.999  # of the text's letters, whatever the usual size


class TokenizerSettings(NamedTuple):
    """What every trainer needs to know."""

    vocab_size: int
    lowercase: bool
    min_frequency: int
    sentinels: int = 0
    coverage: float = 0.9995


def alphabet(sample: Iterable[str], normalizer: Any, vocab_size: int) -> list[str]:
    """The most frequent letters of the normalised sample, ascending: 1/16 of the vocabulary, and 1,000 at most; but as
    many as make up 99.9 % of the text, as far as a quarter of the vocabulary goes.

    A text in one script has a few rare letters of many others; as entries of their own they would only fill the
    vocabulary, so they become unknown. A script of thousands of letters, or a small vocabulary, needs more than that:
    a word with one unknown letter is unknown as a whole.

    Raises:
        BadData: the sample holds no letters.
    """
    return most_frequent(count_letters(sample, normalizer), vocab_size)


def most_frequent(counts: Mapping[str, int], vocab_size: int) -> list[str]:
    """`alphabet` of letters with these counts."""
    letters = [c for c in counts if not c.isspace()]
    if not letters:
        raise BadData("the corpus has no characters to learn a vocabulary from", "give a corpus that holds text")
    letters.sort(key=lambda c: (-counts[c], c))
    reached = list(accumulate(counts[letter] for letter in letters))
    covering = bisect_left(reached, COVERED * reached[-1]) + 1
    return sorted(letters[: max(min(USUAL_ALPHABET, vocab_size // 16), min(covering, vocab_size // 4))])


def check_size(vocab_size: int, least: int, what: str) -> None:
    """Raise BadData where a vocabulary cannot even hold its symbols."""
    if vocab_size < least:
        raise BadData(f"vocab_size is {vocab_size}, {what} has at least {least}", "raise vocab_size")
