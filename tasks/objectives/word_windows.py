"""word2vec: skip-gram and CBOW with negative sampling (Mikolov et al. 2013, arXiv:1301.3781 and 1310.4546).

As in the authors' code:

1. Words are dropped at random before windows are made, so windows then reach further: a word of frequency f (of
   all ordinary tokens) stays with probability min(1, √(t / f)), t = `subsample` (1310.4546, section 2.3; published
   values 1e-3 to 1e-5; the code keeps √(t / f) + t / f). Special tokens are no words: all are dropped.
2. Each centre has its own radius, uniform in 1 … `window` (published: 5, and 10 for skip-gram on large corpora),
   so near words count more. A window ends at its document's end and at the row's.
3. Noise words are drawn by frequency^`power` (published: 0.75), `negatives` of them (5 to 20, 2 to 5 for large
   corpora) for each window: all pairs of a window share them, which leaves the objective's expectation as it is,
   makes matrix products of it, and costs no accuracy (Ji et al. 2016, arXiv:1604.04661). A noise word that is the
   centre itself does not count; the model leaves it out.

Both kinds draw the same examples; what is predicted from what is the model's (`modeling.word_vectors`).

Worked example (seed 0, epoch 0, index 0; asserted by a test, as is CBOW's with index 1). Vocabulary of 20 with
[PAD] [EOS] = 0, 1, in which token i stands 1000 // i times; window 2, negatives 2, subsample 0.05. The two documents
4 9 2 12 and 3 7 2 15 lose a 2; `window` shows the offsets -2 -1 0 1 2, x where a context word stands:

    tokens      4   9   2  12   1   3   7   2  15   0
    input_ids   4   9  12   3   7   2  15   0   0   0

    centre      4      9      12     3      7      2      15
    window      ...xx  .x.x.  xx...  ...xx  .x.xx  .x.x.  .x...
    negatives   5 17   7 14   6 4    12 7   7 6    2 2    15 2

15 is drawn as a noise word of its own window: it does not count there; nor do 7 and 2 in theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.objectives.base import Objective, Vocabulary
from tasks.objectives.philox import sample_words

if TYPE_CHECKING:
    from tasks.objectives.settings import SkipGram as SkipGramSettings

_WORDS, _NOISE = 0, 1  # random streams
_32 = np.uint64(32)


class SkipGram(Objective):
    """The objective of both kinds; `settings` has window, negatives, subsample, power.

    It needs `vocabulary.counts` as soon as it draws. Static masking has no use for it: nothing is masked, and
    what it draws is larger than the tokens.
    """

    columns = ()
    shares_padding = True
    settings: SkipGramSettings

    def draw(
        self,
        tokens_BR: np.ndarray,
        seed: int,
        epochs_B: np.ndarray,
        indices_B: np.ndarray,
        facts: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """See `Objective.draw`; W and K are `settings.window` and `settings.negatives`.

        Returns:
            input_ids int64 [B, L]: the words that stay, moved to the left, then padding;
            attention_mask bool [B, L]: where there is one;
            window bool [B, L, 2W + 1]: whether offset -W … W holds a context word of the centre (0: never);
            negatives int64 [B, L, K]: noise words of each centre, padding where there is none.

        Raises:
            BadConfig: the vocabulary has no counts. BadData: they are all zero.
        """
        B, L = tokens_BR.shape
        W, K, pad = self.settings.window, self.settings.negatives, self.vocabulary.pad
        keep_V, noise = self._tables
        flat = tokens_BR.ravel()
        threshold = keep_V[flat]
        word = sample_words(seed, epochs_B, indices_B, L, _WORDS)[:, :L].ravel()
        at = np.flatnonzero(word < threshold)
        # Below its threshold the word is uniform again: it also gives the radius.
        radius = 1 + (word[at] * (W / threshold[at])).astype(np.int64)
        rows = at // L
        # Grows at every separator and every row's end: the number of a document, or of its part in a row.
        document = np.cumsum(flat == self.vocabulary.eos)[at] + rows
        before, after = _neighbours(document)
        kept = np.bincount(rows, minlength=B)
        to = rows * L + np.arange(len(at)) - np.repeat(np.cumsum(kept) - kept, kept)

        input_ids = np.full((B, L), pad, dtype=np.int64)
        input_ids.ravel()[to] = flat[at]
        attention_mask = np.arange(L) < kept[:, None]
        reach = np.zeros((2, B * L, 1), dtype=np.int8)
        reach[0, to, 0], reach[1, to, 0] = -np.minimum(before, radius), np.minimum(after, radius)
        offsets = np.arange(-W, W + 1, dtype=np.int8)
        window = (offsets >= reach[0]) & (offsets <= reach[1])
        window[:, W] = False

        most = int(kept.max(initial=0))
        words = sample_words(seed, epochs_B, indices_B, most * K, _NOISE)[:, : most * K].reshape(B, most, K)
        negatives = np.full((B, L, K), pad, dtype=np.int64)
        negatives[:, :most] = np.where(attention_mask[:, :most, None], noise.draw(words), pad)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "window": window.reshape(B, L, 2 * W + 1),
            "negatives": negatives,
        }

    @cached_property
    def _tables(self) -> tuple[np.ndarray, Noise]:
        """(uint64 [V]: a token stays where its random word is below this; the noise distribution)."""
        counts = ordinary_counts(self.vocabulary, self.settings.kind)
        frequency = counts / counts.sum()
        keep = np.ones(self.vocabulary.size)
        if self.settings.subsample:
            np.divide(self.settings.subsample, frequency, out=keep, where=frequency > 0)
            keep = np.sqrt(np.minimum(keep, 1))
        # A word below 2^32 is below every threshold of 2^32. At least 1: thresholds are divided by.
        threshold = np.maximum(np.rint(keep * 2.0**32), 1).astype(np.uint64)
        threshold[self.vocabulary.special] = 0
        return threshold, Noise.of(counts**self.settings.power)


class ContinuousBagOfWords(SkipGram):
    """The same windows and noise words as skip-gram: the model predicts the centre from their mean."""


def ordinary_counts(vocabulary: Vocabulary, objective: str) -> np.ndarray:
    """float64 [V]: how often each token stands in the training split, 0 for special ones.

    Raises:
        BadConfig: the vocabulary has no counts. BadData: no ordinary token stands in the text.
    """
    from cluster.errors import BadConfig, BadData

    if vocabulary.counts is None or not len(vocabulary.counts):
        raise BadConfig(
            f"objective {objective!r} needs the tokens' counts, and these examples have none",
            "make the examples again: counts are in vocabulary.arrow",
        )
    counts = np.where(vocabulary.special, 0, vocabulary.counts).astype(np.float64)
    if not counts.any():
        raise BadData(f"objective {objective!r}: no ordinary token stands in the training split", "use more text")
    return counts


def _neighbours(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many entries of its own group stand (before, after) each entry; equal numbers are adjacent: int64 [N]."""
    first = np.flatnonzero(np.diff(group, prepend=-1))
    sizes = np.diff(first, append=len(group))
    before = np.arange(len(group)) - np.repeat(first, sizes)
    return before, np.repeat(sizes, sizes) - 1 - before


