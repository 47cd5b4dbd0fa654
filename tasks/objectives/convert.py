"""Inputs and targets become a model's batch: one arrangement per architecture (seqio's "feature converters";
Raffel et al. 2020, section 3.2.1, figures 3 and 4).

- *encoder-decoder*: the encoder reads the inputs; the decoder reads the targets shifted right, beginning with the
  pad id (T5), and predicts the targets.
- *prefix-lm*: one sequence, inputs and then targets without the inputs' padding, shifted right, beginning with the
  pad id. Loss on the targets only. Shifting puts the last input token at place len(inputs), so len(inputs) + 1
  places see each other fully; the last of them predicts the first target.
- *decoder*: the same sequence and labels, all of it causal.

With `documents_apart` each document of a row is arranged for itself: its own beginning with the pad id, its own
positions, its own visible prefix; in one sequence its targets follow its inputs, then comes the next document.

Worked example (asserted by a test), pad 0, end of text 1, sentinels 99 and 98:

    inputs   11 99 14  1  0          targets   99 12 13  1  0

    encoder-decoder                            prefix-lm, decoder
    input_ids          11 99 14  1  0          input_ids        0 11 99 14  1 99 12 13  1  0
    attention_mask      1  1  1  1  0          attention_mask   1  1  1  1  1  1  1  1  0  0
    decoder_input_ids   0 99 12 13  1          labels           .  .  .  . 99 12 13  1  .  .     (. = -100)
    decoder_attention…  1  1  1  1  0          prefix_mask      1  1  1  1  1  0  0  0  0  0     (prefix-lm only)
    labels             99 12 13  1  .
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cluster.errors import BadConfig
from tasks.objectives.base import IGNORED, Vocabulary

ARCHITECTURES = ("encoder-decoder", "prefix-lm", "decoder")
BLOCK_TOKENS = 1 << 15


def convert(
    drawn: Mapping[str, np.ndarray],
    architecture: str,
    vocabulary: Vocabulary,
    documents_apart: bool = False,
    width: int = 0,
) -> dict[str, np.ndarray]:
    """The batch for an architecture.

    Args:
        drawn: of a paired objective: `inputs` int64 [B, Li] and `targets` int64 [B, Lt], padded at the end;
            `input_segments`, `target_segments` (document number of each token, not descending) where documents
            are apart; `target_positions` int64 [B, Lt] where the decoder's positions are the text's own (MASS).
        architecture: one of `ARCHITECTURES`.
        documents_apart: arrange each document for itself.
        width: of the one sequence of prefix-lm and decoder; 0: Li + Lt. Less where the objective's inputs and
            targets share a length, as a cut row does (`tasks.objectives.prefix`).

    Returns:
        encoder-decoder: input_ids, labels (−100 at padding) and decoder_input_ids int64, attention_mask and
        decoder_attention_mask bool; with documents apart segment_ids, position_ids, decoder_segment_ids,
        decoder_position_ids int64; decoder_position_ids also where the objective has target_positions.
        prefix-lm, decoder: input_ids, labels int64 and attention_mask bool [B, width], prefix_mask bool for
        prefix-lm; with documents apart segment_ids, position_ids int64. Padding counts to the last document.

    Raises:
        BadConfig: an architecture that takes no inputs and targets.
        ValueError: a sequence is longer than `width`.
    """
    if architecture == "encoder-decoder":
        return _two_stacks(drawn, vocabulary.pad, documents_apart)
    if architecture in ARCHITECTURES:
        width = width or drawn["inputs"].shape[1] + drawn["targets"].shape[1]

        def arrange(*arrays: np.ndarray) -> dict[str, np.ndarray]:
            rows = dict(zip(drawn, arrays, strict=True))
            return _one_stack(rows, vocabulary.pad, documents_apart, width, architecture == "prefix-lm")

        return in_blocks(arrange, *drawn.values())
    raise BadConfig(
        f"architecture {architecture!r} takes no inputs and targets",
        f"train one of {', '.join(ARCHITECTURES)}, or choose an objective for {architecture!r}",
    )


def _two_stacks(drawn: Mapping[str, np.ndarray], pad: int, documents_apart: bool) -> dict[str, np.ndarray]:
    inputs, targets = drawn["inputs"], drawn["targets"]
    is_target = _present(targets, pad)
    batch = {
        "input_ids": inputs,
        "attention_mask": _present(inputs, pad),
        "decoder_input_ids": shifted(targets, pad),
        "decoder_attention_mask": is_target,
        "labels": np.where(is_target, targets, IGNORED),
    }
    if documents_apart:
        batch["segment_ids"], batch["decoder_segment_ids"] = drawn["input_segments"], drawn["target_segments"]
        batch["position_ids"] = positions(drawn["input_segments"])
        batch["decoder_position_ids"] = positions(drawn["target_segments"])
        batch["decoder_input_ids"][begins(drawn["target_segments"])] = pad
    if "target_positions" in drawn:
        batch["decoder_position_ids"] = drawn["target_positions"]
    return batch


def _present(tokens_BL: np.ndarray, pad: int) -> np.ndarray:
    """bool [B, L]: no padding, which stands at a row's end only."""
    if (tokens_BL[:, -1] != pad).all():
        return np.ones(tokens_BL.shape, dtype=bool)
    return tokens_BL != pad


