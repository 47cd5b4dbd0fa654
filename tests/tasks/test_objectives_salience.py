"""Salient spans: the same text in four spellings, the marks of sentences, and what is masked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.objectives.base import IGNORED, Vocabulary
from tasks.objectives.mlm import MaskedLanguageModel
from tasks.objectives.salience import salient_spans
from tasks.objectives.settings import Masked

ROLES = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": 2, "eos": 3}


class Spelled:
    """Rows of pieces as a tokenizer of that kind spells them; `[X]` are special tokens."""

    def __init__(self, *rows: str, kind: str = "wordpiece", capitals: bool = True) -> None:
        pieces = [row.split() for row in rows]
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(["Zürich"] if capitals else [])]
        self.tokens = list(dict.fromkeys([*names, *(piece for row in pieces for piece in row)]))
        begins = {
            "wordpiece": lambda piece: not piece.startswith("##"),
            "bytes": lambda piece: piece.startswith("Ġ"),
            "sentencepiece": lambda piece: piece.startswith("▁"),
        }[kind]
        special = np.array([piece.startswith("[") and len(piece) > 1 for piece in self.tokens])
        starts = np.array([begins(piece) for piece in self.tokens])
        self.vocabulary = Vocabulary(len(self.tokens), ROLES, special, starts, tuple(self.tokens))
        self.length = max(map(len, pieces))
        ids = [[self.tokens.index(piece) for piece in row] for row in pieces]
        self.rows = np.array([row + [0] * (self.length - len(row)) for row in ids], dtype=np.uint16)

    def spans(self) -> list[str]:
        found = zip(*salient_spans(self.rows, self.vocabulary), strict=True)
        return [" ".join(self.tokens[token] for token in self.rows[row, start:end]) for row, start, end in found]


def test_worked_example() -> None:
    text = "[CLS] In March 1990 , Marie Cur ##ie left Paris . She had 1 , 000 friends . [SEP]"
    made = Spelled(text)
    assert made.spans() == ["March 1990", "Marie Cur ##ie", "Paris", "1 , 000"]
    from tasks.objectives import salience

    assert text in (salience.__doc__ or "")
    marks = next(line for line in (salience.__doc__ or "").splitlines() if "^^^" in line)[4:]
    shown, places = [], [0, *(place + 1 for place, letter in enumerate(text) if letter == " ")]
    for place, piece in zip(places, text.split(), strict=True):
        shown.append(piece if place < len(marks) and marks[place] == "^" else "|")
    assert [span.strip() for span in " ".join(shown).split("|") if span.strip()] == made.spans()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[CLS] the 21st of May [SEP]", ["21st", "May"]),
        ("[CLS] May I go ? In May , yes . April is over . [SEP]", ["May", "April"]),
        ("[CLS] March 3 , 1990 / 91 [SEP]", ["3 , 1990 / 91"]),
        ("[CLS] on April 3 , 1990 . [SEP]", ["April 3 , 1990"]),
        ("[CLS] a B , C and D - E [SEP] 5 [SEP] , 6 [SEP]", ["B", "C", "D - E", "5", "6"]),
        ("[CLS] by Mr . Smith and J . R . Smith . Then Smith left [SEP]", ["Mr . Smith", "J . R . Smith", "Smith"]),
        ("[CLS] he said . “ ( Yes ) ” . No ! “ I saw Rome ” [SEP]", ["Rome"]),
        ("[CLS] “ Yes , Rome ” [SEP]", ["Rome"]),
        ("[CLS] he and I . I , Claudius [SEP]", ["Claudius"]),
        ("[CLS] [UNK] Rome is . [UNK] x Rome [SEP]", ["Rome"]),
        ("[CLS] nothing here at all [SEP]", []),
        ("[CLS] April ##ia is near I ##an and S ##t . Smith [SEP]", ["I ##an", "S ##t"]),
        ("[CLS] [SEP]", []),
        ("Rome is a 3 . 5", ["3 . 5"]),
    ],
)
def test_rules(text: str, expected: list[str]) -> None:
    assert Spelled(text).spans() == expected


def test_rows_are_apart() -> None:
    assert Spelled("x 5", "6 7 Rome", "Rome x", "8").spans() == ["5", "6 7 Rome", "8"]


def test_other_spellings() -> None:
    """Marks belong to the word before them there, É is two bytes, and SentencePiece may cut a space off."""
    bytes_ = "[CLS] In ĠMarch Ġ1990 , ĠÃī mile Ġleft ĠParis . ĠMarie 's Ġ1 , 000 Ġfriends ĠMac beth . [SEP]"
    assert Spelled(bytes_, kind="bytes").spans() == ["ĠMarch Ġ1990", "ĠÃī mile", "ĠParis", "Ġ1 , 000", "ĠMac beth"]
    piece = "[CLS] ▁In ▁March ▁ 1990 , ▁Émile ▁left ▁ Paris . ▁ Marie ▁met ▁ Mac beth . ▁ [SEP]"
    assert Spelled(piece, kind="sentencepiece").spans() == ["▁March ▁ 1990", "▁Émile", "▁ Paris", "▁ Mac beth"]


def test_a_vocabulary_without_capitals_has_numbers_and_months() -> None:
    made = Spelled("[CLS] may i march in april 1990 with marie ? [SEP]", capitals=False)
    assert made.spans() == ["april 1990"]


def test_a_vocabulary_without_spellings_is_a_bug() -> None:
    made = Spelled("[CLS] Rome [SEP]").vocabulary
    silent = Vocabulary(made.size, ROLES, made.special, made.starts_word)
    with pytest.raises(ValueError, match="come with 0 spellings"):
        salient_spans(np.zeros((1, 4), dtype=int), silent)
    with pytest.raises(ValueError, match="come with 0 spellings"):
        MaskedLanguageModel(silent, Masked(unit="salient"), 4)


WORDS = ["Rome", "Paris", "1990", "the", "a", "of", ".", ",", "##ie", "April", "“", "Mr", "[SEP]"]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30), min_size=1, max_size=6),
    rate=st.floats(0.05, 0.9),
    seed=st.integers(0, 2**63 - 1),
)
def test_salient_spans_are_masked_whole(rows: list[list[str]], rate: float, seed: int) -> None:
    made = Spelled(*(" ".join(["[CLS]", *row, "[SEP]"]) for row in rows))
    found_rows, starts, ends = salient_spans(made.rows, made.vocabulary)
    salient = np.zeros(made.rows.shape, dtype=bool)
    for row, start, end in zip(found_rows, starts, ends, strict=True):
        assert 0 < start < end < made.length and not salient[row, start - 1 : end].any()
        salient[row, start:end] = True
    assert not made.vocabulary.special[made.rows[salient]].any()

    settings_ = Masked(unit="salient", mask_rate=rate)
    masks = MaskedLanguageModel(made.vocabulary, settings_, made.length)
    found = masks.draw(made.rows, seed, np.zeros(len(rows), int), np.arange(len(rows)))
    labelled = found["labels"] != IGNORED
    assert not (labelled & ~salient).any()
    left = np.array([max(1, round(float(n) * rate)) for n in (made.rows != 0).sum(1)]) - labelled.sum(1)
    assert (left >= 0).all()
    for row, start, end in zip(found_rows, starts, ends, strict=True):
        marks = labelled[row, start:end]
        assert marks.all() or not marks.any()
        if not marks.any():
            assert end - start > left[row], "a span that fits was left out"
