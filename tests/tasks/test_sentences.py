"""The sentence splitter: no character lost, abbreviations, quotes, blank lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. No came.  He left! (Why?)\n\nA title\n\nThe end.", 5),
        ("J. R. R. Tolkien wrote it in 1937. It sold.", 2),
        ('"Who?" he said. "I!" "You?"', 3),
        ("A cost of 3.5 dollars, e.g. this one, i.e. Mine. Next.", 2),
        ("He and I. Then we left.", 2),
        ("Wait ... what? Yes… Good.", 3),
        ("wrapped over\ntwo lines. and on", 1),
        ("one\n  \n  two", 2),
        ("第一句。第二句！「第三句？」完", 4),
        ("He sat. Then No. 5 came on Jan. 3, no. It left.", 3),
        ("No end", 1),
        ("", 0),
        (" \n\n ", 0),
    ],
)
def test_sentences(text: str, expected: int) -> None:
    found = split_sentences(text)
    assert len(found) == expected, found


def test_white_space_goes_to_the_sentence_after_it() -> None:
    assert split_sentences("One.  Two.\n") == ["One.", "  Two.\n"]
    assert split_sentences("  One.\n\nTwo") == ["  One.", "\n\nTwo"]


@given(st.text(alphabet=st.sampled_from("aB.!? \n\"')。…e1"), max_size=60))
def test_nothing_is_lost(text: str) -> None:
    found = split_sentences(text)
    assert "".join(found) == (text if text.strip() else "")
    assert all(each.strip() for each in found)
