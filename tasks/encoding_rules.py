"""Where a text can be cut so that the tokens of the parts are the tokens of the whole.

A tokenizer's pre-tokeniser cuts a text into words and encodes each word by itself. So a text can be cut in advance
wherever the pre-tokeniser is certain to cut, if neither side's own cuts change by it. A rule says where, from the bytes
before, at and after a place alone, so that it runs over megabytes in a few array operations. Rules are conservative:
a place that would need Unicode's tables has no cut, which costs speed only. `rule_of` recognises the families:

    byte-level      GPT-2's pattern, and those of cl100k (Llama 3, Qwen 2) and o200k
    bert            BertPreTokenizer
    words           WhitespaceSplit first, then anything that looks at one word (T5's, ALBERT's)
    metaspace       Metaspace that cuts at each space
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LETTER, DIGIT, PUNCT, QUOTE, SPACE, LINE, TAB, WIDE = (1 << bit for bit in range(8))
"""Classes of bytes. QUOTE: the apostrophe, which contractions begin with. LINE: \\r and \\n. WIDE: of a character
beyond ASCII, as each rule says. Control characters have none: nothing is certain beside them."""

_BLOCK = 1 << 18  # bytes that the arrays of a rule cover, so that they stay in the processor's cache
_ASCII = {
    LETTER: b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    DIGIT: b"0123456789",
    PUNCT: b'!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~',
    QUOTE: b"'",
    SPACE: b" ",
    LINE: b"\r\n",
    TAB: b"\t",
}
_BLACK = LETTER | DIGIT | PUNCT | QUOTE  # what white space is not
_WHITE = SPACE | LINE | TAB
# White space beyond ASCII: U+0085 U+00A0 U+1680 U+2000-200A U+2028 U+2029 U+202F U+205F U+3000. First bytes of other
# characters (what follows an ASCII byte is one), and last bytes of others (what an ASCII byte follows is one).
_BLACK_LEADS = bytes([*range(0xC3, 0xE1), *range(0xE4, 0xF5)])
_BLACK_TAILS = bytes(b for b in range(0x80, 0xC0) if b not in (*range(0x80, 0x8B), 0x9F, 0xA0, 0xA8, 0xA9, 0xAF))
_CJK_LEADS = bytes(range(0xE5, 0xEA))  # U+5000-9FFF, all of which BERT's normaliser sets apart

Cuts = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(classes before, at, after) of places, each uint8 [N], 0 where there is no byte -> bool [N]: a part begins there."""


