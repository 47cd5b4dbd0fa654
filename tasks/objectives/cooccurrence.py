"""GloVe: how often words stand near each other, counted over the whole text (Pennington et al. 2014).

X_ij is the sum of 1 / d over all places where i and j stand d ≤ `window` words apart in a document, in either
order (section 4.2; published: window 10). Special tokens are no words: they are taken out first, so a window reaches
over them. The loss of a pair weighs f(X) = min(1, (X / x_max)^alpha), published: x_max 100, alpha 0.75 (equation 9).

The counts must be known before training, so examples are not rows of tokens but rows of pairs: `prepare` counts the
split when examples are written, and gives every pair with X > 0, in both orders, shuffled. Memory goes with the
number of distinct pairs (about 50 bytes each at most), not with the length of the text. Distances are summed in
fixed point, so the counts are the same however the text is cut into batches.

Worked example (asserted by a test). Vocabulary of 10 with [PAD] [EOS] = 0, 1; window 2, x_max 2, rows of 6 pairs:

    tokens       5  6  5  1  6  7  0  0       the documents 5 6 5 and 6 7

    input_ids    6  6  5  7  5  0
    context_ids  5  7  5  6  6  0
    X            2  1  1  1  2  0             5 stands at distance 2 from itself: 1 / 2, seen from both sides
    weights      1  w  w  w  1  0             w = (1 / 2)^0.75 = 0.5946
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from tasks.objectives.base import Objective, Vocabulary

if TYPE_CHECKING:
    from tasks.objectives.settings import Cooccurrence as CooccurrenceSettings

_ONE = 1 << 32
"""1.0 in fixed point: 1 / d is off by 2^-33 at most, and a pair's sum may reach 2^31."""
_DISTANCE_BITS = np.uint64(6)  # of a key's low end; a window is 50 at most
_PIECE = 1 << 20  # tokens counted at once
_ROWS = 4096  # of pairs written at once


