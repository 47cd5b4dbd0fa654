"""Span corruption (T5; Raffel et al. 2020, sections 3.1.4 and 3.3.4; details as in the authors' code).

Of a row of N tokens, n = round(noise_density · N) are noise (at least 1, at most N − 1), in k = round(n / mean_span)
spans (at least 1). Segments alternate non-noise, noise, …: the first token is never noise, the last always is. The
lengths of the k noise and of the k non-noise segments are each uniform over all ways to cut n, and N − n, into k
parts of at least one. In the inputs each span becomes one sentinel; the targets are each sentinel followed by its
span, without a last sentinel; both end with EOS. Sentinels are <extra_id_0>, <extra_id_1>, … in the order of the row.
As n and k are fixed, rows of `settings.raw_and_targets` tokens fill inputs and targets exactly. A shorter row (the
last of a split) has its own n and k, and is padded.

With `rolled` the pattern is turned by a random offset, so that the first token may be noise and the last need not. The
authors' code may cut a span in two by this, and then trims what no longer fits; here the offset is uniform over those
that cut none.

**Special tokens** in the row (separators of documents, [UNK]) stay in the inputs and are never noise. They part the
row into *stretches* of ordinary tokens, and each stretch is treated as T5 treats a row. So that the counts stay exact,
the row's k spans are shared out over the stretches in proportion to their lengths, then the n − k further noise tokens
in proportion to their spans and, where that is too much for a stretch, to the room that others have: by cumulative
rounding from a random phase. n and k are those of the whole row, N counting special tokens. Without a special token
this is T5's rule exactly. Where the stretches are too short for that, a row has less noise; one that would then not
fit the inputs is cut to their length first.

With `documents_apart` sentinels begin anew in each document, as if it were alone; EOS belongs to the last one.

Worked example (seed 0, epoch 0, index 1; asserted by a test). pad 0, EOS 1, sentinels 199, 198 …; 16 inputs,
noise_density 0.25, mean_span 2: 17 raw tokens, of which n = round(4.25) = 4 are noise, in k = 2 spans.

    tokens              11  12  13  14  15  16  17  18  19  20  21  22  23  24  25  26  27
    inputs              11  12  13  14  15  16 199  18  19  20  21  22  23  24 198   1
    targets            199  17 198  25  26  27   1

With documents_apart, two documents:

    tokens              11  12  13  14  15  16  17  18   1  21  22  23  24  25  26  27  28
    inputs              11  12  13  14  15  16 199   1  21  22  23  24  25  26 199   1
    targets            199  17  18 199  27  28   1
    input_segments       0   0   0   0   0   0   0   0   1   1   1   1   1   1   1   1
    target_segments      0   0   0   1   1   1   1
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cluster.errors import BadConfig
from tasks.objectives.base import Objective, Vocabulary, documents
from tasks.objectives.convert import ragged
from tasks.objectives.paired import PairedObjective
from tasks.objectives.philox import below, sample_words
from tasks.objectives.stretches import Stretches, is_ordinary, row_lengths, subsets

if TYPE_CHECKING:
    from tasks.objectives.settings import SpanCorruption as Settings

_CUTS, _ROLL = 0, 1  # random streams
_PHASES = 3  # words of a row that the sharing out takes


class SpanCorruption(PairedObjective):
    """The objective.

    Raises:
        BadConfig: the tokenizer has fewer sentinels than a row has spans, or a row cannot have that many spans.
    """

    settings: Settings
    block_tokens = 1 << 18  # its steps go with the spans of a row, not with the rows: larger blocks than others'

    def __init__(self, vocabulary: Vocabulary, settings: Settings, length_tokens: int) -> None:
        super().__init__(vocabulary, settings, length_tokens)
        raw, _ = settings.raw_and_targets(length_tokens)
        noise, spans = (int(count[0]) for count in self._budget(np.array([raw])))
        if spans > raw - noise:
            raise BadConfig(
                f"noise_density {settings.noise_density} with mean_span {settings.mean_span} makes {spans} spans of "
                f"{raw} tokens, and leaves only {raw - noise} tokens to stand between them",
                "lower noise_density or raise mean_span",
            )
        if spans > len(vocabulary.sentinels):
            raise BadConfig(
                f"length_tokens {length_tokens} with noise_density {settings.noise_density} and mean_span "
                f"{settings.mean_span} makes {spans} spans, the tokenizer has {len(vocabulary.sentinels)} sentinels",
                "raise mean_span, or use shorter rows",
            )
        self.widths = settings.lengths(length_tokens)
        self.columns = paired_columns(settings.documents_apart)

    def _draw(
        self, seed: int, tokens_BR: np.ndarray, epochs_B: np.ndarray, indices_B: np.ndarray
    ) -> dict[str, np.ndarray]:
        stretches = Stretches.of(is_ordinary(tokens_BR, self.vocabulary))
        lengths = row_lengths(tokens_BR, self.vocabulary.pad)
        noise_B, spans_B = self._budget(lengths)
        # Three phases of the sharing out; then for each span a cut of the noise and a cut of what is not.
        words = sample_words(seed, epochs_B, indices_B, _PHASES + 2 * int(spans_B.max(initial=0)), _CUTS)
        spans, noise = _shares(stretches, noise_B, spans_B, words)
        overlong = lengths + 1 + stretches.per_row(spans) - stretches.per_row(noise) > self.widths[0]
        if overlong.any():
            tokens_BR = tokens_BR.copy()
            tokens_BR[overlong, self.widths[0] - 1 :] = self.vocabulary.pad
            return self._draw(seed, tokens_BR, epochs_B, indices_B)
        first, end = _segmented(stretches, spans, noise, words)
        if self.settings.rolled:
            most = stretches.number.max(initial=0) + 1
            words = sample_words(seed, epochs_B, indices_B, int(most), _ROLL)[stretches.row, stretches.number]
            first, end = _rolled(stretches, first, end, spans, noise, words)
        shift = np.repeat(stretches.place - stretches.first, spans)
        return sentinel_form(tokens_BR, first + shift, end + shift, self, self.widths)

    def _budget(self, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(noise tokens, spans) int64 [B] of rows of these lengths."""
        noise = np.rint(lengths_B * self.settings.noise_density).astype(np.int64)
        noise = np.minimum(np.maximum(noise, 1), np.maximum(lengths_B - 1, 0))
        return noise, np.minimum(np.maximum(np.rint(noise / self.settings.mean_span).astype(np.int64), 1), noise)


