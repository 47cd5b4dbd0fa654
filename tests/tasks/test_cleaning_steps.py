"""What holds for every step on single documents, whatever the text."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.cleaning import STEPS
from tasks.cleaning.settings import parse
from tests.tasks.cleaned import step
from tests.tasks.corpora import prose

KINDS = [kind for kind in STEPS if not parse(kind).compares and not parse(kind).needs_evaluation]
ODD = [
    "",
    " ",
    "\n",
    "\n\n\n",
    "\x00",
    "\ufeff",
    "a",
    "\u3000x",
    "&#0; &#xD800; &#x110000;",
    "{" * 99,
    "é" * 5000,
    "\r\r\n",
]

characters = st.characters(exclude_categories=["Cs"])
texts = st.one_of(
    st.text(characters, max_size=80),
    st.lists(st.sampled_from([*ODD, prose(1), "Home", "ann@example.org", "1.2.3.4", "—", "...", "•"]), max_size=9).map(
        "\n".join
    ),
)


@functools.cache
def made(kind: str) -> Any:
    return step(kind)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(st.lists(texts, max_size=5))
def test_every_text_gets_its_verdict(kind: str, given_texts: list[str]) -> None:
    verdicts = made(kind).clean(given_texts)
    assert len(verdicts) == len(given_texts)
    for text, verdict in zip(given_texts, verdicts, strict=True):
        if verdict.text == text:
            assert not verdict.reason, "what is untouched has no reason"
        else:
            assert verdict.reason
            (verdict.text or "").encode()  # no half of a surrogate pair
        assert all(isinstance(n, int) and n > 0 for n in verdict.counts.values())
        (alone,) = made(kind).clean([text])
        assert alone == verdict, "a document's neighbours do not matter"


@pytest.mark.parametrize("kind", KINDS)
def test_no_documents_no_verdicts(kind: str) -> None:
    assert made(kind).clean([]) == []
    assert len(made(kind).clean(ODD)) == len(ODD)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unicode"])
def test_what_a_step_left_it_leaves(kind: str) -> None:
    """`unicode` may decode an escape into a "<", which then stands for HTML."""
    page = "\n".join(["Home", "News", "Login", "Share", prose(3), "Share on Facebook", "ann@example.org.", "***\x00"])
    (once,) = made(kind).clean([page + prose(4, 30)])
    assert once.text is not None
    assert made(kind).clean([once.text])[0].text == once.text
