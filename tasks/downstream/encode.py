"""Labelled rows as token batches, and a span model's tokens back as text. Run-time module.

    one text    [CLS] a [SEP]
    two texts   [CLS] a [SEP] b [SEP]           the longer one is cut at its end
                [CLS] b [SEP] a [SEP]           … and in the other order beside it, where asked for
    a question  [CLS] question [SEP] window [SEP]   a long context becomes overlapping windows (SQuAD)

A tokenizer without [CLS] begins with its start symbol if it has one (GPT-2's is its end symbol, T5 has none), and ends
texts with its end symbol.

Sequences are padded to the longest of their batch, and batches are made of sequences of like length,
so short sentences cost little.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from cluster.errors import BadConfig, BadData
from tasks.downstream.spec import Row

PAD_TO = 4
"""Lengths are rounded up to this: few distinct shapes, aligned products."""
LEAST_CONTEXT = 8
"""Tokens of the context that a window must have room for."""
GROUPED_BATCHES = 64
"""So many batches' worth of the shuffled order are sorted by length together, at most."""
LEAST_STRETCHES = 8
"""An epoch has at least so many that are sorted each: with few labels, length alone must not decide batches."""
STRIDE_SHARE = 0.5
"""Overlap of neighbouring windows of a long context, of the window's length."""
_MOST_QUESTION_TOKENS = 64
IGNORE = -100

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Feature:
    """One token sequence. A row is one feature, or for spans one a window.

    `label` is a class number or a score; `start`, `end` the answer's first and last token (−100: none here).
    `turned` is the pair in the other order. `first` is the place of the context's first token, `spans` the
    characters of the row's text_b that its tokens stand for.
    """

    row: int
    ids: list[int]
    boundary: int  # tokens of segment 0
    label: float = 0.0
    start: int = IGNORE
    end: int = IGNORE
    first: int = 0
    spans: tuple[tuple[int, int], ...] = ()
    turned: tuple[int, ...] = ()
    turned_boundary: int = 0