class Cooccurrence(Objective):
    """The objective; `settings` has window, x_max, alpha."""

    columns = ()
    shares_padding = True
    settings: CooccurrenceSettings

    @classmethod
    def prepare(
        cls, rows: Iterable[np.ndarray], vocabulary: Vocabulary, settings: CooccurrenceSettings, length_tokens: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Rows of pairs from all the rows of a split, which are read to their end first.

        Args:
            rows: [N, R] token ids each, in the order of the text: a document goes on from one row to the next, unless
                padding ends it.
            length_tokens: pairs in a row.

        Yields:
            `tokens` and `contexts` [n, length_tokens], the pairs' ids in the smallest unsigned type that holds the
            vocabulary; `counts` float32 [n, length_tokens], X. The last row is padded, with a count of 0. Nothing
            where the text has no pair.
        """
        total = Counter(vocabulary, settings.window)
        for piece in rows:
            total.add(piece)
        low, high, counts = total.result()
        # Both orders of each pair, then those of a word with itself, which stand at the end.
        once = int(np.count_nonzero(low != high))
        size = once + len(low)
        for first in range(0, size, _ROWS * length_tokens):
            chosen = _shuffled(first, min(_ROWS * length_tokens, size - first), size)
            turned = (chosen >= once) & (chosen < 2 * once)
            chosen -= np.where(chosen >= once, once, 0)
            pair = low[chosen], high[chosen]
            columns = {
                "tokens": np.where(turned, *pair[::-1]),
                "contexts": np.where(turned, *pair),
                "counts": counts[chosen],
            }
            padding = -len(chosen) % length_tokens
            fill = {"tokens": vocabulary.pad, "contexts": vocabulary.pad, "counts": 0}
            yield {
                name: np.pad(column, (0, padding), constant_values=fill[name]).reshape(-1, length_tokens)
                for name, column in columns.items()
            }

    def draw(
        self,
        tokens_BR: np.ndarray,
        seed: int,
        epochs_B: np.ndarray,
        indices_B: np.ndarray,
        facts: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """See `Objective.draw`; nothing is drawn at random.

        Args:
            tokens_BR: the column `tokens` of `prepare`'s rows, [B, L].
            facts: their `contexts` and `counts`, [B, L].

        Returns:
            input_ids, context_ids int64 [B, L]; log_counts, weights float32 [B, L], 0 at padding; attention_mask
            bool [B, L], where there is a pair.
        """
        if facts is None:
            raise ValueError("glove draws from the rows of pairs that Cooccurrence.prepare gives, found tokens alone")
        counts = facts["counts"].astype(np.float32)
        there = counts > 0
        weights = np.minimum(counts / self.settings.x_max, 1) ** self.settings.alpha
        return {
            "input_ids": tokens_BR.astype(np.int64),
            "context_ids": facts["contexts"].astype(np.int64),
            "log_counts": np.log(np.where(there, counts, 1)).astype(np.float32),
            "weights": weights.astype(np.float32),
            "attention_mask": there,
        }


class Counter:
    """Sums of 1 / distance over a stream of rows, by unordered pair of ids.

    Pairs are keys, smaller id · V + larger, with their sums in fixed point; ascending runs of them are merged two
    by two, so that a key is copied a number of times that grows with the logarithm of the text's length.
    """

    def __init__(self, vocabulary: Vocabulary, window: int) -> None:
        self.vocabulary, self.window = vocabulary, window
        self._by_distance = np.array([0, *(round(_ONE / d) for d in range(1, window + 1))], dtype=np.uint64)
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []  # of distinct ascending keys, each longer than the next
        self._ids = np.empty(0, dtype=np.uint64)  # the last words of the document that is not ended yet

    def add(self, rows: np.ndarray) -> None:
        """Count the next rows [N, R] of the text."""
        stream = rows.ravel()
        for first in range(0, len(stream), _PIECE):
            self._count(stream[first : first + _PIECE])

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(smaller id, larger id, X float32) of every pair that occurs, [P] each; equal ids stand at the end.

        Ids have the smallest unsigned type that holds the vocabulary. The counter is empty afterwards.
        """
        while len(self._runs) > 1:
            self._merge()
        keys, sums = self._runs.pop() if self._runs else (np.empty(0, np.uint64), np.empty(0, np.uint64))
        dtype = np.uint16 if self.vocabulary.size <= 1 << 16 else np.uint32
        low = (keys // np.uint64(self.vocabulary.size)).astype(dtype)
        high = (keys % np.uint64(self.vocabulary.size)).astype(dtype)
        counts = (sums * (1.0 / _ONE)).astype(np.float32)
        itself = low == high
        counts[itself] *= 2  # seen from both sides
        low, high, counts = (np.concatenate([a[~itself], a[itself]]) for a in (low, high, counts))
        return low, high, counts

    def _count(self, stream: np.ndarray) -> None:
        ended = np.cumsum((stream == self.vocabulary.eos) | (stream == self.vocabulary.pad))
        words = np.flatnonzero(~self.vocabulary.special[stream])
        known = len(self._ids)
        ids = np.concatenate([self._ids, stream[words].astype(np.uint64)])
        document = np.concatenate([np.zeros(known, dtype=np.int64), ended[words]])
        size = np.uint64(self.vocabulary.size)
        found = []
        for distance in range(1, self.window + 1):
            # A pair of two words that are known already was counted with them.
            left, right = slice(max(0, known - distance), -distance), slice(max(known, distance), None)
            same = document[left] == document[right]
            a, b = ids[left][same], ids[right][same]
            pair = np.minimum(a, b) * size + np.maximum(a, b)
            found.append(pair << _DISTANCE_BITS | np.uint64(distance))
        keys = np.sort(np.concatenate(found))  # with the distance at the low end: faster than to sort by index
        weights = self._by_distance[keys & np.uint64((1 << int(_DISTANCE_BITS)) - 1)]
        if len(keys):
            self._runs.append(_summed(keys >> _DISTANCE_BITS, weights))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            self._merge()
        last = ended[-1] if len(ended) else 0
        self._ids = ids[document == last][-self.window :]

    def _merge(self) -> None:
        (keys, sums), (more, added) = self._runs[-2:]
        at = np.searchsorted(keys, more)
        known = keys[np.minimum(at, len(keys) - 1)] == more
        sums[at[known]] += added[known]
        new = ~known
        places = at[new] + np.arange(np.count_nonzero(new))
        old = np.ones(len(keys) + len(places), dtype=bool)
        old[places] = False
        merged = np.empty(len(old), dtype=np.uint64), np.empty(len(old), dtype=np.uint64)
        for result, before, after in zip(merged, (keys, sums), (more, added), strict=True):
            result[old], result[places] = before, after[new]
        self._runs[-2:] = [merged]


def _summed(keys: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys of ascending ones (not none), and the sum of each one's weights."""
    first = np.concatenate([[0], 1 + np.flatnonzero(keys[1:] != keys[:-1])])
    return keys[first], np.add.reduceat(weights, first)


def _shuffled(first: int, count: int, size: int) -> np.ndarray:
    """Places first … first + count − 1 of one fixed permutation of range(size)."""
    from tasks.example_reader import permuted

    return permuted(np.arange(first, first + count), size, 0, 0)
