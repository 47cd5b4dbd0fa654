"""Words of many documents as 64-bit hashes: what MinHash and the search for contamination compare.

A word is what stands between white space, lower-cased, with punctuation and symbols deleted, as in the overlap search
of GPT-3 (Brown et al. 2020, appendix C). Ideographs, kana and the scripts of south-east Asia that put no spaces between
words count a character as a word, as BERT's tokenizer does for ideographs.

Documents are read as UTF-8, many at a time, by table look-ups and array arithmetic; no word becomes a Python object. A
word's hash is made of its bytes, eight at a time; that of n words w_1 … w_n is the polynomial sum w_i·M^(n-i) modulo
2^64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

GROUP = 1 << 16
"""Characters that are read at a time, whole documents: what fits the processor's cache."""
PIECE = 1 << 20
"""A longer document is read in pieces, cut at a space or a line's end; where there is none, in the middle of a word."""
LONG_WORD = 128
"""Bytes from which on a word is hashed by itself."""

_SEPARATOR, _DELETED, _BETWEEN = 0, 1, 0xFF  # bytes; the last stands between documents, and occurs in no UTF-8
_ALONE = 1 << 31
_M = 0xD1342543DE82EF95  # odd, so that multiplying by it loses nothing modulo 2^64


class Words(NamedTuple):
    """hashes: uint64 [W], of all documents; offsets: int64 [N + 1]: document d has words offsets[d]:offsets[d+1]."""

    hashes: Hashes
    offsets: Ints


class PlacedWords(NamedTuple):
    """Words of one text: hashes uint64 [W], and where they stand, in characters: text[starts[w]:ends[w]]."""

    hashes: Hashes
    starts: Ints
    ends: Ints


def word_hashes(texts: Sequence[str]) -> Words:
    """The words of `texts`, in order."""
    hashes: list[Hashes] = []
    counts = np.zeros(len(texts) + 1, dtype=np.int64)
    for first, group in _groups(texts):
        for parts in [group] if len(group) > 1 else ([piece] for piece in _pieces(group[0])):
            read = _read(parts)
            starts, lengths = _found(read)
            hashes.append(_hashed(read, starts, lengths))
            ends = np.searchsorted(starts, np.flatnonzero(read == _BETWEEN)[1:])
            counts[first + 1 : first + len(parts) + 1] += np.diff(ends, prepend=0)
    return Words(np.concatenate(hashes) if hashes else np.empty(0, np.uint64), np.cumsum(counts))


def placed_words(text: str) -> PlacedWords:
    """The words of one text with their places; slower, for the few documents where places matter."""
    starts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    begin = 0
    for piece in _pieces(text):
        codes = _table()[np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)]
        kept = np.flatnonzero(codes != _DELETED)
        codes = np.concatenate([[np.uint32(0)], codes[kept], [np.uint32(0)]])
        word, alone = codes != _SEPARATOR, codes >= _ALONE
        first = word[1:] & (~word[:-1] | alone[1:] | alone[:-1])
        last = word[:-1] & (~word[1:] | alone[1:] | alone[:-1])
        starts.append(begin + kept[np.flatnonzero(first[:-1])])
        ends.append(begin + kept[np.flatnonzero(last[1:])] + 1)
        begin += len(piece)
    return PlacedWords(word_hashes([text]).hashes, np.concatenate(starts), np.concatenate(ends))


def grams(words: Words, n: int, *, short: bool) -> Words:
    """Hashes of every `n` consecutive words of each document.

    Args:
        words: of N documents.
        n: words in a gram.
        short: a document of fewer words has one gram, all its words; without, it has none.
    """
    counts = np.diff(words.offsets)
    if not len(words.hashes):
        return words
    hashes = _polynomial(words.hashes, n)
    ends = words.offsets[1:]
    whole = np.ones(len(words.hashes), dtype=bool)
    for back in range(1, n):  # the last n - 1 words of a document begin no gram
        whole[ends[counts >= back] - back] = False
    made = np.maximum(counts - n + 1, 0)
    if short:
        for m in range(1, n):
            begins = words.offsets[:-1][counts == m]
            hashes[begins] = _short(words.hashes, begins, m)
            whole[begins] = True
        made[(counts > 0) & (counts < n)] = 1
    return Words(hashes[whole], np.concatenate([[0], np.cumsum(made)]))


