"""Tokenizers in other libraries' files: which format a folder or file has, and what a reader makes of it.

A format is a function `(files, Options) -> Foreign` and a line in `FORMATS`. Every conversion is tried against the
original library on `PROBES` before it is used: equal ids, or `BadData`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cluster.errors import BadConfig, BadData
from modeling.config import Registry

FORMATS = Registry(
    "tokenizer format",
    {
        "huggingface": "tasks.tokenizers.from_json:read",
        "sentencepiece": "tasks.tokenizers.from_sentencepiece:read",
        "gpt2": "tasks.tokenizers.from_vocabulary:read_gpt2",
        "wordpiece": "tasks.tokenizers.from_vocabulary:read_wordpiece",
        "tiktoken": "tasks.tokenizers.from_tiktoken:read",
    },
)

_GPT2_NAMES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_NEEDED = {
    "huggingface": "tokenizer.json",
    "sentencepiece": "a .model file",
    "gpt2": "vocab.json and merges.txt, or encoder.json and vocab.bpe",
    "wordpiece": "vocab.txt",
    "tiktoken": "a .tiktoken file",
}


class Options(NamedTuple):
    """What a reader is told besides its files.

    pattern: regular expression that cuts text into words, for tiktoken. lowercase: for vocab.txt; none: found out.
    settings: tokenizer_config.json. added: (token, id) of special tokens that the files do not hold; none: the next.
    """

    pattern: str = ""
    lowercase: bool | None = None
    settings: Mapping[str, Any] = {}
    added: Sequence[tuple[str, int | None]] = ()


class Foreign(NamedTuple):
    """A tokenizer as a reader made it.

    roles: {role: token} as far as the format says it. ids: the original library's ids of a text, without special
    tokens; no function where it is the same library, no ids where that does not say how it reads a text. probes:
    further texts to try. scores: of each id, where the likeliest cut is wanted, since two cuts of one score may be told
    apart by rounding alone.
    """

    tokenizer: Any
    roles: Mapping[str, str]
    ids: Callable[[str], list[int] | None] | None = None
    probes: Sequence[str] = ()
    scores: Sequence[float] = ()


def files_of(names: Iterable[str], format: str | None = None) -> tuple[str, list[str]] | None:
    """(format, its files) among the names in a folder; none where there is no tokenizer (of that format)."""
    there = sorted(names)
    kinds: dict[str, list[str]] = {"huggingface": [n for n in there if n == "tokenizer.json"]}
    kinds["sentencepiece"] = [n for n in there if n.endswith(".model")][:1]
    kinds["gpt2"] = next((list(pair) for pair in _GPT2_NAMES if set(pair) <= set(there)), [])
    kinds["tiktoken"] = [n for n in there if n.endswith(".tiktoken")][:1] or kinds["sentencepiece"]
    kinds["wordpiece"] = [n for n in there if n == "vocab.txt"]
    for kind, found in kinds.items():
        if found and format in (None, kind):
            return kind, found
    return None


def needed(format: str | None) -> str:
    """What a source must hold, in words."""
    return _NEEDED[format] if format else "; or ".join(_NEEDED.values())


def numbered(size: int, added: Iterable[tuple[str, int | None]], known: Mapping[str, int]) -> dict[str, int]:
    """{token: id} of the added tokens that a vocabulary of `size` ids lacks.

    Raises:
        BadConfig: two tokens with one id, or a known token with another id.
    """
    found: dict[str, int] = {}
    taken = {number: token for token, number in known.items()}
    following = size
    for token, number in added:
        if token in known:
            if number not in (None, known[token]):
                raise BadConfig(f"added token {token!r} has id {number}, and {known[token]} in the vocabulary")
            continue
        number = following if number is None else number
        if number in taken:
            raise BadConfig(f"added token {token!r} has id {number}, which is {taken[number]!r}'s")
        found[token] = number
        taken[number] = token
        following = max(following, number + 1)
    return found


def special(tokenizer: Any, tokens: Iterable[str]) -> None:
    """Make tokens of the vocabulary special, in the order of their ids; a mask takes the space before it."""
    from tokenizers import AddedToken

    there = sorted({t for t in tokens if tokenizer.token_to_id(t) is not None}, key=tokenizer.token_to_id)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False, lstrip=t == "<mask>") for t in there])


def check(foreign: Foreign, name: str) -> None:
    """Raise BadData where a converted tokenizer gives other ids than the original library on any probe."""
    if foreign.ids is None:
        return
    literal = foreign.tokenizer.encode_special_tokens
    foreign.tokenizer.encode_special_tokens = True  # the originals read a special token's name as text
    try:
        for text in (*PROBES, *foreign.probes):
            found, expected = foreign.tokenizer.encode(text, add_special_tokens=False).ids, foreign.ids(text)
            if expected is not None and found != expected and not _tie(foreign.scores, found, expected):
                at = next((n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None)
                at = min(len(found), len(expected)) if at is None else at
                raise BadData(
                    f"{name}: converted to tokenizer.json it gives other ids than the original library: {text!r} "
                    f"becomes {found[at : at + 5]} where {expected[at : at + 5]} is expected, from token {at} on",
                    "this tokenizer cannot be converted exactly; name one that has a tokenizer.json",
                )
    finally:
        foreign.tokenizer.encode_special_tokens = literal


def spellable(tokenizer: Any, unknown: int | None) -> list[str]:
    """Special tokens (of the first 64) that a text can spell even where it is meant as text; usually none.

    Args:
        unknown: id of the unknown token, which any text may have.
    """
    literal = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    added = sorted((n, t.content) for n, t in tokenizer.get_added_tokens_decoder().items() if t.special)
    found = [
        token
        for number, token in added[:64]
        if number != unknown and number in tokenizer.encode(f"a {token} b", add_special_tokens=False).ids
    ]
    tokenizer.encode_special_tokens = literal
    return found


def _tie(scores: Sequence[float], one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two cuts of a text have the same score, up to float32's rounding of the sum (Viterbi in the original)."""
    if not scores or one == other:
        return False
    totals = [sum(scores[n] for n in ids) for ids in (one, other)]
    return abs(totals[0] - totals[1]) <= 1e-6 * abs(totals[0])