def _one_stack(
    drawn: Mapping[str, np.ndarray], pad: int, documents_apart: bool, width: int, has_prefix: bool
) -> dict[str, np.ndarray]:
    inputs, targets = drawn["inputs"], drawn["targets"]
    from_inputs, from_targets = inputs != pad, targets != pad
    input_counts = np.count_nonzero(from_inputs, axis=1)
    counts = input_counts + np.count_nonzero(from_targets, axis=1)
    if (longest := counts.max(initial=0)) > width:
        raise ValueError(f"inputs and targets are {longest} tokens together, more than the width of {width}")
    places = np.arange(width)
    attention_mask = places < counts[:, None]
    batch: dict[str, np.ndarray] = {}
    if documents_apart:
        to_inputs, to_targets = _by_document(drawn, from_inputs, from_targets, width)
        sequence = np.full(attention_mask.shape, pad, dtype=np.int64)
        is_target = np.zeros(attention_mask.shape, dtype=bool)
        segments = np.zeros(attention_mask.shape, dtype=np.int64)
        for to, chosen, tokens, of_tokens in (
            (to_inputs, from_inputs, inputs, drawn["input_segments"]),
            (to_targets, from_targets, targets, drawn["target_segments"]),
        ):
            sequence.ravel()[to] = tokens[chosen]
            segments.ravel()[to] = of_tokens[chosen]
        is_target.ravel()[to_targets] = True
        batch["segment_ids"] = np.maximum.accumulate(segments, axis=1)
        batch["position_ids"] = positions(batch["segment_ids"])
        first = begins(batch["segment_ids"])
    else:
        both, keep = np.concatenate([inputs, targets], axis=1), np.concatenate([from_inputs, from_targets], axis=1)
        sequence = ragged(both[keep], counts, width, pad)
        is_target = (places >= input_counts[:, None]) & attention_mask
        first = places == 0
    batch["input_ids"] = np.where(first, pad, shifted(sequence, pad))
    batch["labels"] = np.where(is_target, sequence, IGNORED)
    batch["attention_mask"] = attention_mask
    if has_prefix:
        after_input = np.zeros(attention_mask.shape, dtype=bool)
        after_input[:, 1:] = ~is_target[:, :-1]
        batch["prefix_mask"] = (first | after_input) & attention_mask
    return batch