class Rule(NamedTuple):
    """Where parts of a text begin.

    family: its name. cuts: the places. table: class of each byte, 256 bytes.
    same: a byte that gives the same tokens in the place of each, 256 bytes, or none; so that more parts are equal.
    mixed_case: letters, with a space before them or not, are one word, whatever their case; False: if only the first
    may be a capital; None: it is not so simple.
    """

    family: str
    cuts: Cuts
    table: bytes
    same: bytes = b""
    mixed_case: bool | None = None

    def plain(self, data: np.ndarray) -> np.ndarray:
        """UTF-8 bytes that give the same tokens."""
        return np.frombuffer(data.tobytes().translate(self.same), dtype=np.uint8) if self.same else data

    def starts(self, data: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Where parts begin in consecutive texts: ascending int64 [parts]; every text that is not empty begins one.

        Args:
            data: UTF-8 bytes, uint8 [N].
            texts: places of the texts in it: int64 [texts + 1] from 0 to N.
        """
        size = len(data)
        classes = np.zeros(size + 2, dtype=np.uint8)
        classes[1:-1] = np.frombuffer(data.tobytes().translate(self.table), dtype=np.uint8)
        before, at, after = classes[:-2], classes[1:-1], classes[2:]
        found = np.empty(size, dtype=bool)
        for first in range(0, size, _BLOCK):
            block = slice(first, first + _BLOCK)
            found[block] = self.cuts(before[block], at[block], after[block])
        begins, ends = texts[:-1], texts[1:]
        full = ends > begins
        last = ends[full] - 1  # what follows is another text
        found[last] = self.cuts(before[last], at[last], np.zeros(len(last), dtype=np.uint8))
        found[begins[full]] = True
        return np.flatnonzero(found)


def _is(classes: np.ndarray, which: int) -> np.ndarray:
    return (classes & which) != 0


def _gpt2(before: np.ndarray, at: np.ndarray, after: np.ndarray) -> np.ndarray:
    """'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

    A word ends before white space. Of a run of white space the last character before a word stands by itself (or, a
    space, with the word), and the rest is one part whether something follows or not. Letters, digits and others part,
    but for an apostrophe before a letter, which may be a contraction.
    """
    begins_white = _is(at, _WHITE) & (_is(before, _BLACK | WIDE) | _is(after, _BLACK | WIDE))
    after_white = _is(before, LINE | TAB) & _is(at, _BLACK | WIDE)
    letters = _is(before, LETTER) & _is(at, DIGIT | PUNCT | QUOTE)
    digits = _is(before, DIGIT) & _is(at, LETTER | PUNCT | QUOTE)
    others = (_is(before, PUNCT) & _is(at, LETTER | DIGIT)) | (_is(before, QUOTE) & _is(at, DIGIT))
    return begins_white | after_white | letters | digits | others


def _cl100k(before: np.ndarray, at: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(?i:'s|…)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+

    Another character may begin a word, and line ends belong to the punctuation before them. The last space before a
    word is no part of the white space before it, whatever that is.
    """
    spaces = _is(at, SPACE) & (_is(before, _BLACK | WIDE) | _is(after, _BLACK | WIDE))
    return spaces | _cl100k_words(before, at, LETTER | DIGIT, _BLACK | WIDE)


def _cl100k_to_the_end(before: np.ndarray, at: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The same with \\s+$ before \\s*[\\r\\n]: white space at the end of a part is one word, line ends or not."""
    return (_is(at, SPACE) & _is(before, _BLACK | WIDE)) | _cl100k_words(before, at, LETTER | DIGIT, _BLACK | WIDE)


def _o200k(before: np.ndarray, at: np.ndarray, after: np.ndarray) -> np.ndarray:
    """As cl100k, but contractions belong to their word, and slashes to the line ends before them."""
    spaces = _is(at, SPACE) & (_is(before, _BLACK | WIDE) | _is(after, _BLACK | WIDE))
    words = _cl100k_words(before, at, LETTER | DIGIT, LETTER | DIGIT | WIDE)
    return spaces | (words & ~(_is(before, LETTER) & _is(at, QUOTE)))


def _cl100k_words(before: np.ndarray, at: np.ndarray, before_line: int, after_line: int) -> np.ndarray:
    lines = (_is(at, LINE) & _is(before, before_line)) | (_is(before, LINE) & _is(at, after_line))
    letters = _is(before, LETTER) & _is(at, DIGIT | PUNCT | QUOTE)
    digits = _is(before, DIGIT) & _is(at, LETTER | PUNCT | QUOTE)
    return lines | letters | digits | (_is(before, PUNCT | QUOTE) & _is(at, DIGIT))


def _bert(before: np.ndarray, at: np.ndarray, after: np.ndarray) -> np.ndarray:
    """White space parts words and is dropped; every punctuation mark, and every CJK character (WIDE), is a word."""
    white = _white(before, at, after)
    marks = (_is(at, PUNCT | QUOTE) & ~_is(before, _WHITE)) | _is(before, PUNCT | QUOTE)
    return white | marks | _is(at, WIDE)


def _white(before: np.ndarray, at: np.ndarray, after: np.ndarray) -> np.ndarray:
    """White space parts words; the last of a run goes with the word after it."""
    return _is(at, _WHITE) & ~(_is(before, _WHITE) & _is(after, _WHITE))


def _spaces(before: np.ndarray, at: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Each space begins a word."""
    return _is(at, SPACE)


def _gpt2_at_spaces(before: np.ndarray, at: np.ndarray, after: np.ndarray) -> np.ndarray:
    """GPT-2's, where a text that does not begin with white space gets a space: a part must begin with one."""
    return _gpt2(before, at, after) & _is(at, SPACE)


_GPT2_PATTERNS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$|\s+(?!\S)|\s",
)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CL100K_PATTERNS = tuple(
    contractions + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + numbers + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for contractions in (_CONTRACTIONS, r"'(?i:[sdmt]|ll|ve|re)")
    for numbers in (r"\p{N}{1,3}", r"\p{N}")
)
_TO_THE_END_PATTERNS = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s+$|\s*[\r\n]|\s+(?!\S)|\s",
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K_PATTERNS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_PATTERNS: dict[str, Cuts] = {
    **dict.fromkeys(_GPT2_PATTERNS, _gpt2),
    **dict.fromkeys(_CL100K_PATTERNS, _cl100k),
    **dict.fromkeys(_TO_THE_END_PATTERNS, _cl100k_to_the_end),
    **dict.fromkeys(_O200K_PATTERNS, _o200k),
}
# Normalisers that give the same for a text and for its parts, if every part but the first begins with white space.
_LOCAL = {"Nmt", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Lowercase", "Precompiled", "BertNormalizer"}
_OF_WORDS = {"Metaspace", "Punctuation", "Digits", "WhitespaceSplit", "Whitespace", "BertPreTokenizer", "ByteLevel"}


def rule_of(tokenizer: Mapping[str, Any]) -> Rule | None:
    """The rule for a `tokenizer.json`, parsed; None where only whole texts are certain."""
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if not steps or tokenizer["model"].get("dropout"):
        return None
    names = [step["type"] for step in steps]
    if names == ["BertPreTokenizer"] and [each["type"] for each in normalizers] in ([], ["BertNormalizer"]):
        apart = bool(normalizers) and normalizers[0].get("handle_chinese_chars", True)
        lower = bool(normalizers) and normalizers[0].get("lowercase", True)
        return Rule("bert", _bert, _table(_CJK_LEADS if apart else b""), _same(lower))
    if all(map(_is_local, normalizers)):
        if names == ["Metaspace"] and steps[0].get("split", True) and steps[0].get("replacement") == "▁":
            return Rule("metaspace", _spaces, _table())
        if names[0] == "WhitespaceSplit" and all(map(_looks_at_a_word, steps[1:])):
            return Rule("words", _white, _table(), _same(_lowers(normalizers)))
    if [each["type"] for each in normalizers] in ([], ["NFC"]) and (cuts := _byte_level(steps)):
        mixed_case = None if cuts is _gpt2_at_spaces else cuts is not _o200k
        return Rule("byte-level", cuts, _table(_BLACK_LEADS + _BLACK_TAILS), mixed_case=mixed_case)
    return None


def _steps(part: Mapping[str, Any] | None, inner: str) -> Sequence[Mapping[str, Any]]:
    """The steps of a normaliser or pre-tokeniser, sequences unfolded."""
    if part is None:
        return []
    return [s for each in part[inner] for s in _steps(each, inner)] if part["type"] == "Sequence" else [part]


def _is_local(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Replace":  # a match that holds no white space lies within a part
        found = step["pattern"].get("String", "")
        return bool(found) and not any(c.isspace() for c in found)
    return step["type"] in _LOCAL


def _lowers(normalizers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether case is folded, and nothing before that tells a capital from a small letter (as compositions do)."""
    names = [step["type"] for step in normalizers]
    return "Lowercase" in names and set(names[: names.index("Lowercase")]) <= {"Nmt", "NFD", "NFKD", "StripAccents"}


def _looks_at_a_word(step: Mapping[str, Any]) -> bool:
    """`Metaspace` with `first` looks where in the text its word stands."""
    return step["type"] in _OF_WORDS and (step["type"] != "Metaspace" or step.get("prepend_scheme") != "first")


def _byte_level(steps: Sequence[Mapping[str, Any]]) -> Cuts | None:
    names = [step["type"] for step in steps]
    *splits, last = steps
    if names[-1] != "ByteLevel":
        return None
    if not splits and last.get("use_regex", True):
        return _gpt2_at_spaces if last.get("add_prefix_space", True) else _gpt2
    if names != ["Split", "ByteLevel"] or last.get("use_regex", True) or last.get("add_prefix_space", True):
        return None
    (split,) = splits
    whole = (split["behavior"], split.get("invert", False)) in (("Isolated", False), ("Removed", True))
    return _PATTERNS.get(_plain(split["pattern"].get("Regex", ""))) if whole else None


def _plain(pattern: str) -> str:
    """A pattern without marks of possession, which do not change what these ones match.

    >>> _plain(r"(?>\\p{N}{1,3})|\\p{L}++|\\s++\\z")
    '\\\\p{N}{1,3}|\\\\p{L}+|\\\\s+$'
    """
    pattern = re.sub(r"\(\?>((?:[^()\\]|\\.)*)\)", r"\1", pattern)
    return re.sub(r"(?<!\\)([+*?]|\{\d+(?:,\d*)?\})\+", r"\1", pattern).replace(r"\z", "$")


def _same(lower: bool) -> bytes:
    """White space as a space, and letters in lower case."""
    table = bytes.maketrans(b"\t\n\r", b"   ")
    return table.lower() if lower else table


def _table(wide: bytes = b"") -> bytes:
    """The class of each byte, where these ones are WIDE."""
    table = bytearray(256)
    for which, members in (*_ASCII.items(), (WIDE, wide)):
        for byte in members:
            table[byte] = which
    return bytes(table)
