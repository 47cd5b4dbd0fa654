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
from tasks.objectives.settings import Layout
from tasks.packing import Stream
from tasks.sentences import split_sentences
from tasks.vocabulary import load_tokenizer

SLICE_BYTES = 2 << 20  # of text, at least


class Slice(NamedTuple):
    """Texts (an Arrow array of strings) and the number of the first in its split."""

    texts: Any
    first_document: int


class Piece(NamedTuple):
    """A slice, tokenised.

    stream: the documents with separators, empty for sentence pairs. pairs: columns of rows, for sentence pairs.
    counts: int64 [V], how often each token stands in it. size: bytes of text.
    """

    stream: Stream | None
    pairs: Mapping[str, np.ndarray] | None
    counts: np.ndarray
    size: int


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
        import pyarrow.compute as pc

        if in_ray():
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core per Ray task; the tasks are the parallelism
        texts = slice_.texts.to_pylist()
        size = pc.sum(pc.binary_length(slice_.texts)).as_py() or 0
        if self.layout.pairs != "none":
            documents = self._sentences(texts)
            ids = [sentence for document in documents for sentence in document]
            rows = self._pairs(documents, slice_.first_document)
            return Piece(None, rows, self._counts(ids), size)
        stream = self._by_sentence(self._sentences(texts)) if self.sentences else self._whole(texts)
        return Piece(stream, None, self._counts([stream.ids]), size)

    @property
    def dtype(self) -> Any:
        """Of ids: uint16 where the vocabulary allows, otherwise uint32."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def _counts(self, ids: list[np.ndarray]) -> np.ndarray:
        joined = np.concatenate(ids) if ids else np.empty(0, dtype=np.int64)
        return np.bincount(joined, minlength=self.vocab_size)

    def _encode(self, texts: list[str]) -> list[Any]:
        return load_tokenizer(self.tokenizer_json).encode_batch_fast(texts, add_special_tokens=False)

    def _whole(self, texts: list[str]) -> Stream:
        """Every document with its separator."""
        separator, first = self.special_tokens[self.layout.separator], self.layout.separator_first
        ids: list[int] = []
        for encoding in self._encode(texts):
            if first:
                ids.append(separator)
            ids += encoding.ids
            if not first:
                ids.append(separator)
        return Stream(np.array(ids, dtype=self.dtype))

    def _sentences(self, texts: list[str]) -> list[list[np.ndarray]]:
        """The sentences of every document, without empty ones."""
        split = [split_sentences(text) for text in texts]
        encoded = iter(self._encode([sentence for document in split for sentence in document]))
        dtype = self.dtype
        arrays = [[np.array(next(encoded).ids, dtype=dtype) for _ in document] for document in split]
        return [[sentence for sentence in document if len(sentence)] for document in arrays]

    def _by_sentence(self, documents: list[list[np.ndarray]]) -> Stream:
        """Every document that has a sentence with its separator, and where sentences and documents end."""
        separator = np.array([self.special_tokens[self.layout.separator]], dtype=self.dtype)
        before, after = ([separator], []) if self.layout.separator_first else ([], [separator])
        parts: list[np.ndarray] = []
        ends: list[int] = []  # numbers of parts
        stops: list[int] = []
        for document in filter(None, documents):
            parts += before
            for sentence in document:
                parts.append(sentence)
                ends.append(len(parts))
            parts += after
            stops.append(len(parts))
        sizes = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        ids = np.concatenate(parts) if parts else np.empty(0, dtype=self.dtype)
        return Stream(ids, sizes[np.array(ends, dtype=int)], sizes[np.array(stops, dtype=int)])

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