def _by_document(
    drawn: Mapping[str, np.ndarray], from_inputs: np.ndarray, from_targets: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where the input and the target tokens go, document by document: places in the flattened [B, width]."""
    of_inputs, of_targets = drawn["input_segments"], drawn["target_segments"]
    B, most = len(of_inputs), int(max(of_inputs.max(initial=0), of_targets.max(initial=0))) + 1
    rows = np.arange(B)[:, None]
    in_inputs, in_targets = (of_inputs + rows * most)[from_inputs], (of_targets + rows * most)[from_targets]
    inputs, targets = (np.bincount(of, minlength=B * most).reshape(B, most) for of in (in_inputs, in_targets))
    # Before an input token stand the targets of earlier documents, before a target also its own document's inputs.
    targets_before, inputs_before = np.cumsum(targets, axis=1) - targets, np.cumsum(inputs, axis=1)
    to_inputs = (rows * width + np.arange(of_inputs.shape[1]))[from_inputs] + targets_before.ravel()[in_inputs]
    to_targets = (rows * width + np.arange(of_targets.shape[1]))[from_targets] + inputs_before.ravel()[in_targets]
    return to_inputs, to_targets


# ---------------------------------------------------------------- rows of different lengths


def in_blocks(
    make: Callable[..., dict[str, np.ndarray]], *arrays: np.ndarray, tokens: int = BLOCK_TOKENS
) -> dict[str, np.ndarray]:
    """`make(*arrays)` by some rows at a time, where no row's result depends on another's.

    The many arrays in between then stay in the cache and use the same memory again; fresh pages of it would take
    longer than the work.

    Args:
        arrays: [B, …]; the first one's columns say how many rows a block of `tokens` has.
    """
    total, columns = arrays[0].shape
    rows = max(1, tokens // columns)
    if rows >= total:
        return make(*arrays)
    made: dict[str, np.ndarray] = {}
    for first in range(0, total, rows):
        part = make(*(array[first : first + rows] for array in arrays))
        if not made:
            made = {name: np.empty((total, *array.shape[1:]), dtype=array.dtype) for name, array in part.items()}
        for name, array in part.items():
            made[name][first : first + rows] = array
    return made


def ragged(
    values: np.ndarray, counts_B: np.ndarray, width: int, padding: int | np.ndarray, end: int | None = None
) -> np.ndarray:
    """Rows of `counts_B` values each, one after another in `values`, as int64 [B, width], padded at the end.

    Args:
        padding: one for all, or [B, 1].
        end: stands after each row's values, before the padding.
    """
    B = len(counts_B)
    out = np.empty((B, width), dtype=np.int64)
    count = int(counts_B[0]) if B else 0
    if (counts_B == count).all():
        out[:, :count] = values.reshape(B, count)
        out[:, count:] = padding
    else:
        out[:] = padding
        out[np.arange(width) < counts_B[:, None]] = values
    if end is not None:
        out[np.arange(B), counts_B] = end
    return out


def packed(
    values_BL: np.ndarray, keep_BL: np.ndarray, width: int, padding: int | np.ndarray, end: int | None = None
) -> np.ndarray:
    """What is kept of each row, as `ragged`."""
    return ragged(values_BL[keep_BL], np.count_nonzero(keep_BL, axis=1), width, padding, end)


def shifted(tokens_BL: np.ndarray, first: int) -> np.ndarray:
    """The tokens one place to the right, `first` before them; the last one falls out."""
    out = np.empty_like(tokens_BL)
    out[:, 0] = first
    out[:, 1:] = tokens_BL[:, :-1]
    return out


def begins(segments_BL: np.ndarray) -> np.ndarray:
    """bool [B, L]: the first token of each document."""
    out = np.ones(segments_BL.shape, dtype=bool)
    out[:, 1:] = segments_BL[:, 1:] != segments_BL[:, :-1]
    return out


def positions(segments_BL: np.ndarray) -> np.ndarray:
    """int64 [B, L]: places counted from 0 in each document."""
    places = np.arange(segments_BL.shape[1], dtype=np.int32)
    first = np.where(begins(segments_BL), places, np.int32(0))
    return np.subtract(places, np.maximum.accumulate(first, axis=1), dtype=np.int64)