def mixed(values: Hashes) -> Hashes:
    """A bijection of uint64 after which every bit depends on every bit (the finaliser of SplitMix64, Steele 2014)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


# ---------------------------------------------------------------- characters


@cache
def _table() -> np.ndarray[Any, np.dtype[np.uint32]]:
    """What a code point is: a separator, deleted, or the lower-case letter that it counts as. uint32 [1,114,112]."""
    from unicodedata import category

    table = np.arange(0x110000, dtype=np.uint32)
    for point in range(0x20000):
        kind = category(chr(point))
        if kind[0] == "Z" or kind == "Cc" or point == 0x200B or 0x2012 <= point <= 0x2015:  # dashes divide words
            table[point] = _SEPARATOR
        elif kind[0] in "PS" or kind == "Cf" or 0xFE00 <= point <= 0xFE0F:
            table[point] = _DELETED
        elif kind in ("Lu", "Lt") and len(lower := chr(point).lower()) == 1 and _bytes(lower) <= _bytes(chr(point)):
            table[point] = ord(lower)  # all but two, whose lower case would not fit in their place
    table[0xE0000:0xE1000] = _DELETED  # tags and variation selectors
    alone = [(0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)]
    alone += [(0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x20000, 0x3FFFF)]  # Thai, Lao, Burmese, Khmer
    for first, last in alone:
        part = table[first : last + 1]
        part[part > _DELETED] |= np.uint32(_ALONE)
    return table


def _bytes(character: str) -> int:
    return len(character.encode())


@cache
def _ascii() -> tuple[bytes, bytes]:
    """(what each byte becomes, bytes to delete), for `bytes.translate`; bytes of longer characters stay."""
    codes = _table()[:128]
    return bytes(codes.tolist()) + bytes(range(128, 256)), bytes(np.flatnonzero(codes == _DELETED).tolist())


def _read(texts: Sequence[str]) -> Bytes:
    """The letters of all texts as lower-case UTF-8; zeros are separators, `_BETWEEN` stands around each text."""
    table, delete = _ascii()
    edge = bytes([_BETWEEN])
    raw = edge + edge.join([text.encode("utf-8", "surrogatepass") for text in texts]) + edge
    if len(raw) == sum(map(len, texts)) + len(texts) + 1:  # all of it ASCII
        return np.frombuffer(raw.translate(table, delete), dtype=np.uint8)
    codes = np.frombuffer(bytearray(raw.translate(table)), dtype=np.uint8)
    alone = _longer(codes)
    if len(alone):
        codes = np.insert(codes, alone, _SEPARATOR)
    return np.frombuffer(codes.tobytes().translate(None, bytes([_DELETED])), dtype=np.uint8)


def _longer(codes: Bytes) -> Ints:
    """Replace characters of several bytes, in place, by what the table says; gives where words must be divided."""
    divide: list[Ints] = []
    lead = np.flatnonzero((codes >= 0xC0) & (codes != _BETWEEN))
    size = np.where(codes[lead] < 0xE0, 2, np.where(codes[lead] < 0xF0, 3, 4))
    for length in (2, 3, 4):
        at = lead[size == length]
        if not len(at):
            continue
        point = (codes[at] & (0x7F >> length)).astype(np.uint32)
        for n in range(1, length):
            point = (point << np.uint32(6)) | (codes[at + n] & 0x3F)
        becomes = _table()[point]
        alone = at[becomes >= _ALONE]
        divide += [alone, alone + length]
        other = np.flatnonzero((becomes != point) & (becomes < _ALONE))
        at, becomes = at[other], becomes[other]
        fixed = becomes <= _DELETED
        for n in range(length):
            codes[at[fixed] + n] = becomes[fixed]
        for place, point_ in zip(at[~fixed].tolist(), becomes[~fixed].tolist(), strict=True):
            codes[place : place + length] = _encoded(point_, length)
    return np.sort(np.concatenate(divide)) if divide else np.empty(0, np.int64)


@cache
def _encoded(point: int, length: int) -> Bytes:
    """A letter in UTF-8, in `length` bytes: what it does not need is deleted."""
    return np.frombuffer(chr(point).encode().ljust(length, bytes([_DELETED])), dtype=np.uint8)


# ---------------------------------------------------------------- words


def _groups(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Runs of documents of at most `GROUP` characters, or one."""
    first = size = 0
    for number, text in enumerate(texts):
        if number > first and size + len(text) > GROUP:
            yield first, texts[first:number]
            first, size = number, 0
        size += len(text)
    if first < len(texts):
        yield first, texts[first:]


