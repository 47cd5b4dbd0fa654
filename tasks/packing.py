"""Packers: a stream of tokens with separators becomes raw rows of one length, as an objective's `Layout` says.

    stream          the stream cut at equal lengths; loses no token; only the last row is padded
    full-sentences  rows of whole sentences, crossing documents (RoBERTa's FULL-SENTENCES, Liu et al. 2019, section 4.2)
    doc-sentences   the same, but a row holds one document only (DOC-SENTENCES)

Each gets the tokens piece by piece and gives the rows that are complete, so memory is bounded. A separator where a row
ends is left out if the row's own end is that token ([SEP] ends the row and the document), and with sentences also if
it does not fit any more. With `overlap` 1 a row begins with the last token of the one before, so that every token but
the first is a label once. A sentence longer than a row is cut.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tasks.objectives.settings import Layout


class Stream(NamedTuple):
    """Consecutive documents as tokens, each with its separator after or before it.

    ids: [N], uint16 or uint32. sentence_ends, document_ends: positions in `ids`, ascending int64, where a sentence's or
    a document's tokens (with its separator) end; the sentence packings need both.
    """

    ids: np.ndarray
    sentence_ends: np.ndarray | None = None
    document_ends: np.ndarray | None = None


def packer(packing: str, layout: Layout, special_tokens: Mapping[str, int], dtype: Any) -> StreamPacker:
    """The packer that `packing` names, giving rows of `dtype`."""
    if packing == "stream":
        return StreamPacker(layout, special_tokens, dtype)
    return SentencePacker(layout, special_tokens, dtype, cross_documents=packing == "full-sentences")


class StreamPacker:
    """Cuts a stream of tokens into rows of one length; loses none."""

    def __init__(self, layout: Layout, special_tokens: Mapping[str, int], dtype: Any) -> None:
        self.layout, self.dtype = layout, dtype
        self.begin = [special_tokens[role] for role in layout.begin]
        self.closing = [special_tokens[role] for role in layout.end]
        self.pad, self.separator = special_tokens["pad"], special_tokens[layout.separator]
        self.body = layout.tokens - len(self.begin) - len(self.closing)
        self.rest = np.empty(0, dtype=dtype)

    def add(self, stream: Stream) -> np.ndarray:
        """The rows that are full now: [N, layout.tokens]."""
        ids = np.concatenate([self.rest, stream.ids.astype(self.dtype, copy=False)])
        stride = self.body - self.layout.overlap
        full = max(0, (len(ids) - self.layout.overlap) // stride)
        if full:
            self.rest = ids[full * stride :]
            bodies = np.lib.stride_tricks.sliding_window_view(ids, self.body)[::stride][:full]
        else:
            self.rest, bodies = ids, np.empty((0, self.body), dtype=self.dtype)
        return self._framed(bodies)

    def end(self) -> np.ndarray:
        """The last, padded row: [1, layout.tokens], or [0, layout.tokens] where no token is left."""
        rest, self.rest = self.rest, self.rest[:0]
        if len(rest) <= self.layout.overlap:
            return self._framed(np.empty((0, self.body), dtype=self.dtype))
        return self._rows(rest, np.array([0]), np.array([len(rest)]))

    def _rows(self, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Rows of ids[start:end], padded; without the separator that the row's own end stands for."""
        if self.closing and self.closing[0] == self.separator:
            ends = ends - (ids[ends - 1] == self.separator)
        kept = ends > starts
        starts, lengths = starts[kept], (ends - starts)[kept]
        places = np.arange(self.body)
        bodies = ids[np.minimum(starts[:, None] + places, len(ids) - 1)]
        bodies[places >= lengths[:, None]] = self.pad
        return self._framed(bodies, lengths)

    def _framed(self, bodies: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
        """Bodies [N, body] with the tokens that every row begins and ends with."""
        count, first = len(bodies), len(self.begin)
        rows = np.empty((count, self.layout.tokens), dtype=self.dtype)
        rows[:, :first] = self.begin
        rows[:, first : first + self.body] = bodies
        rows[:, first + self.body :] = self.closing if lengths is None else self.pad
        if lengths is not None:
            for number, token in enumerate(self.closing):
                rows[np.arange(count), first + lengths + number] = token
        return rows


class SentencePacker(StreamPacker):
    """Fills rows with whole sentences, each row with as many as it holds."""

    def __init__(
        self, layout: Layout, special_tokens: Mapping[str, int], dtype: Any, cross_documents: bool = True
    ) -> None:
        super().__init__(layout, special_tokens, dtype)
        self.cross_documents = cross_documents
        self.breaks: list[int] = []  # where a row may end, and where one must; positions in `rest`
        self.stops: list[int] = []

    def add(self, stream: Stream) -> np.ndarray:
        """The rows that are complete now: [N, layout.tokens]."""
        assert stream.sentence_ends is not None and stream.document_ends is not None
        held = len(self.rest)
        ids = np.concatenate([self.rest, stream.ids.astype(self.dtype, copy=False)])
        breaks = np.concatenate([stream.sentence_ends, stream.document_ends])
        breaks.sort(kind="stable")  # two ascending runs: merged
        self.breaks += (breaks[np.diff(breaks, prepend=-1) > 0] + held).tolist()
        self.stops += (stream.document_ends + held).tolist()
        # A row is settled once the token after the fullest possible one is there.
        return self._pack(ids, len(ids) - self.body - 1)

    def end(self) -> np.ndarray:
        """The rows of what is left: [N, layout.tokens]."""
        return self._pack(self.rest, len(self.rest) - 1)

    def _pack(self, ids: np.ndarray, last_start: int) -> np.ndarray:
        starts: list[int] = []
        ends: list[int] = []
        breaks, stops, body, size = self.breaks, self.stops, self.body, len(ids)
        skipped = np.zeros(size + 1, dtype=bool)
        if not self.layout.separator_first:
            skipped[:-1] = ids == self.separator  # where a row would begin with what the end of the one before says
        begins = skipped.tobytes()
        start = reached = passed = 0  # the row's first token; breaks and documents up to there
        while start <= last_start:
            limit = min(start + body, size)
            if not self.cross_documents:
                passed = bisect_right(stops, start, passed)
                limit = min(limit, stops[passed])
            reached = bisect_right(breaks, limit, reached)
            # Where no sentence ends in reach, one longer than a row is cut.
            end = breaks[reached - 1] if reached and breaks[reached - 1] > start else limit
            starts.append(start)
            ends.append(end)
            start = end + begins[end]
        self.rest = ids[start:]
        self.breaks = [b - start for b in self.breaks[bisect_right(self.breaks, start) :]]
        self.stops = [s - start for s in self.stops[bisect_right(self.stops, start) :]]
        if not starts:
            return self._framed(np.empty((0, self.body), dtype=self.dtype))
        return self._rows(ids, np.array(starts), np.array(ends))
