"""Salient spans: numbers, dates and names (Guu et al. 2020, REALM, section 3.4), found by rules on pieces.

REALM finds names with a trained tagger and dates with a regular expression. Here rules on the tokenizer's
pieces find both, fast enough to do so as a batch is read. A *part* is a word, or within it a punctuation mark
or what follows one. Salient are

    numbers    parts that begin with a digit: 1990, 1990s, 21st
    months     January … December, but for March and May, which are verbs, too; those only as names
    names      parts that begin with a capital letter, but not the first of a sentence, and not "I"

and what joins two numbers (1,000; 3.5; 1990-95; March 3, 1990) or two names (Jean-Paul, J. Smith). Salient
neighbours are one span (15 March 1990; Marie Curie). A sentence begins after a special token, and after a mark
that ends one, which the point of an initial or a title does not (J. Smith, Mr. Smith); quotation marks and
brackets in between do not count. A vocabulary without capitals has no names.

Worked example of WordPiece (asserted by a test; ^ marks the spans):

    [CLS] In March 1990 , Marie Cur ##ie left Paris . She had 1 , 000 friends . [SEP]
             ^^^^^^^^^^   ^^^^^^^^^^^^^^      ^^^^^           ^^^^^^^
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

import numpy as np

from tasks.objectives.base import Vocabulary
from tasks.objectives.units import find_words

# What a piece can be, in bits.
_NUMBER, _MONTH, _NAME, _MARK, _ENDS, _CLEAR, _SHORT, _JOINS_NUMBERS, _JOINS_NAMES, _PRONOUN, _BARE = (
    np.uint16(1 << bit) for bit in range(11)
)
_WHOLE = _MONTH | _SHORT | _PRONOUN  # only where the piece is the whole part
_MONTHS = frozenset(
    ["january", "february", "april", "june", "july", "august", "september", "october", "november", "december"]
)
_TITLES = frozenset(
    ["Mr", "Mrs", "Ms", "Dr", "Prof", "St", "Sr", "Jr", "Gen", "Col", "Lt", "Capt", "Sen", "Rep", "Gov", "Rev", "Hon"]
)


class Pieces(NamedTuple):
    """What the tokens of a vocabulary are: kinds uint16 [V], in bits; begins_part bool [V]."""

    kinds: np.ndarray
    begins_part: np.ndarray


def salient_spans(tokens_BL: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All salient spans of a batch of rows.

    Args:
        tokens_BL: ids of any integer type.
        vocabulary: with `tokens`. What its pieces are is worked out at the first call and kept with it.

    Returns:
        row, start, end: int64 [S]; columns start … end - 1 of the row. Ascending and disjoint, none crosses a
        special token, and between two of a row there is at least one token.

    Raises:
        ValueError: the vocabulary comes without its tokens' spellings.
    """
    pieces, L = pieces_of(vocabulary), tokens_BL.shape[1]
    kinds_BL = np.take(pieces.kinds, tokens_BL)
    begins = np.take(pieces.begins_part, tokens_BL)
    begins[:, 1:] |= (kinds_BL[:, :-1] & _MARK) != 0
    parts = find_words(~np.take(vocabulary.special, tokens_BL), begins)
    # SentencePiece may split the space from its word: then the second piece says what the part is.
    kinds = kinds_BL.ravel()[parts.starts]
    sizes = parts.sizes
    bare = np.flatnonzero((kinds & _BARE != 0) & (sizes > 1))
    kinds[bare] = kinds_BL.ravel()[parts.starts[bare] + 1]
    sizes[bare] -= 1
    kinds[sizes > 1] &= ~_WHOLE

    salient = _salient(kinds, parts.begins_run)
    continues = np.zeros_like(salient)
    continues[1:] = salient[1:] & salient[:-1] & ~parts.begins_run[1:]
    last = salient.copy()
    last[:-1] &= ~continues[1:]
    starts, stops = parts.starts[salient & ~continues], parts.stops[last]
    rows = starts // L
    return rows, starts - rows * L, stops - rows * L