class Encoder:
    """A tokenizer artifact's folder (or a model's), with its special tokens.

    Raises BadData where the files are missing or the tokenizer has no separator.
    """

    def __init__(self, folder: Path, length_tokens: int) -> None:
        from tokenizers import Tokenizer

        try:
            info = json.loads((folder / "tokenizer-info.json").read_text(encoding="utf-8"))
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except FileNotFoundError as error:
            raise BadData(f"{Path(str(error.filename)).name}: not in the tokenizer's folder") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        special = info["special_tokens"]
        begin, end = (special.get(a, special.get(b)) for a, b in (("cls", "bos"), ("sep", "eos")))
        if end is None or special.get("pad") is None:
            raise BadData(
                f"the tokenizer has no token for {'padding' if end is not None else 'the end of a text'}",
                "fine-tuning needs [SEP] or an end symbol, and padding",
            )
        self.tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
        self.vocab_size = int(info["vocab_size"])
        self.sep, self.pad = int(end), int(special["pad"])
        self.begin = [] if begin is None or (begin == end and self._ends_alone()) else [int(begin)]
        self.between = self._between()
        self.length = length_tokens

    def _ends_alone(self) -> bool:
        """Whether the tokenizer's own template ends a text and begins it with nothing (T5's; GPT-2 has no template)."""
        ids = self.tokenizer.encode("a").ids
        return ids[-1:] == [self.sep] and ids[:1] != [self.sep]

    def _between(self) -> list[int]:
        """What parts two texts: as the tokenizer's own template says (GPT's delimiter, RoBERTa's two separators)."""
        template = self.tokenizer.encode("", "").ids
        if template[: len(self.begin)] == self.begin and template[-1:] == [self.sep]:
            template = template[len(self.begin) : -1]
        else:
            template = []
        return template or [self.sep]

    def texts(self, rows: Sequence[Row], both_orders: bool = False) -> list[Feature]:
        """Features of single texts or pairs, one a row, with the row's label; pairs `turned`, too, for both orders."""
        first = self._ids([row.text_a for row in rows])
        second = self._ids([row.text_b or "" for row in rows])
        features = []
        for number, row in enumerate(rows):
            paired = row.text_b is not None
            room = self.length - len(self.begin) - (len(self.between) if paired else 0) - 1
            a, b = cut_longer(first[number], second[number], room)
            ids = [*self.begin, *a, *([*self.between, *b] if paired else []), self.sep]
            feature = Feature(number, ids, len(self.begin) + len(a) + 1, row.label or 0.0)
            if paired and both_orders:
                turned = (*self.begin, *b, *self.between, *a, self.sep)
                feature = replace(feature, turned=turned, turned_boundary=len(self.begin) + len(b) + 1)
            features.append(feature)
        return features

    def spans(self, rows: Sequence[Row], training: bool) -> list[Feature]:
        """Windows over each row's context. In training only those that hold an answer whole, as labels.

        Raises BadConfig where length_tokens leaves no room for the context.
        """
        questions = self._ids([row.text_a for row in rows])
        contexts = self.tokenizer.encode_batch([row.text_b or "" for row in rows], add_special_tokens=False)
        features = []
        for number, row in enumerate(rows):
            question = questions[number][:_MOST_QUESTION_TOKENS]
            room = self.length - len(question) - len(self.begin) - len(self.between) - 1
            if room < LEAST_CONTEXT:
                raise BadConfig(
                    f"length_tokens is {self.length}, and a question takes {len(question)} tokens of it",
                    "raise length_tokens: the context needs room beside the question",
                )
            ids, offsets = contexts[number].ids, contexts[number].offsets
            answer = answer_tokens(offsets, row) if training else None
            first = len(self.begin) + len(question) + len(self.between)
            for low, high in windows(len(ids), room):
                start = end = IGNORE
                if training:
                    if answer is None or not low <= answer[0] <= answer[1] < high:
                        continue
                    start, end = answer[0] - low + first, answer[1] - low + first
                tokens = [*self.begin, *question, *self.between, *ids[low:high], self.sep]
                features.append(Feature(number, tokens, first, 0.0, start, end, first, tuple(offsets[low:high])))
        return features

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def cut_longer(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """Both lists cut at their ends to `room` items together, always from the longer one.

    >>> cut_longer([1, 2, 3, 4, 5], [6, 7], 5)
    ([1, 2, 3], [6, 7])
    """
    over = len(a) + len(b) - room
    if over <= 0:
        return a, b
    small = min(len(a), len(b), room // 2)
    if len(a) >= len(b):
        return a[: room - small], b[:small]
    return a[:small], b[: room - small]


def windows(length: int, room: int) -> Iterator[tuple[int, int]]:
    """Token ranges of at most `room` that cover `length` tokens, neighbours overlapping by `STRIDE_SHARE`.

    >>> list(windows(10, 4))
    [(0, 4), (2, 6), (4, 8), (6, 10)]
    """
    step = max(1, round(room * (1 - STRIDE_SHARE)))
    low = 0
    while True:
        yield low, min(length, low + room)
        if low + room >= length:
            return
        low += step


def answer_tokens(offsets: Sequence[tuple[int, int]], row: Row) -> tuple[int, int] | None:
    """First and last token that touch the row's first gold answer; None where it has none."""
    if not row.answers or not row.answers[0]:
        return None
    low = row.answer_starts[0]
    high = low + len(row.answers[0])
    touched = [place for place, (start, end) in enumerate(offsets) if end > low and start < high]
    return (touched[0], touched[-1]) if touched else None


def collate(features: Sequence[Feature], kind: str, pad: int, token_types: bool) -> Batch:
    """Arrays of B sequences padded to their longest, L: input_ids, attention_mask [B, L], and the labels of `kind`.

    Where pairs come in both orders, the other one's are `turned_input_ids` and so on.
    """
    batch = _padded([f.ids for f in features], [f.boundary for f in features], pad, token_types)
    B, L = batch["input_ids"].shape
    if features[0].turned:
        turned = _padded([f.turned for f in features], [f.turned_boundary for f in features], pad, token_types)
        batch |= {f"turned_{name}": array for name, array in turned.items()}
    if kind == "span":
        place_L = np.arange(L)[None, :]
        first = np.array([f.first for f in features])[:, None]
        last = np.array([f.first + len(f.spans) for f in features])[:, None]
        batch["answer_mask"] = (place_L >= first) & (place_L < last)
        batch["start_positions"] = np.array([f.start for f in features], np.int64)
        batch["end_positions"] = np.array([f.end for f in features], np.int64)
    else:
        batch["labels"] = np.array([f.label for f in features], np.float32 if kind == "regression" else np.int64)
    return batch


def _padded(sequences: Sequence[Sequence[int]], boundaries: Sequence[int], pad: int, token_types: bool) -> Batch:
    longest = max(len(ids) for ids in sequences)
    B, L = len(sequences), -(-longest // PAD_TO) * PAD_TO
    ids_BL, mask_BL = np.full((B, L), pad, np.int64), np.zeros((B, L), bool)
    for place, ids in enumerate(sequences):
        ids_BL[place, : len(ids)] = ids
        mask_BL[place, : len(ids)] = True
    found: Batch = {"input_ids": ids_BL, "attention_mask": mask_BL}
    if token_types:
        after = np.arange(L)[None, :] >= np.array(boundaries)[:, None]
        found["token_type_ids"] = (after & mask_BL).astype(np.int64)
    return found


@dataclass(frozen=True)
class Batches:
    """The stream of training batches: which features make step t is a pure function of (seed, t).

    An epoch is a permutation, cut into stretches of up to `GROUPED_BATCHES` batches that are sorted by length;
    the batches of an epoch then come in a shuffled order. Where the rows do not fill all batches, some are
    smaller by a row or few, so that no batch is left with too few rows to share among workers.
    """

    features: Sequence[Feature]
    batch_size: int
    seed: int

    @cached_property
    def per_epoch(self) -> int:
        return -(-len(self.features) // self.batch_size)

    @cached_property
    def _orders(self) -> dict[int, list[np.ndarray]]:
        return {}

    def of_step(self, step: int) -> list[Feature]:
        """The features of optimizer step `step` (0-based)."""
        return [self.features[i] for i in self.indices(step)]

    def indices(self, step: int) -> np.ndarray:
        """Which features they are."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = self._order(epoch)
        return self._orders[epoch][place]

    def _order(self, epoch: int) -> list[np.ndarray]:
        draw = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        order = draw.permutation(len(self.features))
        lengths = np.array([len(f.ids) for f in self.features])
        grouped = max(1, min(GROUPED_BATCHES, self.per_epoch // LEAST_STRETCHES))
        stretch = grouped * self.batch_size
        batches = []
        for low in range(0, len(order), stretch):
            part = order[low : low + stretch]
            part = part[np.argsort(lengths[part], kind="stable")]
            batches += np.array_split(part, -(-len(part) // self.batch_size))
        return [batches[i] for i in draw.permutation(len(batches))]


def best_span(start: np.ndarray, end: np.ndarray, longest: int) -> tuple[float, int, int]:
    """(score, first, last token) of the best span of at most `longest` tokens, from [L] logits (−inf: not allowed)."""
    L = len(start)
    score = start[:, None] + end[None, :]
    place = np.arange(L)
    apart = place[None, :] - place[:, None]
    score = np.where((apart >= 0) & (apart < longest), score, -np.inf)
    best = int(score.argmax())
    return float(score.flat[best]), best // L, best % L


def span_text(feature: Feature, row: Row, first: int, last: int) -> str:
    """The characters of the row's context between two tokens of a feature, both inclusive."""
    context = row.text_b or ""
    return context[feature.spans[first - feature.first][0] : feature.spans[last - feature.first][1]]
