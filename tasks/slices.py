"""A corpus in slices of text, tokenised in parallel: what examples are made of.

A slice has 2 MB or more (or is the whole split), whatever the files' own batches, so that a random second segment of
next-sentence prediction has other documents to come from. Slices and all that is made of them depend on the corpus
alone, not on the number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.parallel import in_ray
from tasks.corpus_reader import read_batches
from tasks.encoding import bytes_of, load_encoder
from tasks.objectives.settings import Layout
from tasks.packing import Stream
from tasks.sentences import sentence_places

SLICE_BYTES = 2 << 20  # of text, at least


class Slice(NamedTuple):
    """Texts (an Arrow array of strings) and the number of the first in its split."""

    texts: Any
    first_document: int


class Piece(NamedTuple):
    """A slice, tokenised.

    stream: the documents with separators, empty for sentence pairs. pairs: columns of rows, for sentence pairs.
    counts: int64 [V], how often each token stands in it. size: bytes of text.
    document_tokens: int64 [documents], tokens of each one's text; with sentences none for a text of white space.
    """

    stream: Stream | None
    pairs: Mapping[str, np.ndarray] | None
    counts: np.ndarray
    size: int
    document_tokens: np.ndarray


class _Sentences(NamedTuple):
    """The sentences of a slice that have a token: ids of all, where each ends in them, and its document's number."""

    ids: np.ndarray
    ends: np.ndarray
    documents: np.ndarray


def slices(corpus: Path, split: str) -> Iterator[Slice]:
    """The slices of a split, in order; they travel to the worker, wherever that is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    held: list[Any] = []
    size = first_document = 0
    ready: list[Any] = []  # waits, so that a short rest can join it
    for batch in read_batches(corpus, split):
        texts = batch.column(0)
        ends = np.cumsum(pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int64))
        first = before = 0
        while first < len(texts):
            last = min(len(texts), int(np.searchsorted(ends, before + SLICE_BYTES - size)) + 1)
            held.append(texts.slice(first, last - first))
            size += int(ends[last - 1]) - before
            first, before = last, int(ends[last - 1])
            if size >= SLICE_BYTES:
                if ready:
                    joined = pa.concat_arrays(ready)
                    yield Slice(joined, first_document)
                    first_document += len(joined)
                ready, held, size = held, [], 0
    if ready or held:
        yield Slice(pa.concat_arrays(ready + held), first_document)


class Tokenise(NamedTuple):
    """Makes a `Piece` of a `Slice`; sent to the workers.

    Attributes:
        vocab_size: V.
        special_tokens: {role: id}.
        sentences: whether the stream says where sentences end.
        seed, short_share, copies: of sentence pairs; copies are different draws.
    """

    tokenizer_json: str
    vocab_size: int
    special_tokens: Mapping[str, int]
    layout: Layout
    sentences: bool = False
    seed: int = 0
    short_share: float = 0.0
    copies: int = 1

    def piece(self, slice_: Slice) -> Piece:
        """The slice, tokenised; runs in a worker."""
        if in_ray():
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core per Ray task; the tasks are the parallelism
        encoder = load_encoder(self.tokenizer_json)
        data, places = bytes_of(slice_.texts)
        documents, size = len(slice_.texts), len(data)
        if self.layout.pairs == "none" and not self.sentences:
            encoded = encoder.encode_bytes(data, places)
            ids, ends = encoded.ids.astype(self.dtype, copy=False), encoded.ends
            made = Stream(*self._separated(ids, ends))
            return Piece(made, None, self._counts(made.ids), size, np.diff(ends, prepend=0))
        sentences = self._sentences(data, places)
        lengths = np.diff(sentences.ends, prepend=0)
        tokens = np.bincount(sentences.documents, lengths, minlength=documents).astype(np.int64)
        if self.layout.pairs != "none":
            rows = self._pairs(_listed(sentences, documents), slice_.first_document)
            return Piece(None, rows, self._counts(sentences.ids), size, tokens)
        made = self._by_sentence(sentences)
        return Piece(made, None, self._counts(made.ids), size, tokens)

    @property
    def dtype(self) -> Any:
        """Of ids: uint16 where the vocabulary allows, otherwise uint32."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def _counts(self, ids: np.ndarray) -> np.ndarray:
        return np.bincount(ids, minlength=self.vocab_size)

    def _separated(self, ids: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, None, np.ndarray]:
        """The documents that end there with their separators, and where each ends then."""
        at = np.concatenate([[0], ends[:-1]]) if self.layout.separator_first and len(ends) else ends
        separator = self.special_tokens[self.layout.separator]
        return np.insert(ids, at, separator), None, ends + np.arange(1, len(ends) + 1)

    def _sentences(self, data: np.ndarray, places: np.ndarray) -> _Sentences:
        """The sentences of every document, without those that have no token."""
        bounds = places.tolist()
        texts = (data[begin:end].tobytes().decode() for begin, end in zip(bounds, bounds[1:], strict=False))
        full = np.array([not (text.isspace() or not text) for text in texts], dtype=bool)
        numbers = np.flatnonzero(full)
        if len(numbers) < len(full):
            sizes = np.diff(places)
            data, places = data[np.repeat(full, sizes)], np.concatenate([[0], np.cumsum(sizes[full])])
        places, documents = sentence_places(data, places)
        encoded = load_encoder(self.tokenizer_json).encode_bytes(data, places)
        held = np.flatnonzero(np.diff(encoded.ends, prepend=0))
        return _Sentences(encoded.ids.astype(self.dtype, copy=False), encoded.ends[held], numbers[documents[held]])

    def _by_sentence(self, sentences: _Sentences) -> Stream:
        """Every document that has a sentence with its separator, and where sentences and documents end."""
        last = np.flatnonzero(np.diff(sentences.documents, append=-1))  # sentences that end their document
        ids, _, document_ends = self._separated(sentences.ids, sentences.ends[last])
        before = np.searchsorted(last, np.arange(len(sentences.ends)))  # documents that ended before the sentence
        return Stream(ids, sentences.ends + before + self.layout.separator_first, document_ends)

    def _pairs(self, documents: list[list[np.ndarray]], first_document: int) -> dict[str, np.ndarray]:
        """Rows of sentence pairs, all copies one after another."""
        # Two names: the code digest follows names, and would take one name for one function.
        from tasks.objectives.nsp import pair_rows as next_sentence_rows
        from tasks.objectives.sop import pair_rows as sentence_order_rows

        pair_rows = next_sentence_rows if self.layout.pairs == "nsp" else sentence_order_rows
        made = [
            pair_rows(
                documents,
                self.layout.tokens,
                self.special_tokens,
                self.seed,
                copy,
                first_document,
                self.short_share,
                self.dtype,
            )
            for copy in range(self.copies)
        ]
        tokens, boundary, pair_label = (np.concatenate(each) for each in zip(*made, strict=True))
        copy = np.repeat(np.arange(self.copies, dtype=np.uint8), [len(each[0]) for each in made])
        return {"tokens": tokens, "boundary": boundary, "pair_label": pair_label, "copy": copy}


def _listed(sentences: _Sentences, documents: int) -> list[list[np.ndarray]]:
    """The sentences of every document, as views."""
    made: list[list[np.ndarray]] = [[] for _ in range(documents)]
    begin = 0
    for end, document in zip(sentences.ends.tolist(), sentences.documents.tolist(), strict=True):
        made[document].append(sentences.ids[begin:end])
        begin = end
    return made