# ---------------------------------------------------------------- how much noise, and where


def _shares(
    stretches: Stretches, noise_B: np.ndarray, spans_B: np.ndarray, words: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(spans, noise tokens) int64 [S] of each stretch: the row's, shared out, as far as there is room."""
    half = stretches.size // 2
    if len(half) == stretches.rows and not stretches.number.any():  # one stretch a row has it all, whatever the phases
        spans = np.minimum(spans_B, half)
        return spans, spans + np.where(spans > 0, np.minimum(noise_B - spans, stretches.size - 2 * spans), 0)
    spans = _shared_out(stretches, half, np.minimum(spans_B, stretches.per_row(half)), words[:, 0])
    room = np.where(spans > 0, stretches.size - 2 * spans, 0)
    more = noise_B - stretches.per_row(spans)
    longer = np.minimum(_shared_out(stretches, spans, more, words[:, 1]), room)
    more = np.minimum(more - stretches.per_row(longer), stretches.per_row(room - longer))
    return spans, spans + longer + _shared_out(stretches, room - longer, more, words[:, 2])


def _shared_out(stretches: Stretches, weights_S: np.ndarray, total_B: np.ndarray, words_B: np.ndarray) -> np.ndarray:
    """The rows' totals in proportion to weights, in whole numbers that add up: int64 [S].

    With W the weights' running sum, a stretch gets floor((W·total + phase) / all) after it, minus the same before it:
    no more than its weight where the total is no more than all.
    """
    all_B = stretches.per_row(weights_S)
    total, phase = np.where(all_B > 0, total_B, 0)[stretches.row], below(words_B, all_B)[stretches.row]
    after = np.cumsum(weights_S) - (np.cumsum(all_B) - all_B)[stretches.row]
    whole = np.maximum(all_B, 1)[stretches.row]
    return (after * total + phase) // whole - ((after - weights_S) * total + phase) // whole


def _segmented(
    stretches: Stretches, spans_S: np.ndarray, noise_S: np.ndarray, words: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(first, end) of the spans among the batch's ordinary tokens: non-noise, noise, non-noise, … in each stretch.

    Of a stretch's noise, and of its other tokens, a random subset ends a segment; their last always does.
    """
    kept_S = stretches.size - noise_S
    all_noise, total = int(noise_S.sum()), int(stretches.size.sum())
    sizes = np.concatenate([noise_S, kept_S])
    ends = np.cumsum(sizes)
    # A row's spans are numbered over its stretches, so that each has two words of its own.
    row_spans = stretches.per_row(spans_S)
    number = np.cumsum(spans_S) - spans_S - (np.cumsum(row_spans) - row_spans)[stretches.row]
    cuts = np.maximum(spans_S - 1, 0)
    word = _PHASES + 2 * number
    within = subsets(
        ends - sizes,
        np.maximum(sizes - 1, 0),
        np.concatenate([cuts, cuts]),
        total,
        words,
        np.concatenate([stretches.row, stretches.row]),
        np.concatenate([word, word + 1]),
        stride=2,
    )
    last = (ends if spans_S.all() else ends[np.tile(spans_S > 0, 2)]) - 1
    # Of all places few are ends: sorting them is less than looking at all.
    ascending = np.concatenate([within, last], dtype=np.int32 if total < 1 << 31 else np.int64, casting="unsafe")
    ascending.sort()
    ascending = ascending.astype(np.int64)
    noise_before = np.concatenate([[0], ascending[: len(ascending) // 2] + 1])
    # The tokens of both kinds up to a place are all tokens up to it, whatever stretch it is in.
    kept_before = ascending[len(ascending) // 2 :] - (all_noise - 1)
    return kept_before + noise_before[:-1], kept_before + noise_before[1:]


def _rolled(
    stretches: Stretches,
    first_K: np.ndarray,
    end_K: np.ndarray,
    spans_S: np.ndarray,
    noise_S: np.ndarray,
    words_S: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The spans, turned within each stretch: a random one of its inputs (a token or a span) begins it."""
    hidden = np.concatenate([[0], np.cumsum(end_K - first_K - 1)])  # tokens that the spans before take from the inputs
    counts = stretches.size - noise_S + spans_S
    begin = np.cumsum(counts) - counts + below(words_S, counts)
    begin += hidden[np.searchsorted(first_K - hidden[:-1], begin)] - stretches.first  # in tokens of the stretch
    low, size, begin = (np.repeat(of_stretch, spans_S) for of_stretch in (stretches.first, stretches.size, begin))
    turned = low + (first_K - low - begin) % size
    # No span is cut, so sorting both ends keeps them together.
    return np.sort(turned), np.sort(turned + end_K - first_K)


# ---------------------------------------------------------------- inputs and targets


def paired_columns(documents_apart: bool) -> tuple[str, ...]:
    """`Objective.columns` of an objective that draws inputs and targets."""
    return ("inputs", "targets", *(("input_segments", "target_segments") if documents_apart else ()))


def sentinel_form(
    tokens_BL: np.ndarray, first_K: np.ndarray, end_K: np.ndarray, objective: Objective, widths: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Each span as one sentinel in the inputs, spelled out behind its sentinel in the targets; both with EOS.

    Args:
        first_K, end_K: the spans, as places in the flattened tokens: ascending, not touching, without special tokens,
            in no row more than there are sentinels.
        widths: of inputs and targets; both fit.

    Returns:
        `inputs` and `targets`, with documents apart also their segments.
    """
    vocabulary, pad = objective.vocabulary, objective.vocabulary.pad
    B, L = tokens_BL.shape
    lengths = row_lengths(tokens_BL, pad)
    row, size = first_K // L, end_K - first_K
    spans_B = np.bincount(row, minlength=B)
    spelled_before = np.zeros(len(row) + 1, dtype=np.int64)  # targets before each span, a sentinel for each included
    np.cumsum(size + 1, out=spelled_before[1:])
    last_B = np.cumsum(spans_B)
    target_counts = spelled_before[last_B] - spelled_before[last_B - spans_B]

    flat = tokens_BL.astype(np.promote_types(tokens_BL.dtype, np.min_scalar_type(vocabulary.size))).ravel()
    group, segments = row, None
    if objective.settings.documents_apart:
        segments = documents(tokens_BL, vocabulary.eos)[0].ravel()
        group = row * L + segments[first_K]
    spans = np.arange(len(row))
    if group is row:
        number = spans - np.repeat(last_B - spans_B, spans_B)
    else:
        fresh = np.ones(len(row), dtype=bool)
        fresh[1:] = group[1:] != group[:-1]
        number = spans - np.maximum.accumulate(np.where(fresh, spans, 0))
    sentinel = np.asarray(vocabulary.sentinels, dtype=flat.dtype)[number]
    input_counts = lengths - target_counts + 2 * spans_B

    # The targets: of each span a slot for its sentinel, then the span.
    slot = spelled_before[:-1]
    source = np.repeat(first_K - 1 - slot, size + 1)
    source += np.arange(len(source))
    source[slot] = first_K
    spelled = flat.take(source)
    spelled[slot] = sentinel
    # The inputs: all but the tokens of each span after its first, which becomes the sentinel.
    keep = np.ones(B * L, dtype=bool)
    keep[source] = False
    keep[first_K] = True
    if lengths.min(initial=L) < L:
        keep &= (tokens_BL != pad).ravel()
    flat[first_K] = sentinel
    del source  # memory that the inputs can use at once: fresh pages cost more than the work

    drawn = {
        "inputs": ragged(flat[keep], input_counts, widths[0], pad, vocabulary.eos),
        "targets": ragged(spelled, target_counts, widths[1], pad, vocabulary.eos),
    }
    if segments is not None:
        last = segments.reshape(B, L)[np.arange(B), np.maximum(lengths - 1, 0)]
        of_targets = np.repeat(segments[first_K], size + 1)
        drawn["input_segments"] = ragged(segments[keep], input_counts, widths[0], last[:, None])
        drawn["target_segments"] = ragged(of_targets, target_counts, widths[1], last[:, None])
    return drawn
