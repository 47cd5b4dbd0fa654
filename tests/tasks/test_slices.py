"""Slices of a corpus as streams and pairs: as the plain definition gives them, document by document."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.objectives.settings import Layout
from tasks.sentences import sentence_places, split_sentences
from tasks.slices import Slice, Tokenise
from tasks.tokenizer import TOKENIZERS, special_ids
from tasks.tokenizers.base import TokenizerSettings
from tasks.vocabulary import load_tokenizer

TEXTS = [
    "Dr. No came.  He left! (Why?)\n\nA title\n\nThe end.",
    "第一句。第二句！ Ünïcode… Yes. no",
    "One two three.",
] * 3
AFTER = Layout(16, ("cls",), ("sep",), "sep")
FIRST = Layout(16, separator_first=True, separator="eos")


@lru_cache
def spelled(kind: str) -> str:
    return TOKENIZERS.load(kind)(TEXTS, TokenizerSettings(300, True, 1, 3)).to_str()


def tokenise(kind: str, layout: Layout, sentences: bool = False) -> Tokenise:
    tokenizer = load_tokenizer(spelled(kind))
    return Tokenise(spelled(kind), tokenizer.get_vocab_size(), special_ids(tokenizer), layout, sentences)


def whole(kind: str, text: str) -> list[int]:
    return load_tokenizer(spelled(kind)).encode(text, add_special_tokens=False).ids


texts_of = st.lists(
    st.one_of(st.sampled_from([*TEXTS, "", " ", "\n\n", "\x00", "\u00a0", "a"]), st.text(max_size=20)), max_size=6
)


@pytest.mark.parametrize("layout", [AFTER, FIRST])
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@settings(max_examples=40, deadline=None)
@given(texts=texts_of)
def test_every_document_with_its_separator(kind: str, layout: Layout, texts: list[str]) -> None:
    made = tokenise(kind, layout)
    piece = made.piece(Slice(pa.array(texts, pa.string()), 0))
    separator = made.special_tokens[layout.separator]
    documents = [whole(kind, text) for text in texts]
    framed = [[separator, *ids] if layout.separator_first else [*ids, separator] for ids in documents]
    assert piece.stream is not None and piece.stream.document_ends is not None
    assert piece.stream.ids.tolist() == sum(framed, []) and piece.stream.ids.dtype == np.uint16
    assert piece.stream.document_ends.tolist() == np.cumsum([len(ids) for ids in framed]).tolist()
    assert piece.document_tokens.tolist() == [len(ids) for ids in documents]
    assert piece.size == sum(len(text.encode()) for text in texts)
    assert piece.counts.tolist() == np.bincount(piece.stream.ids, minlength=made.vocab_size).tolist()


@pytest.mark.parametrize("layout", [AFTER, FIRST])
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@settings(max_examples=40, deadline=None)
@given(texts=texts_of)
def test_every_sentence_and_where_it_ends(kind: str, layout: Layout, texts: list[str]) -> None:
    """Sentences without a token, and documents without a sentence, are left out."""
    made = tokenise(kind, layout, sentences=True)
    piece = made.piece(Slice(pa.array(texts, pa.string()), 0))
    separator = made.special_tokens[layout.separator]
    ids: list[int] = []
    ends, stops, sizes = [], [], []
    for text in texts:
        sentences = [s for s in (whole(kind, sentence) for sentence in split_sentences(text)) if s]
        sizes.append(sum(map(len, sentences)))
        if not sentences:
            continue
        ids += [separator] if layout.separator_first else []
        for sentence in sentences:
            ids += sentence
            ends.append(len(ids))
        ids += [] if layout.separator_first else [separator]
        stops.append(len(ids))
    stream = piece.stream
    assert stream is not None and stream.sentence_ends is not None and stream.document_ends is not None
    assert (stream.ids.tolist(), stream.sentence_ends.tolist(), stream.document_ends.tolist()) == (ids, ends, stops)
    assert piece.document_tokens.tolist() == sizes


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(min_size=1).filter(str.strip), max_size=5))
def test_places_of_sentences_are_those_of_their_bytes(texts: list[str]) -> None:
    encoded = [text.encode() for text in texts]
    data = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    places, numbers = sentence_places(data, np.cumsum([0, *map(len, encoded)]))
    found = [data[a:b].tobytes().decode() for a, b in zip(places, places[1:], strict=False)]
    assert found == [sentence for text in texts for sentence in split_sentences(text)]
    assert numbers.tolist() == [n for n, text in enumerate(texts) for _ in split_sentences(text)]


def test_sentence_pairs_hold_the_sentences_of_the_slice() -> None:
    made = tokenise("wordpiece", Layout(16, pairs="nsp"))
    piece = made.piece(Slice(pa.array(TEXTS), 0))
    assert piece.stream is None and piece.pairs is not None
    rows = piece.pairs["tokens"]
    assert rows.shape[1] == 16 and len(rows) and set(piece.pairs) == {"tokens", "boundary", "pair_label", "copy"}
    assert piece.counts.sum() == piece.document_tokens.sum() == sum(len(whole("wordpiece", text)) for text in TEXTS)