class Noise(NamedTuple):
    """A distribution over ids, drawn from by Walker's alias method: one random word and two look-ups per draw.

    An inverse distribution function would search 15 steps deep, most of them misses of the cache.
    """

    threshold: np.ndarray
    """uint32 [N]: the remainder of the random word below which the column's own id is meant."""
    ids: np.ndarray
    """int32 [2, N]: the column's alias, and its own id."""

    @classmethod
    def of(cls, weights: np.ndarray) -> Noise:
        """By `weights` [V], not negative and not all zero (Vose 1991)."""
        ids = np.flatnonzero(weights)
        share = (weights[ids] / weights[ids].sum() * len(ids)).tolist()
        threshold, alias = np.ones(len(ids)), ids.copy()
        small = [column for column, value in enumerate(share) if value < 1]
        large = [column for column, value in enumerate(share) if value >= 1]
        while small and large:
            low, high = small.pop(), large[-1]
            threshold[low], alias[low] = share[low], ids[high]
            share[high] -= 1 - share[low]
            if share[high] < 1:
                small.append(large.pop())
        # A full column's alias is its own id, so that 2^32 - 1 for 2^32 changes nothing.
        bounds = np.minimum(np.rint(threshold * 2.0**32), 2.0**32 - 1).astype(np.uint32)
        return cls(bounds, np.stack([alias, ids]).astype(np.int32))

    def draw(self, words: np.ndarray) -> np.ndarray:
        """int32 ids from 32-bit random words, of their shape; probabilities are exact to 2^-32."""
        columns = self.ids.shape[1]
        product = words * np.uint64(columns)
        column = (product >> _32).astype(np.int64)
        own = product.astype(np.uint32) < self.threshold.take(column)
        return self.ids.ravel().take(column + own * np.int64(columns))
