"""An n-gram model with interpolated Kneser-Ney smoothing (Kneser and Ney 1995; Chen and Goodman 1999, section 3).

    p_k(w | h) = max(a(h w) - D_k, 0) / a(h ·) + D_k · N(h ·) / a(h ·) · p_{k-1}(w | h'),    p_0 = 1 / words

h' is h without its farthest token. The highest order counts occurrences; a lower one counts in how many different
left contexts an n-gram stands (its adjusted count a), except where it begins with the boundary, which has nothing to
its left: occurrences again. N(h ·) is the number of different words after h. One discount for each order,
D = n1 / (n1 + 2 n2) of its adjusted counts; 1/2 where there are none of once or of twice. A context that was never
seen leaves its order out. So every conditional distribution sums to one over the ordinary tokens.

Contexts end at special tokens: left of a separator or of a row's beginning all tokens are the boundary.

All counting is over arrays. An n-gram's number is found from its first token and the number of the rest, so keys fit
64 bits at any order: number_k = place of (token · count_{k-1} + number_{k-1}) among the sorted different ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class _Order(NamedTuple):
    """All n-grams of one length that were seen, sorted by key: (first token, number of the rest).

    keys: int64 [G]. counts: adjusted, float64 [G]. contexts: int64 [G], the number of each one's first k - 1 tokens.
    context_keys: int64 [C], (first token, number of the rest) of the contexts. mass, kinds: float64 [C], of each
    context the sum of its n-grams' counts and their number.
    """

    keys: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    context_keys: np.ndarray
    mass: np.ndarray
    kinds: np.ndarray
    discount: float


class NGramModel:
    """Counts of rows of tokens.

    Args:
        rows_NR: token ids of any integer type, special tokens and padding included.
        special: bool [V]; special tokens are never predicted and end contexts.
        order: length of the longest n-gram.

    Memory: about 100 bytes for each ordinary token while counting.
    """

    def __init__(self, rows_NR: np.ndarray, special: np.ndarray, order: int) -> None:
        self.special, self.order, self.boundary = special, order, len(special)
        self.words = int(np.count_nonzero(~special))
        tokens, lefts = self._events(rows_NR)
        self.tokens = len(tokens)
        # numbers and occurrences of all n-grams, from short to long; the numbers of each one without its first token
        found, rests, occurrences = [], [], []
        numbers, below = tokens, self.boundary
        for k in range(order):
            keys = tokens if not k else lefts[k - 1] * below + numbers
            keys, numbers, count = np.unique(keys, return_inverse=True, return_counts=True)
            rests.append(keys if not k else keys % below)
            found.append(keys)
            occurrences.append(count)
            below = len(keys)
        self.orders: list[_Order] = []
        for k in range(order):
            counts = occurrences[k]
            if k + 1 < order:
                counts = np.bincount(rests[k + 1], minlength=len(counts))
                if k:
                    first = found[k] // len(found[k - 1])
                    counts = np.where(first == self.boundary, occurrences[k], counts)
            self._add(found[k], rests[k], counts.astype(np.float64))

    def _add(self, keys: np.ndarray, rests: np.ndarray, counts: np.ndarray) -> None:
        """The next order, from its n-grams and their counts."""
        if not self.orders:
            contexts, context_keys = np.zeros(len(keys), dtype=np.int64), np.zeros(1, dtype=np.int64)
        else:
            shorter = self.orders[-1]
            first = keys // max(1, len(shorter.keys))
            wanted = first * len(shorter.context_keys) + shorter.contexts[rests]
            context_keys, contexts = np.unique(wanted, return_inverse=True)
        mass = np.bincount(contexts, counts, minlength=len(context_keys))
        kinds = np.bincount(contexts, minlength=len(context_keys)).astype(np.float64)
        once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
        discount = once / (once + 2 * twice) if once and twice else 0.5
        self.orders.append(_Order(keys, counts, contexts, context_keys, mass, kinds, discount))

    def _events(self, rows_NR: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The ordinary tokens int64 [E], row after row, and the tokens 1, 2, … order-1 places to their left."""
        is_special = self.special[rows_NR]
        at = ~is_special
        lefts = []
        ended = np.zeros(rows_NR.shape, dtype=bool)
        for distance in range(1, self.order):
            left = np.full(rows_NR.shape, self.boundary, dtype=np.int32)
            ended[:, :distance] = True
            ended[:, distance:] |= is_special[:, :-distance]
            left[:, distance:] = rows_NR[:, :-distance]
            left[ended] = self.boundary
            lefts.append(left[at].astype(np.int64))
        return rows_NR[at].astype(np.int64), lefts

    def probabilities(self, rows_NR: np.ndarray) -> list[np.ndarray]:
        """p_1 … p_order of every ordinary token of the rows given what stands left of it: float64 [E] each."""
        tokens, lefts = self._events(rows_NR)
        return self._probabilities(tokens, lefts)

    def next(self, left: list[int]) -> np.ndarray:
        """p_order of every token after the tokens `left` (the nearest last): float64 [V], 0 for special ones."""
        words = np.flatnonzero(~self.special)
        nearest = ([self.boundary] * self.order + left)[::-1]
        for place in range(self.order):
            if nearest[place] != self.boundary and self.special[nearest[place]]:
                nearest[place:] = [self.boundary] * len(nearest[place:])
        lefts = [np.full(len(words), nearest[distance]) for distance in range(self.order - 1)]
        out = np.zeros(len(self.special))
        out[words] = self._probabilities(words, lefts)[-1]
        return out

    def _probabilities(self, tokens: np.ndarray, lefts: list[np.ndarray]) -> list[np.ndarray]:
        p = np.full(len(tokens), 1 / max(1, self.words))
        found = []
        numbers = contexts = np.zeros(len(tokens), dtype=np.int64)
        for k, order in enumerate(self.orders):
            if not len(order.keys):  # no row is that long
                found.append(p)
                continue
            if k:
                shorter = self.orders[k - 1]
                contexts = _find(order.context_keys, lefts[k - 1], len(shorter.context_keys), contexts)
                numbers = _find(order.keys, lefts[k - 1], len(shorter.keys), numbers)
            else:
                numbers = _find(order.keys, np.zeros_like(tokens), 0, tokens)
            seen = contexts >= 0
            count = np.where(numbers >= 0, order.counts[numbers], 0.0)
            mass = np.where(seen, order.mass[contexts], 1.0)
            share = order.discount * order.kinds[contexts] / mass
            p = np.where(seen, np.maximum(count - order.discount, 0) / mass + share * p, p)
            found.append(p)
        return found


def _find(keys: np.ndarray, first: np.ndarray, below: int, rest: np.ndarray) -> np.ndarray:
    """Places of the keys (first · below + rest) among the sorted `keys`, -1 where there is none or no rest."""
    if not len(keys):
        return np.full(len(rest), -1)
    wanted = first * below + rest
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where((keys[place] == wanted) & (rest >= 0), place, -1)
