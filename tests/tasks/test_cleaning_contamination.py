"""decontaminate: runs of words that evaluation texts have, against a plain search; and GPT-3's rules."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling.errors import ConfigError
from tasks.cleaning.contamination import Decontaminate
from tasks.cleaning.settings_corpus import DecontaminateSettings as Settings

QUESTION = "What is the name of the river that flows through the middle of the old city of Prague?"  # 18 words
SHORT = "one two three four five six seven eight nine"
EVALUATION = {
    "qa": [QUESTION, SHORT, "too short"],
    "other": ["nothing of this is in any of the texts that we look at here, of course"],
}


def step(evaluation: dict[str, list[str]] | None = None, **values: Any) -> Decontaminate:
    return Decontaminate(Settings(**values), EVALUATION if evaluation is None else evaluation)


def filler(words: int, name: str = "f") -> str:
    return " ".join(f"{name}{n}" for n in range(words))


def test_the_run_and_its_window_go() -> None:
    before, after = filler(100, "before"), filler(100, "after")
    text = f"{before}. {QUESTION} {after}"
    verdict = step().clean([text])[0]
    assert verdict.reason == "evaluation text taken out" and verdict.counts == {"qa: hits": 6}
    assert verdict.text is not None
    one, two = verdict.text.split("\n\n")
    assert before.startswith(one) and after.endswith(two)
    # 200 characters and the rest of the word that they end in
    assert 200 <= len(before) + 2 - len(one) <= 212 and 200 <= len(after) + 1 - len(two) <= 212
    assert step().clean([verdict.text])[0].text == verdict.text


@pytest.mark.parametrize(
    "text",
    [
        QUESTION.upper(),
        QUESTION.replace(" ", "\n  ").replace("?", " !!"),
        "so, " + " ".join(QUESTION.split()[3:16]),  # any 13 of its words
        SHORT.replace("three", "(three)"),  # a shorter text counts whole
    ],
)
def test_case_punctuation_and_white_space_hide_nothing(text: str) -> None:
    assert step(action="drop").clean([text])[0].text is None


@pytest.mark.parametrize(
    "text", ["", "too short", " ".join(QUESTION.split()[3:15]), " ".join(SHORT.split()[:8]), filler(99)]
)
def test_less_than_a_run_is_nothing(text: str) -> None:
    assert step(action="drop").clean([text])[0] == (text, "", {}, "")


def test_texts_too_short_to_look_for_are_counted() -> None:
    assert step().too_short == {"other": 0, "qa": 1}
    assert step(min_words=2).too_short == {"other": 0, "qa": 0}
    assert step(min_words=2, action="drop").clean(["this is too short"])[0].text is None


def test_pieces() -> None:
    def with_hits(hits: int, words: int) -> str:
        return f" {QUESTION} ".join(filler(words, f"part{n}x") for n in range(hits + 1))

    made = step()
    assert len(made.pieces(with_hits(9, 200))) == 10
    assert made.clean([with_hits(9, 200)])[0].text is not None
    assert made.clean([with_hits(10, 200)])[0][:2] == (None, "more than 10 pieces between evaluation texts")
    assert made.clean([with_hits(1, 10)])[0][:2] == (None, "nothing left beside evaluation texts")
    # the piece between two windows is too short to keep; the ends are not
    left = made.clean([f"{filler(200)} {QUESTION} {filler(90, 'g')} {QUESTION} {filler(200, 'h')}"])[0].text
    assert left is not None and "g" not in left and left.startswith("f0 ") and left.endswith(" h199")


def test_a_script_without_spaces() -> None:
    text = "春眠不覚暁処処聞啼鳥夜来風雨声花落知多少"
    made = step({"poems": [text]}, window_chars=5, min_piece_chars=1)
    verdict = made.clean(["雪" * 50 + text + "山" * 50])[0]
    assert verdict.counts == {"poems: hits": 8}
    assert verdict.text == "雪" * 45 + "\n\n" + "山" * 45


def test_min_hits_counts_runs() -> None:
    assert step(action="drop", min_hits=6).clean([QUESTION])[0].text is None
    assert step(action="drop", min_hits=7).clean([QUESTION])[0].text == QUESTION


def test_which_texts_were_hit() -> None:
    shared = {"b": ["x", QUESTION], "a": [QUESTION.lower()]}
    made = step(shared)
    text = f"{filler(30)} {QUESTION}"
    hits = made.hits(text)
    assert Counter((hit.task, hit.row) for hit in hits) == {("a", 0): 6, ("b", 1): 6}
    assert text[hits[0].start : hits[0].end] == " ".join(QUESTION.split()[:13])
    assert made.clean([text])[0].counts == {"a: hits": 6, "b: hits": 6}
    assert made.shown(text).startswith("[a, text 0 and 1 more: “What is the name")
    assert made.shown("harmless") == "harmless"


def test_no_evaluation_texts() -> None:
    for evaluation in ({}, {"empty": []}, {"short": ["a b"]}):
        assert step(evaluation).clean(["some text", ""]) == [("some text", "", {}, ""), ("", "", {}, "")]


def test_settings_that_cannot_be() -> None:
    with pytest.raises((ConfigError, ValueError), match="min_words 9 is more than words 5"):
        Settings(words=5, min_words=9)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12).map(" ".join)


@given(st.lists(WORDS, max_size=6), st.dictionaries(st.sampled_from(["s", "t"]), st.lists(WORDS, max_size=3)))
@settings(max_examples=150, deadline=None)
def test_hits_are_those_of_a_plain_search(texts: list[str], evaluation: dict[str, list[str]]) -> None:
    """Runs of 4 words, texts of 2 or 3 whole; a run counts once for each task that has it."""
    wanted: dict[tuple[str, ...], set[str]] = {}
    for task, rows in evaluation.items():
        for row in rows:
            words = row.split()
            length = min(4, len(words))
            for n in range(len(words) - length + 1) if length >= 2 else ():
                wanted.setdefault(tuple(words[n : n + length]), set()).add(task)
    expected = []
    for text in texts:
        words = text.split()
        runs = [tuple(words[n : n + length]) for length in (2, 3, 4) for n in range(len(words) - length + 1)]
        expected.append(Counter(f"{task}: hits" for run in runs for task in wanted.get(run, ())))
    verdicts = step(evaluation, words=4, min_words=2, action="drop").clean(texts)
    assert [Counter(verdict.counts) for verdict in verdicts] == expected
    assert [verdict.text is None for verdict in verdicts] == [bool(counts) for counts in expected]
