"""Text infilling and sentence permutation (BART; Lewis et al. 2020, section 2.2; details as in the authors' code).

1. *Sentence permutation*: the sentences of each document change places at random. A sentence ends after tokens whose
   spelling ends in . ! or ?, and where its document does. Special tokens (<s>, separators, </s>) stay where they are.
2. *Text infilling*: of the row's M ordinary tokens ⌈mask_rate · M⌉ are covered by spans of Poisson(poisson_lambda)
   length, drawn until they are enough; the last is cut to fit. Each span becomes one [MASK]; a span of length 0 is
   a [MASK] put in. The order of spans and kept tokens is uniform over all orders, so spans may touch, and then
   leave one [MASK] each. A span that would cross a special token is parted by it into two.

The target is the original row. As published, spans are drawn after the permutation, over the permuted text. Where
the row has no room for all spans of length 0, a random choice of them is put in.

Worked example (seed 0, epoch 0, index 1; asserted by a test). <pad> </s> [MASK] <s> are 0 … 3, 9 is a full stop;
mask_rate 0.4, poisson_lambda 1:

    tokens               3  11  12   9  13  14  15   9  16  17  18  19   9  30  31   1
    inputs               3  16  17  18  19   9   2  15   9   2   2   2  12   2   1   0
    targets              3  11  12   9  13  14  15   9  16  17  18  19   9  30  31   1

The sentences come third, fourth, second, first. Of the 14 ordinary tokens 6 are covered: 30 31 13 14, 11, and the last
full stop; the two masks beside that of 11 are put in.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cluster.errors import BadConfig
from tasks.objectives.base import Vocabulary, documents
from tasks.objectives.convert import ragged
from tasks.objectives.paired import PairedObjective
from tasks.objectives.philox import sample_words
from tasks.objectives.span_corruption import paired_columns
from tasks.objectives.stretches import Stretches, is_ordinary, row_lengths, subsets
from tasks.objectives.units import Draw, expand, number_in_row, words_for

if TYPE_CHECKING:
    from tasks.objectives.settings import Infilling as Settings

_SENTENCES, _LENGTHS, _PLACES, _PUT_IN = range(4)  # random streams


class TextInfilling(PairedObjective):
    """The objective.

    Raises:
        BadConfig: sentences are to be permuted and the vocabulary comes without its tokens' spellings.
    """

    settings: Settings

    def __init__(self, vocabulary: Vocabulary, settings: Settings, length_tokens: int) -> None:
        super().__init__(vocabulary, settings, length_tokens)
        if settings.permute_sentences and not vocabulary.tokens:
            raise BadConfig(
                "objective infilling with permute_sentences needs to know how tokens are spelled, the vocabulary does "
                "not say",
                "set permute_sentences=false, or make the examples again",
            )
        ends = [bool(t) and t.removesuffix("</w>").endswith((".", "!", "?")) for t in vocabulary.tokens]
        self._ends_sentence = np.array(ends, dtype=bool)
        self._ends_sentence[vocabulary.special[: len(ends)]] = False
        self._thresholds = poisson_thresholds(settings.poisson_lambda)
        self.columns = paired_columns(settings.documents_apart)

    def _draw(
        self, seed: int, tokens_BR: np.ndarray, epochs_B: np.ndarray, indices_B: np.ndarray
    ) -> dict[str, np.ndarray]:
        pad, width = self.vocabulary.pad, self.length_tokens
        draw = partial(sample_words, seed, epochs_B, indices_B)
        ordinary = is_ordinary(tokens_BR, self.vocabulary)
        text = self._permuted(tokens_BR, ordinary, draw) if self.settings.permute_sentences else tokens_BR
        spans = self._spans(Stretches.of(ordinary), draw)
        source, row, is_mask = self._infilled(spans, ordinary, tokens_BR != pad, draw)
        inputs = text.ravel()[source].astype(np.int64)
        inputs[is_mask] = self.vocabulary.special_tokens["mask"]
        counts, lengths = np.bincount(row, minlength=len(tokens_BR)), row_lengths(tokens_BR, pad)
        targets = tokens_BR.astype(np.int64)
        drawn = {"inputs": ragged(inputs, counts, width, pad), "targets": targets}
        if self.settings.documents_apart:
            segments = documents(tokens_BR, self.vocabulary.eos)[0]
            last = segments[np.arange(len(lengths)), np.maximum(lengths - 1, 0)][:, None]
            drawn["input_segments"] = ragged(segments.ravel()[source], counts, width, last)
            drawn["target_segments"] = np.minimum(segments, last)
        return drawn

    def _permuted(self, tokens_BR: np.ndarray, ordinary: np.ndarray, draw: Draw) -> np.ndarray:
        """The rows with each document's sentences in a random order."""
        B, R = tokens_BR.shape
        special = ~ordinary
        parts = np.ones((B, R), dtype=bool)  # a document, a special token, or the padding begins
        parts[:, 1:] = (special[:, 1:] | special[:, :-1]) & (tokens_BR[:, 1:] != self.vocabulary.pad)
        ends = self._ends_sentence.take(tokens_BR)
        begins = parts.copy()
        begins[:, 1:] |= ends[:, :-1] & ~ends[:, 1:]
        first = np.flatnonzero(begins)
        size = np.diff(first, append=B * R)
        # Ordered by part, which leaves parts where they are, and within one by a random word.
        part = np.cumsum(parts.ravel()[first]).astype(np.uint64)
        order = np.argsort(part << np.uint64(32) | words_for(first // R, B, draw, _SENTENCES), kind="stable")
        return tokens_BR.ravel()[expand(first[order], size[order])].reshape(B, R)

    def _spans(self, stretches: Stretches, draw: Draw) -> Spans:
        """The masked spans of a batch; the row's spans, then where they are."""
        available = stretches.per_row(stretches.size)
        # A product a hair above a whole number stands for that number.
        covered = np.ceil(available * self.settings.mask_rate - 1e-9).astype(np.int64)
        most = int(covered.max(initial=0) / self.settings.poisson_lambda) + 16
        while True:
            lengths = np.searchsorted(self._thresholds, draw(most, _LENGTHS)[:, :most], side="right")
            sums = np.cumsum(lengths, axis=1)
            if (sums[:, -1] >= covered).all():
                break
            most *= 2
        before = sums - lengths
        used = before < covered[:, None]
        lengths = np.minimum(lengths, covered[:, None] - before)[used]
        counts = np.count_nonzero(used, axis=1)
        # Spans and kept tokens in a random order: which of the row's places are spans.
        places = available - covered + counts
        words = draw(int(counts.max(initial=0)), _PLACES)
        first, rows = np.cumsum(places) - places, np.arange(len(places))
        at = np.sort(subsets(first, places, counts, int(places.sum()), words, rows))
        begin = at - np.arange(len(at)) + np.cumsum(lengths) - lengths
        return Spans(begin, lengths, np.repeat(np.arange(len(counts)), counts), stretches)

    def _infilled(
        self, spans: Spans, ordinary: np.ndarray, is_token: np.ndarray, draw: Draw
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the inputs are made of, one after another: (place in the flattened rows int64, row int64, bool: a mask
        stands for it)."""
        B, R = ordinary.shape
        stretches, place = spans.stretches, np.flatnonzero(ordinary)
        full = spans.length > 0
        hidden = np.zeros(len(place), dtype=bool)
        hidden[expand(spans.begin[full], spans.length[full])] = True
        masks = np.zeros(len(place), dtype=bool)
        masks[spans.begin[full]] = True
        masks[stretches.first] |= hidden[stretches.first]  # a span is parted where a stretch begins
        keep = is_token.copy()
        keep.ravel()[place] = ~hidden | masks
        is_mask = np.zeros(B * R, dtype=bool)
        is_mask[place] = masks
        source = np.flatnonzero(keep)
        row, is_mask = source // R, is_mask[source]
        if full.all():
            return source, row, is_mask
        begin, of_row = spans.begin[~full], spans.row[~full]
        room = self.length_tokens - np.bincount(row, minlength=B)
        number = number_in_row(of_row, B)
        order = np.lexsort((words_for(of_row, B, draw, _PUT_IN), of_row))  # rows stay where they are
        fits = np.empty(len(number), dtype=bool)
        fits[order] = number < room[of_row]
        begin, of_row = begin[fits], of_row[fits]
        # Before the ordinary token that follows, or behind the row's last.
        behind = begin == np.cumsum(stretches.per_row(stretches.size))[of_row]
        at = np.where(behind, place[begin - 1] + 1, place[np.minimum(begin, len(place) - 1)])
        put = np.searchsorted(source, at)
        return np.insert(source, put, at - behind), np.insert(row, put, of_row), np.insert(is_mask, put, True)


class Spans(NamedTuple):
    """Masked spans of a batch, in order.

    Attributes:
        begin: int64 [K], among the batch's ordinary tokens.
        length: int64 [K]; 0 puts a mask in.
        row: int64 [K].
        stretches: of the batch.
    """

    begin: np.ndarray
    length: np.ndarray
    row: np.ndarray
    stretches: Stretches


def poisson_thresholds(mean: float) -> np.ndarray:
    """uint64 [N]: a 32-bit word has reached as many of them as a draw from Poisson(mean) is."""
    chance, total, thresholds = math.exp(-mean), 0.0, []
    for length in range(256):
        total += chance
        threshold = min(round(total * 2**32), 1 << 32)
        thresholds.append(threshold)
        if length > mean and chance * 2**33 < 1:
            break
        chance *= mean / (length + 1)
    return np.array(thresholds, dtype=np.uint64)
