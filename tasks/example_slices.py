"""Slices of a corpus, tokenised, as saved shards: what is left of them when a stage is killed.

A worker makes a `Shard` of a slice (`SliceWork.shard`); the stage's own process reads it back (`read`), from memory or
from the scratch file that a run before it left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tasks.packing import Stream
from tasks.shards import Shard
from tasks.slices import Slice, Tokenise


class Tokenised(NamedTuple):
    """A slice as rows are made of it.

    stream: the documents with separators; None for sentence pairs. pairs: columns of rows, for sentence pairs.
    tokens, counts: how often (int64) which token (uint32) stands in it; tokens that do not are left out.
    size: bytes of text. document_tokens: int64 [documents], text tokens of each, separators left out.
    """

    stream: Stream | None
    pairs: Mapping[str, np.ndarray] | None
    tokens: np.ndarray
    counts: np.ndarray
    size: int
    document_tokens: np.ndarray


class SliceWork(NamedTuple):
    """Tokenises slices; sent to the workers."""

    tokenise: Tokenise

    def shard(self, slice_: Slice) -> Shard:
        """The slice as a table of one row of lists, and facts; runs in a worker."""
        piece = self.tokenise.piece(slice_)
        present = np.flatnonzero(piece.counts)
        columns: dict[str, np.ndarray] = {
            "tokens": present.astype(np.uint32),
            "counts": piece.counts[present].astype(np.int64),
        }
        facts: dict[str, Any] = {"size": piece.size}
        if piece.stream is not None:
            fields = zip(piece.stream._fields, piece.stream, strict=True)
            columns |= {f"stream.{name}": column for name, column in fields if column is not None}
            columns["document_tokens"] = self._text_tokens(piece.document_tokens, piece.stream)
        else:
            assert piece.pairs is not None
            columns["document_tokens"] = piece.document_tokens
            columns |= {f"pairs.{name}": column for name, column in piece.pairs.items()}
            facts["shapes"] = {name: list(column.shape) for name, column in piece.pairs.items()}
        return Shard(_table(columns), facts)

    @property
    def frame(self) -> np.ndarray:
        """bool [V]: tokens that frame rows and part documents, which are no text."""
        layout, ids = self.tokenise.layout, self.tokenise.special_tokens
        frame = np.zeros(self.tokenise.vocab_size, dtype=bool)
        frame[[ids[role] for role in ("pad", layout.separator, *layout.begin, *layout.end)]] = True
        return frame

    def _text_tokens(self, document_tokens: np.ndarray, stream: Stream) -> np.ndarray:
        """Text tokens of each document as rows show them: without such as frame rows, where a text has any.

        (A tokenizer whose unknown token is its end of text, say.)
        """
        text = ~self.frame[stream.ids]
        if np.count_nonzero(text) == int(document_tokens.sum()):
            return document_tokens
        assert stream.document_ends is not None
        before = np.concatenate([[0], np.cumsum(text)])
        tokens = np.diff(before[np.concatenate([[0], stream.document_ends])])
        # With sentences, a document without a token is not in the stream.
        there = slice(None) if len(tokens) == len(document_tokens) else np.flatnonzero(document_tokens)
        found = np.zeros(len(document_tokens), dtype=np.int64)
        found[there] = tokens
        return found


def read(shard: Shard) -> Tokenised:
    """What `SliceWork.shard` made, without copying."""
    table, facts = shard.table, shard.facts
    found = {name: table.column(name).chunk(0).values.to_numpy(zero_copy_only=True) for name in table.column_names}

    def below(prefix: str) -> dict[str, np.ndarray]:
        return {name[len(prefix) :]: column for name, column in found.items() if name.startswith(prefix)}

    pairs = below("pairs.")
    return Tokenised(
        stream=None if pairs else Stream(**below("stream.")),
        pairs={name: column.reshape(facts["shapes"][name]) for name, column in pairs.items()} or None,
        tokens=found["tokens"],
        counts=found["counts"],
        size=facts["size"],
        document_tokens=found["document_tokens"],
    )


def _table(columns: Mapping[str, np.ndarray]) -> Any:
    """A table of one row, each column a list: so that columns of any lengths fit, without copying."""
    import pyarrow as pa

    lists = {}
    for name, column in columns.items():
        values = pa.array(np.ascontiguousarray(column).reshape(-1))
        lists[name] = pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
    return pa.table(lists)
