"""Texts to ids with a Hugging Face tokenizer: each distinct word is encoded once.

The bytes of many texts are cut into parts wherever the tokenizer is certain to cut (`tasks.encoding_rules`), in a few
array operations; Arrow's hash table finds the distinct ones; those that this process has not met yet go through the
tokenizer; the ids of all are then one gather. Natural text repeats its words, so nearly all of the work is the
arrays'. The ids are those of `encode_batch_fast` on the whole texts, exactly: a tokenizer whose parts are unknown, or
that fails the probe at loading, encodes whole texts.

What a process remembers is bounded, and only ever changes the speed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from tasks.encoding_bytes import byte_words
from tasks.encoding_rules import Rule, rule_of
from tasks.vocabulary import load_tokenizer

WINDOW_BYTES = 4 << 20  # of text that is worked on at once
MOST_PARTS = 1 << 19  # remembered
MOST_BYTES = 16 << 20  # of them, and as many ids
_LONGEST = 48  # bytes of a part that is remembered
_BATCH = 1024  # parts in one call of the tokenizer
_WHOLE_BYTES = 1 << 20  # of whole texts in one call
_MOST_MATCHED = 32  # added tokens that are looked for in texts

_NASTY = (
    # what the families treat in a way of their own
    *(" ", "  ", "\n", "\r\n", "\t", "\v", "\f", "\x00", "\x1c", "\x7f", "'", "'s", "'LL", "don't", '"', "|", "<", "="),
    *("a", "B", "the", "supercalifragilistic", "x" * 120, "0", "12345", "3.14", ".", ",", "...", "/", "-", "(", "_"),
    *("[MASK]", "##", "</w>", "▁", "Ġ"),
    # white space, marks and letters beyond ASCII
    *("\u00a0", "\u0085", "\u1680", "\u2003", "\u2028", "\u202f", "\u3000", "\u200b", "\u200d", "\u00ad", "\ufeff"),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "\u0338",
        "\u0600",
        "\u1100\u1161",
        "\ufffd",
        "´",
        "¨",
        "ſ",
        "İ",
        "ß",
        "½",
        "²",
        "٣",
        "Ⅷ",
    ),
    *("и", "в", "世", "界", "。", "䷀", "한", "ا", "े", "ก", "ﬁ", "“", "—", "…", "🙂", "👩\u200d🚀"),
)
"""What the probe makes texts of."""
_PROBES = 600


class Encoded(NamedTuple):
    """Ids of consecutive texts.

    ids: [N], uint16 where every id of the vocabulary fits, otherwise uint32. ends: int64 [texts], where each text ends.
    """

    ids: np.ndarray
    ends: np.ndarray


@lru_cache(maxsize=2)
def load_encoder(tokenizer_json: str) -> Encoder:
    """The encoder of a `tokenizer.json`, kept with what it remembers."""
    return Encoder(tokenizer_json)


class Encoder:
    """Encodes texts without adding special tokens; "[MASK]" in a text is text.

    Attributes:
        rule: how texts are cut; None where whole texts are encoded.
        dtype: of ids.
    """

    def __init__(self, tokenizer_json: str) -> None:
        self.tokenizer = load_tokenizer(tokenizer_json)
        highest = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        self.dtype: Any = np.uint16 if highest < 1 << 16 else np.uint32
        spec = json.loads(tokenizer_json)
        added = spec.get("added_tokens") or ()
        # Added tokens that are not special are matched in texts first, over any word's end.
        matched = [token for token in added if not token["special"]]
        self._matched = [token["content"].encode() for token in matched]
        hidden = bool(spec.get("normalizer")) and any(token.get("normalized", True) for token in matched)
        self.rule: Rule | None = None if hidden or len(matched) > _MOST_MATCHED else rule_of(spec)
        simple = self.rule.mixed_case if self.rule else None
        self._words = byte_words(spec, simple) if simple is not None else None
        self._forget()
        if self.rule is not None and not self._proved([token["content"] for token in added]):
            self.rule = None
        self._forget()

    def encode(self, texts: Any) -> Encoded:
        """The ids of an Arrow array of strings (`string` or `large_string`, without nulls)."""
        return self.encode_bytes(*bytes_of(texts))

    def encode_bytes(self, data: np.ndarray, places: np.ndarray) -> Encoded:
        """The ids of consecutive texts in UTF-8.

        Args:
            data: uint8 [N].
            places: int64 [texts + 1], ascending: where the texts begin, and N.
        """
        if self.rule is None:
            return self._whole(data, places)
        if not self._matched:
            return self._cut(data, places)
        holds = self._holds(data, places)
        turns = [0, *(np.flatnonzero(np.diff(holds)) + 1).tolist(), len(holds)]
        made = []
        for first, last in zip(turns, turns[1:], strict=False):
            part = data[places[first] : places[last]], places[first : last + 1] - places[first]
            made.append(self._whole(*part) if last > first and holds[first] else self._cut(*part))
        return _joined(made, self.dtype)

    def _holds(self, data: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Texts that an added token may be matched in: bool [texts]."""
        holds = np.zeros(len(places) - 1, dtype=bool)
        text = data.tobytes()
        for content in self._matched:
            at = text.find(content)
            while at >= 0:
                number = int(np.searchsorted(places, at, side="right")) - 1
                holds[number] = True
                at = text.find(content, int(places[number + 1]))
        return holds

    def _whole(self, data: np.ndarray, places: np.ndarray) -> Encoded:
        """By the tokenizer, text by text."""
        made: list[np.ndarray] = []
        texts: list[str] = []
        size = 0
        bounds = places.tolist()
        for begin, end in zip(bounds, bounds[1:], strict=False):
            texts.append(data[begin:end].tobytes().decode())
            size += end - begin
            if size >= _WHOLE_BYTES or end == bounds[-1]:
                encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                made += [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]
                texts, size = [], 0
        made += [np.empty(0, dtype=self.dtype)] * len(texts)
        lengths = np.array([len(each) for each in made], dtype=np.int64)
        return Encoded(np.concatenate([*made, np.empty(0, dtype=self.dtype)]), np.cumsum(lengths))

    def _cut(self, data: np.ndarray, places: np.ndarray) -> Encoded:
        """By parts, a window of text after the other; a window ends where a text does, or else where a part does."""
        assert self.rule is not None
        made: list[Encoded] = []
        begin = text = 0  # what is done: bytes, texts
        room = WINDOW_BYTES
        while text < len(places) - 1:
            last = int(np.searchsorted(places, begin + room, side="right")) - 1
            end = int(places[last]) if last > text else begin + room
            window = self.rule.plain(data[begin:end])
            inner = places[text + 1 : max(last, text) + 1] - begin
            starts = self.rule.starts(window, np.unique(np.concatenate([[0], inner, [end - begin]])))
            if last <= text:  # a text that goes on: its last part may, too
                if len(starts) == 1:
                    room *= 2
                    continue
                end, starts = begin + int(starts[-1]), starts[:-1]
            codes = self._codes(window[: end - begin], starts)
            ids, tokens = self._gathered(codes)
            made.append(Encoded(ids, tokens[np.searchsorted(starts, inner)]))
            self._bound()
            begin, text, room = end, max(last, text), WINDOW_BYTES
        return _joined(made, self.dtype)

    # ---------------------------------------------------------------- parts and what is known of them

    def _forget(self) -> None:
        self._known: dict[bytes, int] = {}  # part: its entry
        self._size = 0  # bytes of the parts
        self._entries = self._stored = 0
        self._starts = np.zeros(1 << 10, dtype=np.int64)  # by entry: where its ids begin
        self._lengths = np.zeros(1 << 10, dtype=np.int64)
        self._ids = np.zeros(1 << 12, dtype=self.dtype)
        self._uses = np.zeros(1 << 10, dtype=np.int32)  # by entry: windows that held it

    def _codes(self, data: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """The entry of every part: int64 [parts]."""
        import pyarrow as pa

        offsets = np.empty(len(starts) + 1, dtype=np.int32)
        offsets[:-1], offsets[-1] = starts, len(data)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))]
        coded = pa.Array.from_buffers(pa.binary(), len(starts), buffers).dictionary_encode()
        parts = coded.dictionary.to_pylist()
        entries = np.fromiter(map(self._known.get, parts, repeat(-1)), dtype=np.int64, count=len(parts))
        new = np.flatnonzero(entries < 0)
        if len(new):
            entries[new] = self._learn([parts[at] for at in new.tolist()])
        self._uses[entries] += 1
        return entries[coded.indices.to_numpy()]

    def _learn(self, parts: list[bytes]) -> np.ndarray:
        """Entries of parts that are not known."""
        first = self._entries
        texts = [part.decode() for part in parts]
        order: list[int] = []
        if self._words is not None:
            order = [number for number, text in enumerate(texts) if self._words.takes(text)]
            self._store(*self._words.encode([texts[number] for number in order]))
        taken = set(order)
        others = [number for number in range(len(texts)) if number not in taken]
        for at in range(0, len(others), _BATCH):
            batch = [texts[number] for number in others[at : at + _BATCH]]
            # As words that are cut already: one object for all, which says of each id whose it is.
            (made,) = self.tokenizer.encode_batch([batch], is_pretokenized=True, add_special_tokens=False)
            whose = np.array(made.word_ids, dtype=np.int64)
            self._store(np.array(made.ids, dtype=self.dtype), np.bincount(whose, minlength=len(batch)))
        order += others
        for entry, number in enumerate(order, first):
            part = parts[number]
            if len(part) <= _LONGEST:
                self._known[part] = entry
                self._size += len(part)
        entries = np.empty(len(parts), dtype=np.int64)
        entries[order] = np.arange(first, self._entries)
        return entries

    def _store(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        entries, stored = self._entries + len(lengths), self._stored + len(ids)
        self._starts, self._lengths = _grown(self._starts, entries), _grown(self._lengths, entries)
        self._uses = _grown(self._uses, entries)
        self._ids = _grown(self._ids, stored)
        self._lengths[self._entries : entries] = lengths
        self._starts[self._entries : entries] = self._stored + np.cumsum(lengths) - lengths
        self._ids[self._stored : stored] = ids
        self._entries, self._stored = entries, stored

    def _gathered(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids of these entries, one after another; int64 [entries + 1], ids before each and of all)."""
        lengths = self._lengths[codes]
        before = np.zeros(len(codes) + 1, dtype=np.int64)
        np.cumsum(lengths, out=before[1:])
        places = np.repeat(self._starts[codes] - before[:-1], lengths)
        places += np.arange(len(places))
        return self._ids[places], before

    def _bound(self) -> None:
        """Where too much is remembered, keep the half that most windows held."""
        if self._entries <= MOST_PARTS and self._size <= MOST_BYTES and self._stored <= MOST_BYTES:
            return
        parts = list(self._known)
        codes = np.fromiter(self._known.values(), dtype=np.int64, count=len(parts))
        codes = codes[order := np.argsort(-self._uses[codes], kind="stable")[: MOST_PARTS // 2]]
        (ids, _), lengths, uses = self._gathered(codes), self._lengths[codes], self._uses[codes]
        self._forget()
        kept = [parts[at] for at in order.tolist()]
        size = sum(map(len, kept))
        if len(ids) <= MOST_BYTES // 2 and size <= MOST_BYTES // 2:
            self._store(ids, lengths)
            self._known, self._size = {part: number for number, part in enumerate(kept)}, size
            self._uses[: len(uses)] = uses // 2

    def _proved(self, contents: Sequence[str]) -> bool:
        """Whether parts give the ids of the whole on texts that are hard to cut."""
        draw = random.Random(0)
        pieces = [*_NASTY, *contents[:32]]
        texts = ["", *pieces, *("".join(draw.choices(pieces, k=draw.randint(2, 12))) for _ in range(_PROBES))]
        encoded = [text.encode() for text in texts]
        places = np.cumsum([0, *map(len, encoded)])
        data = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        made, expected = self.encode_bytes(data, places), self._whole(data, places)
        return np.array_equal(made.ids, expected.ids) and np.array_equal(made.ends, expected.ends)


def bytes_of(texts: Any) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of an Arrow array of strings without nulls, not copied: uint8 [N]; their places, int64 [texts + 1]."""
    import pyarrow as pa

    wide = pa.types.is_large_string(texts.type) or pa.types.is_large_binary(texts.type)
    _, bounds, data = texts.buffers()
    if not len(texts) or bounds is None:
        return np.empty(0, dtype=np.uint8), np.zeros(len(texts) + 1, dtype=np.int64)
    places = np.frombuffer(bounds, dtype=np.int64 if wide else np.int32)
    places = places[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    first, last = int(places[0]), int(places[-1])
    found = np.frombuffer(data, dtype=np.uint8)[first:last] if last > first else np.empty(0, dtype=np.uint8)
    return found, places - first


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    """The array with room for `size` values."""
    if size <= len(array):
        return array
    larger = np.zeros(max(size, 2 * len(array)), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


def _joined(made: Sequence[Encoded], dtype: Any) -> Encoded:
    if len(made) == 1:
        return made[0]
    ids = np.concatenate([np.empty(0, dtype=dtype), *(each.ids for each in made)])
    before = np.cumsum([0, *(len(each.ids) for each in made)])
    ends = [each.ends + shift for each, shift in zip(made, before.tolist(), strict=False)]
    return Encoded(ids, np.concatenate([np.empty(0, dtype=np.int64), *ends]))
