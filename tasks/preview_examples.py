"""Examples of any objective as a person can read them: what the model sees, and below it what it must say.

    masked             red [MASK], yellow another token, green the token itself; what it was stands below
    replaced tokens    the same, before the generator has filled the places
    sentence pairs     the second segment in cyan, the label before the row
    permutation        targets in yellow, below them their place in the order
    inputs → targets   sentinels and masks in red, targets in green
    next token         the text: each token is what those before it must give
    word vectors       some centre words and the words around them; GloVe's pairs with their counts

A bar is where a document ends: ┃ where the model keeps documents apart, │ where it sees across. Special tokens are dim,
padding is left out. Without colours the labels below say the same. Which of these an example is shows in the columns of
its batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len
from rich.text import Text

if TYPE_CHECKING:
    import numpy as np

    from tasks.example_reader import ExampleReader

MOST_TOKENS = 384  # of a row
_CENTRES = 6  # of a row of word vectors
_PAIRS = 10
_SPANS = 6
_DOCUMENTS = 4


class Cell(NamedTuple):
    """A token, what stands below it, and its number."""

    text: str
    style: str = ""
    below: str = ""
    number: str = ""


def printable(text: str) -> str:
    """The text without characters that would move a terminal's cursor or change its colours."""
    return "".join(
        c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def heading(reader: ExampleReader) -> list[Text]:
    """What the examples are, and how to read them."""
    info, index = reader.info, reader.file.index
    masks = "static" if reader.static else "drawn on reading"
    facts = f"{index.rows:,} rows in {index.shards} shard{'s' * (index.shards != 1)}, masks {masks}, "
    packing = f"packing {info.get('packing', 'stream')}"
    return [
        Text.assemble((reader.settings.kind, "bold"), f"  {reader.length} tokens, {facts}{packing}"),
        _legend(reader),
    ]


def _legend(reader: ExampleReader) -> Text:
    kind = reader.settings.kind
    if reader.settings.paired:
        parts = [("masks and sentinels", "red"), ("targets", "green")]
    elif kind in ("mlm", "rtd"):
        parts = [("masked", "red"), ("another token", "yellow"), ("kept", "green"), ("below: what it was", "")]
        if getattr(reader.settings, "pairs", "none") != "none":
            parts.append(("second segment", "cyan"))
    elif kind == "permutation":
        parts = [("target", "yellow"), ("below: its place in the order", "")]
    elif kind in ("skip-gram", "cbow"):
        parts = [("centre word", "yellow"), ("the words around it", ""), ("negative samples", "dim")]
    elif kind == "glove":
        parts = [("pairs of words", ""), ("how often, by nearness", "dim")]
    else:
        parts = [
            ("each token is predicted from those before it" + " and those after it" * (kind == "bidirectional"), "")
        ]
    text = Text("  ")
    for number, (said, style) in enumerate([*parts, ("special", "dim")]):
        text.append(" · " if number else "", "dim").append(said, style)
    return text


def origin(reader: ExampleReader, row: int) -> Text:
    """Which row, and the documents that it is from."""
    text = Text(f"row {row:,}", "bold")
    found = reader.documents.of_row(row)
    if found:
        names = ", ".join(printable(document.id) for document in found[:_DOCUMENTS])
        more = f" and {len(found) - _DOCUMENTS} more" if len(found) > _DOCUMENTS else ""
        part = " (a part)" if len(found) == 1 and found[0].first_row != found[0].last_row else ""
        text.append(f"  from {names}{more}{part}", "dim")
    return text


def shown(reader: ExampleReader, batch: Mapping[str, np.ndarray], row: int, width: int, ids: bool) -> list[Text]:
    """Lines for one row of a batch.

    Args:
        width: of the terminal, in columns.
        ids: a line with the tokens' numbers too.
    """
    example = {name: column[row] for name, column in batch.items()}
    words = _Words(reader, ids)
    if "window" in example:
        return [*_laid(words.text(example), width), *_windows(words, example)]
    if "context_ids" in example:
        return _cooccurrences(words, example)
    if "decoder_input_ids" in example:
        inputs = words.text(example, replaced=True)
        targets = [
            words.cell(t, "red" if t in words.replacing else "green") for t in example["labels"].tolist() if t >= 0
        ]
        return [*_laid(inputs, width), Text("  ↓", "bold"), *_laid(targets, width)]
    if "ranks" in example:
        return _laid(words.text(example, below=[f"#{r}" if r >= 0 else "" for r in example["ranks"].tolist()]), width)
    if "labels" in example and reader.settings.kind != "causal":
        return _masked(words, example, width)
    return _laid(words.text(example), width)


class _Words:
    """Tokens by id, as cells."""

    def __init__(self, reader: ExampleReader, ids: bool) -> None:
        vocabulary, layout = reader.vocabulary, reader.settings.layout(reader.length)
        self.tokens = [printable(token) for token in vocabulary.tokens]
        self.special, self.pad, self.ids = vocabulary.special, vocabulary.pad, ids
        self.replacing = {*vocabulary.sentinels, vocabulary.special_tokens.get("mask", -1)}
        self.separator = -1 if layout.pairs != "none" else vocabulary.special_tokens[layout.separator]
        self.separator_first = layout.separator_first

    def cell(self, token: int, style: str = "", below: str = "") -> Cell:
        """A token, dim where it is special and has no colour of its own."""
        style = style or ("dim" if self.special[token] else "")
        return Cell(self.tokens[token] or f"<{token}>", style, below, str(token) if self.ids else "")

    def text(
        self,
        example: Mapping[str, np.ndarray],
        styles: Mapping[int, str] | None = None,
        below: Sequence[str] | None = None,
        replaced: bool = False,
    ) -> list[Cell]:
        """The tokens of a row without padding, with bars between documents.

        Args:
            styles: {place: colour}. below: for each place. replaced: masks and sentinels in red.
        """
        tokens, segments = example["input_ids"].tolist(), example.get("segment_ids")
        found: list[Cell] = []
        for place, token in enumerate(tokens):
            said = below[place] if below is not None else ""
            if token == self.pad and not said:
                continue
            if place and found and self._begins(tokens, place):
                apart = segments is not None and segments[place] != segments[place - 1]
                found.append(Cell("┃" if apart else "│", "bold magenta"))
            style = (styles or {}).get(place, "") or ("yellow" if said else "")
            found.append(self.cell(token, style or ("red" if replaced and token in self.replacing else ""), said))
        return found

    def _begins(self, tokens: list[int], place: int) -> bool:
        """Whether a document begins at a place."""
        if self.separator_first:
            return tokens[place] == self.separator
        return tokens[place - 1] == self.separator and not self.special[tokens[place]]


def _laid(cells: Sequence[Cell], width: int) -> list[Text]:
    """Cells in lines of the terminal's width; labels and numbers below their tokens."""
    left = len(cells) - MOST_TOKENS
    lines: list[Text] = []
    held: list[tuple[Cell, int]] = []
    used = 2
    for cell in cells[:MOST_TOKENS]:
        size = max(cell_len(cell.text), cell_len(cell.below), len(cell.number))
        if held and used + 1 + size > width:
            lines += _line(held)
            held, used = [], 2
        held.append((cell, size))
        used += size + (len(held) > 1)
    lines += _line(held) if held else []
    return [*lines, Text(f"  … {left:,} more tokens", "dim")] if left > 0 else lines


def _line(held: Sequence[tuple[Cell, int]]) -> list[Text]:
    top, below, numbers = Text(" "), Text(" "), Text(" ")
    for cell, size in held:
        top.append(" ").append(cell.text, cell.style).append(" " * (size - cell_len(cell.text)))
        below.append(" ").append(cell.below, "dim").append(" " * (size - cell_len(cell.below)))
        numbers.append(" ").append(f"{cell.number:<{size}}", "dim blue")
    found = [line for line in (top, below, numbers) if line is top or line.plain.strip()]
    for line in found:
        line.rstrip()
        line.no_wrap, line.overflow = False, "fold"
    return found


def _masked(words: _Words, example: Mapping[str, np.ndarray], width: int) -> list[Text]:
    tokens, labels = example["input_ids"].tolist(), example["labels"].tolist()
    second = example.get("token_type_ids")
    styles = {}
    for place, (token, label) in enumerate(zip(tokens, labels, strict=True)):
        if label >= 0:
            styles[place] = "red" if token in words.replacing else "green" if token == label else "yellow"
        elif second is not None and second[place] and not words.special[token]:
            styles[place] = "cyan"
    lines = [Text(f"  pair label {int(example['pair_labels'])}", "dim")] if "pair_labels" in example else []
    cells = words.text(example, styles, [words.tokens[label] if label >= 0 else "" for label in labels])
    return [*lines, *_laid(cells, width), *_boundaries(words, example)]


def _boundaries(words: _Words, example: Mapping[str, np.ndarray]) -> list[Text]:
    """The tokens around each span, from which the span-boundary objective predicts it."""
    if "boundary_offset" not in example:
        return []
    left, right = example["boundary_left"], example["boundary_right"]
    offset, ids = example["boundary_offset"], example["input_ids"]
    found = [
        f"{words.tokens[int(ids[left[place]])]} … {words.tokens[int(ids[right[place]])]}"
        for place in range(len(ids))
        if offset[place] == 1
    ]
    more = f"   and {len(found) - _SPANS} more" if len(found) > _SPANS else ""
    return [Text(f"  spans between: {'   '.join(found[:_SPANS])}{more}", "dim")] if found else []


def _windows(words: _Words, example: Mapping[str, np.ndarray]) -> list[Text]:
    ids, reach = example["input_ids"], example["window"].shape[1] // 2
    lines = []
    for centre in range(min(_CENTRES, int(example["attention_mask"].sum()))):
        around = [
            words.tokens[int(ids[centre + offset])]
            for offset in range(-reach, reach + 1)
            if example["window"][centre, offset + reach]
        ]
        noise = [words.tokens[i] for i in example["negatives"][centre].tolist() if i != words.pad]
        line = Text("    ").append(words.tokens[int(ids[centre])], "yellow").append(f" ← {' '.join(around)}")
        lines.append(line.append(f"  not {' '.join(noise)}", "dim"))
    return lines


def _cooccurrences(words: _Words, example: Mapping[str, np.ndarray]) -> list[Text]:
    line = Text(" ")
    for place in range(min(_PAIRS, int(example["attention_mask"].sum()))):
        pair = [words.tokens[int(example[name][place])] for name in ("input_ids", "context_ids")]
        line.append(" – ".join(["  " + pair[0], pair[1]])).append(
            f" {math.exp(example['log_counts'][place]):.1f}", "dim"
        )
    return [line]
