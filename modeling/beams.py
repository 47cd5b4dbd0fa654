"""Beam search: the most probable continuations, by log-probability over length to the power of a penalty.

    score(y) = Σ log p(y_t | y_<t) / |y|^length_penalty       (Wu et al. 2016, section 7, without coverage and the 5)

|y| counts the new tokens, the stop id included. Each step looks at the best (1 + stop ids) · beams one-token
extensions of a prompt's beams; those that end with a stop id and are among the first `beams` are finished, the best
`beams` others go on. The search is over when no beam can still reach the worst of `beams` finished ones, whatever it
says next; so with as many beams as there are sequences it is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

DEAD = float("-inf")


class Hypothesis(NamedTuple):
    """A finished continuation."""

    score: float
    ids: list[int]


class Rows(Protocol):
    """What the search steers: rows of a model that grow by a token at a time (`modeling.generation.Rows`)."""

    def append(self, ids_B: Tensor) -> None: ...

    def reorder(self, rows_B: Tensor) -> None: ...

    def logits(self) -> Tensor: ...

    def repeat(self, times: int) -> None: ...


def beam_search(
    rows: Rows,
    allowed: Callable[[Tensor], Tensor],
    *,
    beams: int,
    limit: int,
    length_penalty: float,
    stop: frozenset[int],
) -> list[list[Hypothesis]]:
    """The best `beams` continuations of each row's prompt, best first.

    Args:
        allowed: logits [B, V] to logits with −inf at what may not be said.
        limit: new tokens at most; what has not stopped by then counts as it stands.
    """
    log_BV = allowed(rows.logits()).log_softmax(-1)
    B, V = log_BV.shape
    rows.repeat(beams)
    done: list[list[Hypothesis]] = [[] for _ in range(B)]
    texts: list[list[list[int]]] = [[[]] for _ in range(B)]
    scores_BK = log_BV.new_zeros(B, 1, dtype=torch.float64)
    over = [False] * B
    for step in range(1, limit + 1):
        total_BC = (scores_BK[:, :, None] + log_BV.view(B, -1, V)).flatten(1)
        best = total_BC.topk(min((1 + len(stop)) * beams, total_BC.shape[1]))
        found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        parents, ids, scores = [0] * (B * beams), [0] * (B * beams), [DEAD] * (B * beams)
        for b, (values, places) in enumerate(found):
            if over[b]:
                continue
            grown: list[list[int]] = []
            for rank, (value, place) in enumerate(zip(values, places, strict=True)):
                parent, token = divmod(place, V)
                if value == DEAD or len(grown) == beams:
                    break
                text = [*texts[b][parent], token]
                ends = token in stop
                if (ends and rank < beams) or (not ends and step == limit):
                    done[b].append(Hypothesis(value / step**length_penalty, text))
                if not ends:
                    at = b * beams + len(grown)
                    parents[at], ids[at], scores[at] = parent, token, value
                    grown.append(text)
            done[b] = sorted(done[b], key=lambda h: -h.score)[:beams]
            texts[b] = grown
            over[b] = not grown or _settled(done[b], scores[b * beams], step, beams, limit, length_penalty)
        if step == limit or all(over):
            break
        first = torch.arange(B).repeat_interleave(beams) * beams  # of each row's prompt
        rows.reorder((first + torch.tensor(parents)).to(log_BV.device))
        rows.append(torch.tensor(ids, device=log_BV.device))
        scores_BK = torch.tensor(scores, dtype=torch.float64, device=log_BV.device).view(B, beams)
        log_BV = allowed(rows.logits()).log_softmax(-1)
    return done


def _settled(done: list[Hypothesis], best: float, step: int, beams: int, limit: int, length_penalty: float) -> bool:
    """Whether the best running sum can reach none of the finished scores at any length that is left."""
    if len(done) < beams:
        return False
    # a sum can only fall, and is never above 0: dividing by the most there can be is the best that it can become
    length = limit if length_penalty > 0 else step
    return best / length**length_penalty <= done[-1].score
