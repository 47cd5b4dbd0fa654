"""Packers: no token lost, none doubled but the overlap, rows of whole sentences, documents apart where asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.objectives.settings import Layout
from tasks.packing import SentencePacker, Stream, StreamPacker, packer

ROLES = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": 2, "eos": 3}
LAYOUTS = {
    "bert": Layout(12, ("cls",), ("sep",), "sep"),
    "xlnet": Layout(12, (), ("sep", "cls"), "sep"),
    "bart": Layout(12, ("bos",), ("eos",), "eos"),
    "mass": Layout(12, (), ("eos",), "eos"),
    "t5": Layout(12),
    "causal": Layout(13, separator_first=True, overlap=1),
}
Documents = list[list[list[int]]]

documents_of = st.lists(
    st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=30), min_size=1, max_size=6), max_size=8
)


def stream(documents: Documents, layout: Layout) -> Stream:
    """The stream of documents, each a list of sentences."""
    ids: list[int] = []
    ends, stops = [], []
    for sentences in documents:
        if layout.separator_first:
            ids.append(3)
        for sentence in sentences:
            ids += sentence
            ends.append(len(ids))
        if not layout.separator_first:
            ids.append(3)
        stops.append(len(ids))
    return Stream(np.array(ids, dtype=np.uint16), np.array(ends, dtype=np.int64), np.array(stops, dtype=np.int64))


def rows_of(made: StreamPacker, documents: Documents, pieces: list[int]) -> np.ndarray:
    """All rows, the documents given in pieces that end before the numbers in `pieces`."""
    cuts = [0, *sorted({p for p in pieces if p < len(documents)}), len(documents)]
    rows = [made.add(stream(documents[a:b], made.layout)) for a, b in zip(cuts, cuts[1:], strict=False)]
    return np.concatenate([*rows, made.end()])


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=40, deadline=None)
@given(documents=documents_of, pieces=st.lists(st.integers(1, 8), max_size=3))
def test_the_stream_is_kept_token_for_token(name: str, documents: Documents, pieces: list[int]) -> None:
    layout = LAYOUTS[name]
    made = packer("stream", layout, ROLES, np.uint16)
    rows = rows_of(made, documents, pieces)
    begin, end = len(layout.begin), len(layout.end)
    flat = stream(documents, layout).ids.tolist()
    found: list[int] = []
    for number, row in enumerate(rows.tolist()):
        if number < len(rows) - 1:
            assert 0 not in row, "only the last row is padded"
        row = row[: row.index(0)] if 0 in row else row
        assert row[:begin] == made.begin and row[len(row) - end :] == made.closing
        body = row[begin : len(row) - end]
        if number and layout.overlap:
            assert body[0] == found[-1]
            body = body[1:]
        found += body
    # the last separator may be the row's own end; a lone token has nothing to predict
    assert found in ([flat, flat[:-1]] if layout.end else [flat] if len(flat) > layout.overlap else [[]])
    assert made.end().shape == (0, layout.tokens)


def greedy(documents: Documents, layout: Layout, cross: bool) -> list[list[int]]:
    """The bodies of rows by the plain definition: sentence by sentence."""
    body = layout.tokens - len(layout.begin) - len(layout.end)
    rows: list[list[int]] = [[]]
    for sentences in documents:
        if not cross and rows[-1]:
            rows.append([])
        for number, sentence in enumerate(sentences):
            tokens = ([3] if layout.separator_first and not number else []) + sentence
            if len(rows[-1]) + len(tokens) > body and rows[-1]:
                rows.append([])
            while len(tokens) > body:
                rows[-1] += tokens[:body]
                tokens = tokens[body:]
                rows.append([])
            rows[-1] += tokens
        if not layout.separator_first:
            if len(rows[-1]) < body:
                rows[-1].append(3)
            else:
                rows.append([])
    bodies = [row[:-1] if layout.end and row and row[-1] == 3 else row for row in rows]
    return [row for row in bodies if row]


@pytest.mark.parametrize("packing", ["full-sentences", "doc-sentences"])
@pytest.mark.parametrize("name", [n for n in LAYOUTS if not LAYOUTS[n].overlap] + ["separator first"])
@settings(max_examples=40, deadline=None)
@given(documents=documents_of, pieces=st.lists(st.integers(1, 8), max_size=3))
def test_rows_of_whole_sentences(packing: str, name: str, documents: Documents, pieces: list[int]) -> None:
    layout = LAYOUTS.get(name, Layout(12, separator_first=True))
    made = packer(packing, layout, ROLES, np.uint16)
    rows = rows_of(made, documents, pieces)
    expected = [
        (tokens := [*made.begin, *body, *made.closing]) + [0] * (layout.tokens - len(tokens))
        for body in greedy(documents, layout, packing == "full-sentences")
    ]
    assert rows.tolist() == expected


def test_roberta_rows() -> None:
    """Two documents of two sentences, rows of eight."""
    documents = [[[10, 11], [12]], [[13, 14], [15, 16, 17]]]
    layout = Layout(8, ("cls",), ("sep",), "sep")
    full = rows_of(SentencePacker(layout, ROLES, np.uint16), documents, [])
    assert full.tolist() == [[2, 10, 11, 12, 3, 13, 14, 3][:8], [2, 15, 16, 17, 3, 0, 0, 0]]
    apart = rows_of(SentencePacker(layout, ROLES, np.uint16, cross_documents=False), documents, [])
    assert apart.tolist() == [[2, 10, 11, 12, 3, 0, 0, 0], [2, 13, 14, 15, 16, 17, 3, 0]]


def test_causal_rows_share_a_token() -> None:
    made = StreamPacker(Layout(5, separator_first=True, overlap=1), ROLES, np.uint16)
    rows = rows_of(made, [[[10, 11, 12]], [[13, 14, 15]]], [])
    assert rows.tolist() == [[3, 10, 11, 12, 3], [3, 13, 14, 15, 0]]
