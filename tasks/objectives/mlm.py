"""Masked language modelling (Devlin et al. 2019, section 3.1; details as in the authors' code).

In a row of `len` tokens, [CLS] and [SEP] counted,

    n = min(max_predictions, max(1, round(mask_rate · len)))

ordinary tokens are chosen without replacement (fewer where a row has fewer). Of these `mask_share` (80 %)
become [MASK], `random_share` (10 %) a random token, the rest stay; the draw is per sub-token. The random token
is drawn from the ordinary tokens (`random_token="ordinary"`) or from the whole vocabulary as in the original
(`"any"`). `unit` says what is chosen at once: tokens here; whole words (`whole_word.py`), n-grams (`ngram.py`),
spans (`spans.py`: with a budget of its own and one draw per span), or salient spans (`salience.py`).

Salient spans are taken whole in random order while they fit into n, with one draw for each. A row without any,
or with none that fits, has no label.

Worked example (seed 0, index 1; asserted by a test). Vocabulary of 100 with [PAD] [UNK] [CLS] [SEP] [MASK] =
0…4, mask_rate 0.3, so n = round(0.3 · 10) = 3:

    tokens                2  11  12  13  14  15  16  17  18   3
    epoch 0   input_ids   2  11  12  13   4  15  16  17  93   3
              labels      .   .   .  13  14   .   .   .  18   .        (. = -100)
    epoch 1   input_ids   2   4  12  13   4  15  16  17  18   3
              labels      .  11  12   .  14   .   .   .   .   .

In epoch 0 13 is kept, 14 became [MASK], 18 a random token. Static masking writes epoch 0, 1, … as the copies
of a row; dynamic masking draws them as the run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from tasks.objectives import ngram, spans, whole_word
from tasks.objectives.base import IGNORED, Objective, Vocabulary, documents
from tasks.objectives.philox import sample_words
from tasks.objectives.salience import pieces_of, salient_spans
from tasks.objectives.settings import Masked
from tasks.objectives.stretches import is_ordinary
from tasks.objectives.units import (
    FATES,
    PICKS,
    Chosen,
    Draw,
    bert_budget,
    choose_tokens,
    expand,
    find_words,
    take_fitting,
    words_for,
)

_WORDS = np.uint64(1 << 32)
_BOUNDARY = ("boundary_left", "boundary_right", "boundary_offset")


class MaskedLanguageModel(Objective):
    """The objective; a batch also has token_type_ids and pair_labels with `pairs`, boundary_left, boundary_right
    and boundary_offset with `span_boundary`, segment_ids and position_ids with `documents_apart`.

    Raises:
        BadConfig: the tokenizer lacks a special token.
    """

    settings: Masked

    def __init__(self, vocabulary: Vocabulary, settings: Masked, length_tokens: int) -> None:
        super().__init__(vocabulary, settings, length_tokens)
        self.columns = (
            "input_ids",
            "labels",
            *(("token_type_ids", "pair_labels") if settings.pairs != "none" else ()),
            *(_BOUNDARY if settings.span_boundary else ()),
        )
        if settings.unit == "salient":
            pieces_of(vocabulary)  # a vocabulary without spellings shows here, not at the first batch
        self.most = settings.max_predictions or 1 << 30
        self._span_lengths = spans.length_thresholds(settings.span_p, settings.span_max)
        self._replace = Replacement(
            vocabulary, settings.mask_share, settings.random_share, any_token=settings.random_token == "any"
        )

    def draw(
        self,
        tokens_BR: np.ndarray,
        seed: int,
        epochs_B: np.ndarray,
        indices_B: np.ndarray,
        facts: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """See `Objective.draw`; `facts` is read with `pairs` only."""
        attention_mask = tokens_BR != self.vocabulary.pad
        chosen = self._choose(tokens_BR, attention_mask, partial(sample_words, seed, epochs_B, indices_B))
        input_ids, labels = masked(tokens_BR, chosen, self._replace)
        batch = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
        if self.settings.span_boundary:
            batch |= spans.boundaries(chosen.places, tokens_BR.shape)
        if self.settings.pairs != "none":
            if facts is None:
                raise ValueError(f"rows of sentence pairs (pairs={self.settings.pairs}) come with their facts")
            second = np.arange(tokens_BR.shape[1]) >= np.asarray(facts["boundary"])[:, None]
            batch["token_type_ids"] = (second & attention_mask).astype(np.int64)
            batch["pair_labels"] = np.asarray(facts["pair_label"]).astype(np.int64)
        if self.settings.documents_apart:
            separator = self.vocabulary.special_tokens["sep"]
            batch["segment_ids"], batch["position_ids"] = documents(tokens_BR, separator)
        return batch

    def _choose(self, tokens_BL: np.ndarray, attention_mask: np.ndarray, draw: Draw) -> Chosen:
        B, L = tokens_BL.shape
        unit, rate = self.settings.unit, self.settings.mask_rate
        if unit == "salient":
            rows, starts, stops = salient_spans(tokens_BL, self.vocabulary)
            sizes = stops - starts
            counts, budget = np.bincount(rows, minlength=B), bert_budget(attention_mask, rate, self.most)
            taken = take_fitting(sizes, counts, budget, draw)
            fates = words_for(rows[taken], B, draw, FATES)
            places = expand((rows * L + starts)[taken], sizes[taken])
            return Chosen(places, np.repeat(fates, sizes[taken]), words_for(places // L, B, draw, PICKS))
        candidate = is_ordinary(tokens_BL, self.vocabulary)
        if unit == "span":
            ordinary = np.count_nonzero(candidate, axis=1)
            # rounded first: 0.07 · 100 is 7.000000000000001 in floating point, which are not eight tokens
            budget = np.minimum(np.ceil(np.round(ordinary * rate, 9)).astype(np.int64), self.most)
            words = find_words(candidate, np.take(self.vocabulary.starts_word, tokens_BL))
            return spans.choose(words, np.minimum(budget, ordinary), L, self._span_lengths, draw)
        budget = bert_budget(attention_mask, rate, self.most)
        if unit == "token":
            places, _, fates = choose_tokens(candidate, budget, draw)
            return Chosen(places, fates)
        words = find_words(candidate, np.take(self.vocabulary.starts_word, tokens_BL))
        if unit == "word":
            return whole_word.choose(words, budget, L, draw)
        return ngram.choose(words, budget, L, self.settings.ngram_max, draw)


class Replacement:
    """What becomes of chosen tokens: [MASK], a random token, or nothing.

    Args:
        mask_share, random_share: of the chosen tokens; the rest stay.
        any_token: random tokens come from the whole vocabulary, not from the ordinary tokens only.
    """

    def __init__(self, vocabulary: Vocabulary, mask_share: float, random_share: float, any_token: bool = False) -> None:
        self.mask = vocabulary.special_tokens["mask"]
        self.tokens = np.arange(vocabulary.size) if any_token else vocabulary.ordinary
        self._count = np.uint64(len(self.tokens))
        self._masked_below = np.uint64(round(mask_share * 2**32))  # of a 32-bit word
        self._random_below = np.uint64(min(round((mask_share + random_share) * 2**32), 2**32))

    def __call__(self, original: np.ndarray, chosen: Chosen) -> np.ndarray:
        """The new ids int64 [N] of chosen tokens whose ids are `original` int64 [N]."""
        result = np.empty(len(original), dtype=np.int64)
        result.fill(self.mask)
        other = (chosen.fates >= self._masked_below).nonzero()[0]
        fates = chosen.fates.take(other)
        is_random = fates < self._random_below
        random, kept = other[is_random], other[~is_random]
        result[kept] = original.take(kept)
        if len(random):
            if chosen.picks is not None:
                words, width = chosen.picks[random], _WORDS
            else:
                # Where the fate's word lies between its bounds is uniform again, finely enough for any vocabulary.
                words, width = fates[is_random] - self._masked_below, self._random_below - self._masked_below
            words = words * self._count // width
            result[random] = self.tokens.take(words.view(np.int64))
        return result


def masked(tokens_BL: np.ndarray, chosen: Chosen, replace: Replacement) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids, labels) int64 [B, L]: the tokens with the chosen ones replaced, and what they were."""
    input_ids = tokens_BL.astype(np.int64, order="C")
    labels = np.empty(tokens_BL.shape, dtype=np.int64)
    labels.fill(IGNORED)
    flat = input_ids.ravel()
    original = flat.take(chosen.places)
    labels.ravel()[chosen.places] = original
    flat[chosen.places] = replace(original, chosen)
    return input_ids, labels