def _salient(kinds: np.ndarray, begins_run: np.ndarray) -> np.ndarray:
    """bool [parts], from what all parts are; begins_run: a special token or the row's start is before it."""
    is_short = np.zeros_like(begins_run)  # the part before is an initial or a title
    is_short[1:] = (kinds[:-1] & _SHORT != 0) & ~begins_run[1:]
    ends_sentence = kinds & _ENDS != 0
    of_short = ends_sentence & is_short
    # After a clear mark all is as it was before it, and at the start of a run a sentence begins.
    clear = kinds & _CLEAR != 0
    opens = np.where(clear, begins_run, ends_sentence & ~of_short)
    before = np.maximum.accumulate(np.where(clear & ~begins_run, 0, np.arange(len(kinds))))
    first = begins_run.copy()
    first[1:] |= opens[before][:-1]

    number = kinds & _NUMBER != 0
    name = (kinds & _NAME != 0) & (kinds & _PRONOUN == 0) & ~first
    salient = number | name | (kinds & _MONTH != 0)
    inside = ~begins_run[1:-1] & ~begins_run[2:]
    joins_numbers, joins_names = kinds & _JOINS_NUMBERS != 0, (kinds & _JOINS_NAMES != 0) | of_short
    for joins, kind in ((joins_numbers, number), (joins_names, name)):
        salient[1:-1] |= joins[1:-1] & kind[:-2] & kind[2:] & inside
    return salient


def pieces_of(vocabulary: Vocabulary) -> Pieces:
    """What each token is, by its spelling in WordPiece, byte-level BPE, SentencePiece or GPT-1's BPE.

    Kept in the vocabulary's own dictionary, as functools.cached_property would: 30,000 tokens take a while.
    """
    known = vars(vocabulary)
    if "_salience" not in known:
        if len(vocabulary.tokens) != vocabulary.size:
            raise ValueError(f"{vocabulary.size} tokens come with {len(vocabulary.tokens)} spellings")
        tokens = [token or "" for token in vocabulary.tokens]  # an id may be without a token
        byte_level = any(token.startswith("Ġ") for token in tokens)
        texts = [_text(token, byte_level) for token in tokens]
        kinds = np.array([_kind(text) for text in texts], dtype=np.uint16)
        kinds[vocabulary.special] = 0
        apart = np.array([bool(text) and not text[0].isalnum() for text in texts], dtype=bool)
        known["_salience"] = Pieces(kinds, vocabulary.starts_word | apart)
    return known["_salience"]


def _text(token: str, byte_level: bool) -> str:
    """A piece without its marks of where words begin, continue or end."""
    if byte_level:
        codes = [_BYTES.get(character) for character in token]
        if None not in codes:
            token = bytes(codes).decode("utf-8", errors="replace")  # type: ignore[arg-type]
    return token.removeprefix("##").removeprefix("▁").removesuffix("</w>").strip()


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE spells a byte as the character of that code where it prints, the others from 256 on."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in prints]
    return {chr(byte): byte for byte in prints} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_of_character()


def _kind(text: str) -> np.uint16:
    if not text:
        return _BARE
    kind = np.uint16(0)
    if not any(character.isalnum() for character in text):
        kind |= _MARK
        kind |= _ENDS if any(character in ".!?…。！？" for character in text) else kind
        quotes = all(c in "\"'`" or unicodedata.category(c) in ("Ps", "Pe", "Pi", "Pf") for c in text)
        kind |= _CLEAR if quotes else kind
        kind |= _JOINS_NUMBERS if text in (",", ".", "/", "-", "–", ":") else kind
        kind |= _JOINS_NAMES if text in ("-", "–", "'", "’") else kind
        return kind
    kind |= _NUMBER if text[0].isdigit() else kind
    kind |= _NAME if text[0].isupper() else kind
    kind |= _MONTH if text.lower() in _MONTHS else kind
    kind |= _SHORT if text in _TITLES or (len(text) == 1 and text.isupper()) else kind
    kind |= _PRONOUN if text == "I" else kind
    return kind