PROBES = (
    "",
    " ",
    "The quick brown fox jumps over the lazy dog.",
    "It's what they'd said: we've, I'M, you'LL — “don't”, 'twas… (e.g.) a/b_c-d @x #1 $2.50 100% 3.14159 1234567890",
    "  leading, trailing  and   double spaces \t tabs\nlines\n\n\nand returns\r\nend \n ",
    "HELLO World camelCase snake_case __init__ x=y+1; if (a && b) { return `c`; } // <html lang='de'>",
    "café naïve Zürich façade Ångström ß ŒUVRE İstanbul ǅ ﬁne ﬂow x² ½ № ™ Ⅷ ａｂｃ１２３",
    "cafe\u0301 n\u0303 Vie\u0323\u0302t Nam e\u0302\u0301 A\u030a o\u0308\u0304",
    "東京都は日本の首都です。漢字とｶﾀｶﾅ、か\u3099き\u3099。",
    "한국어 텍스트 \u1112\u1161\u11ab\u1100\u1173\u11af",
    "Привет, мир! Ελληνικά. עִבְרִית مرحبا بالعالم हिन्दी में क्षत्रिय ไทยแลนด์",
    "emoji 🙂👍🏽 👨\u200d👩\u200d👧 ❤\ufe0f 🇩🇪 end",
    "zero\u200bwidth joiner\u200d nbsp\u00a0thin\u2009ideographic\u3000soft\u00adhyphen\u2028line\u0085next bom\ufeff.",
    "control \x00\x01\x07\x1b\x7f bytes \ufffd \ue000 \U0010fffd",
    "▁ ▁▁ under▁score Ġ Ċ ## ##ing </w>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa aaa ababababababab 0000000000000 !!!!!!!!!! ---------- ....",
    "Pneumonoultramicroscopicsilicovolcanoconiosis " + "supercalifragilistic" * 8,
    "hat learn taaaaasty laern Transformerify",
)
"""Plain text, and what tokenizers usually differ on: white space, cases, compositions, scripts, controls, runs."""
