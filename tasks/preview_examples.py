"""Examples of any objective as a person can read them: rich markup, a few lines for each.

    masked             the token that the model sees, and ← the one to predict: red for a mask, yellow for another
                       token, green where it is kept
    sentence pairs     the second segment in cyan, the label before the row
    permutation        targets in yellow with their place in the order
    inputs → targets   what replaces text in red (sentinels, masks), targets in green
    next token         documents apart by a bar where the model keeps them apart
    word vectors       each centre word and the words around it; GloVe's pairs with their counts

Special tokens are dim, padding is left out. Which of these an example is shows in the columns of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from tasks.example_reader import ExampleReader

_CENTRES = 6  # of a row of word vectors
_PAIRS = 10


def shown(reader: ExampleReader, batch: Mapping[str, np.ndarray], row: int) -> list[str]:
    """Lines for one row of a batch."""
    example = {name: column[row] for name, column in batch.items()}
    words = _Words(reader)
    if "window" in example:
        return _windows(words, example)
    if "context_ids" in example:
        return _cooccurrences(words, example)
    if "decoder_input_ids" in example:
        targets = [words.plain(token, "green") for token in example["labels"].tolist() if token >= 0]
        return [f"  {words.text(example['input_ids'], red=True)}", f"  [bold]→[/] {' '.join(targets)}"]
    if "ranks" in example:
        return ["  " + " ".join(_ranked(words, example))]
    if "labels" in example and reader.settings.kind != "causal":
        return _masked(words, example)
    return ["  " + words.text(example["input_ids"], segments=example.get("segment_ids"))]


class _Words:
    """Tokens by id, as markup."""

    def __init__(self, reader: ExampleReader) -> None:
        from rich.markup import escape

        vocabulary = reader.vocabulary
        self.tokens = [escape(token) for token in vocabulary.tokens]
        self.special, self.pad = vocabulary.special, vocabulary.pad
        self.replacing = {*vocabulary.sentinels, vocabulary.special_tokens.get("mask", -1)}

    def plain(self, token: int, colour: str = "") -> str:
        """A token, dim where it is special and has no colour of its own."""
        colour = colour or ("dim" if self.special[token] else "")
        return f"[{colour}]{self.tokens[token]}[/]" if colour else self.tokens[token]

    def text(self, ids: np.ndarray, red: bool = False, segments: np.ndarray | None = None) -> str:
        """Tokens without padding; a bar between documents where `segments` are given."""
        found = []
        for place, token in enumerate(ids.tolist()):
            if token == self.pad:
                continue
            if segments is not None and place and segments[place] != segments[place - 1]:
                found.append("[bold magenta]┃[/]")
            found.append(self.plain(token, "red" if red and token in self.replacing else ""))
        return " ".join(found)


def _masked(words: _Words, example: Mapping[str, np.ndarray]) -> list[str]:
    second = example.get("token_type_ids")
    found = []
    for place, (token, label) in enumerate(zip(example["input_ids"].tolist(), example["labels"].tolist(), strict=True)):
        if label >= 0:
            colour = "red" if token in words.replacing else "green" if token == label else "yellow"
            found.append(f"{words.plain(token, colour)}[dim]←{words.tokens[label]}[/]")
        elif token != words.pad:
            in_second = second is not None and second[place] and not words.special[token]
            found.append(words.plain(token, "cyan" if in_second else ""))
    label = [f"  [dim]pair label {int(example['pair_labels'])}[/]"] if "pair_labels" in example else []
    return [*label, "  " + " ".join(found)]


def _ranked(words: _Words, example: Mapping[str, np.ndarray]) -> list[str]:
    return [
        f"{words.plain(token, 'yellow')}[dim]#{rank}[/]" if rank >= 0 else words.plain(token)
        for token, rank in zip(example["input_ids"].tolist(), example["ranks"].tolist(), strict=True)
        if token != words.pad
    ]


def _windows(words: _Words, example: Mapping[str, np.ndarray]) -> list[str]:
    ids, reach = example["input_ids"], example["window"].shape[1] // 2
    lines = ["  " + words.text(ids)]
    for centre in range(min(_CENTRES, int(example["attention_mask"].sum()))):
        around = [
            words.tokens[int(ids[centre + offset])]
            for offset in range(-reach, reach + 1)
            if example["window"][centre, offset + reach]
        ]
        noise = [words.tokens[i] for i in example["negatives"][centre].tolist() if i != words.pad]
        centre_word = words.tokens[int(ids[centre])]
        lines.append(f"    [yellow]{centre_word}[/] ← {' '.join(around)}  [dim]not {' '.join(noise)}[/]")
    return lines


def _cooccurrences(words: _Words, example: Mapping[str, np.ndarray]) -> list[str]:
    found = []
    for place in range(min(_PAIRS, int(example["attention_mask"].sum()))):
        pair = (int(example[name][place]) for name in ("input_ids", "context_ids"))
        count = math.exp(example["log_counts"][place])
        found.append(" – ".join(words.tokens[token] for token in pair) + f" [dim]{count:.1f}[/]")
    return ["  " + "   ".join(found)]
