"""Word counts, digests seen before, and field names, each against the plain way to do it."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import BadData
from tasks.sources.base import Piece, ReadOptions, Tally
from tasks.sources.fields import Fields
from tasks.sources.seen import Seen
from tasks.word_counts import word_counts

SPACES = [chr(code) for code in range(0x3001) if chr(code).isspace()]
CHARACTERS = st.sampled_from([*SPACES, "a", "é", "–", "中", "\u2010", "\u2027", "\u2030", "\u200b", "ꙮ", "😀"])


@settings(deadline=None)
@given(st.lists(st.text(CHARACTERS, max_size=12), max_size=8), st.integers(0, 3))
def test_word_counts_are_those_of_split(texts: list[str], skipped: int) -> None:
    array = pa.array(texts, pa.string()).slice(skipped)
    assert word_counts(array).tolist() == [len(text.split()) for text in texts[skipped:]]


def test_seen_finds_what_a_set_finds() -> None:
    rng = random.Random(1)
    pool = [bytes([0] * 7 + [rng.randrange(3)]) + rng.randbytes(1) * 8 for _ in range(400)]  # many equal high halves
    seen, known = Seen(), set()
    for _ in range(60):
        batch = rng.choices(pool, k=rng.randrange(1, 40))
        expected = []
        for digest in batch:
            expected.append(digest not in known)
            known.add(digest)
        assert seen.first(pa.chunked_array([pa.array(batch, pa.binary(16))])).tolist() == expected
    assert sum(len(high) for high, _ in seen.runs) == len(known) and len(seen.runs) < 10


def document(record: dict, **options: str):
    tally = Tally("p", ReadOptions(**options))
    return Fields(tally.options).document(record, Piece("f", "f"), 7, tally)


def test_text_of_several_and_of_inner_fields() -> None:
    record = {"title": "T", "body": {"text": "inner", "n": 1}, "body.text": "literal", "k": 3, "meta": {"url": "u"}}
    assert document(record, text_field="title,body.text").text == "T\n\nliteral"
    del record["body.text"]
    found = document(record, text_field="title, body.text", id_field="meta.url")
    assert (found.text, found.id, found.meta, found.line) == ("T\n\ninner", "u", '{"k": 3}', 7)
    assert document({"title": None, "text": "x"}, text_field="title,text").text == "x"


@pytest.mark.parametrize(
    ("name", "said"), [("titel,text", "no field 'titel'"), ("text.inner", "no field 'text.inner'"), ("n", "a number")]
)
def test_fields_that_are_not_there(name: str, said: str) -> None:
    with pytest.raises(BadData, match=said) as caught:
        document({"title": "T", "text": "x", "n": 1}, text_field=name)
    assert caught.value.message.startswith("f:7: ")