def _pieces(text: str) -> Iterator[str]:
    """Pieces of at most `PIECE` characters, in order; cut by the text alone."""
    begin = 0
    while len(text) - begin > PIECE:
        cut = max(text.rfind(" ", begin, begin + PIECE), text.rfind("\n", begin, begin + PIECE)) + 1
        end = cut if cut > begin else begin + PIECE
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _found(read: Bytes) -> tuple[Ints, Ints]:
    """(starts, lengths) of the words, in bytes."""
    word = (read + np.uint8(1)) > 1  # neither a separator nor, by wrapping round, between documents
    turns = np.flatnonzero(word[1:] != word[:-1]) + 1
    return turns[::2], turns[1::2] - turns[::2]


_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)


def _hashed(read: Bytes, starts: Ints, lengths: Ints) -> Hashes:
    padded = np.concatenate([read, np.zeros(8, np.uint8)])
    # the eight bytes from every byte on, as numbers
    eights: Hashes = np.ndarray((len(read),), dtype="<u8", buffer=padded, strides=(1,))
    out = eights[starts] & _MASKS[np.minimum(lengths, 8)]
    out += lengths.astype(np.uint64)
    rest = np.flatnonzero(lengths > 8)
    done = 8
    while len(rest) and done < LONG_WORD:
        state = out[rest] * np.uint64(_M)
        state ^= state >> np.uint64(32)
        state += eights[starts[rest] + done] & _MASKS[np.minimum(lengths[rest] - done, 8)]
        out[rest] = state
        done += 8
        rest = rest[lengths[rest] > done]
    for word in rest.tolist():
        raw = read[starts[word] : starts[word] + lengths[word]].tobytes()
        out[word] = int.from_bytes(blake2b(raw, digest_size=8).digest(), "little")
    return mixed(out)


# ---------------------------------------------------------------- grams


def _polynomial(hashes: Hashes, n: int) -> Hashes:
    """sum over i < n of hashes[w + i]·M^(n-1-i), at every w but the last n - 1. By doubling: log2(n) passes."""
    made, length = hashes.copy(), 1
    for bit in bin(n)[3:]:
        made = _chained(made, length, made, length)
        length *= 2
        if bit == "1":
            made = _chained(made, length, hashes, 1)
            length += 1
    return made


def _chained(left: Hashes, length: int, right: Hashes, more: int) -> Hashes:
    out = left * np.uint64(pow(_M, more, 2**64))
    if length < len(left):
        out[:-length] += right[length:]
    return out


def _short(hashes: Hashes, begins: Ints, m: int) -> Hashes:
    out = np.zeros(len(begins), dtype=np.uint64)
    for i in range(m):
        out = out * np.uint64(_M) + hashes[begins + i]
    return out
