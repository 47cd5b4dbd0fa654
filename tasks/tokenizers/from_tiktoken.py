"""tiktoken's rank files: byte-level BPE where a pair's rank is that of the token it makes.

A merge is written for every way to cut a token in two that the ranks hold, since tiktoken merges any of them, and a
word that is a token itself is taken whole. The pattern that cuts text into words is translated from Rust's
regular expressions to Oniguruma's, which `tokenizers` uses.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

from cluster.errors import BadConfig, BadData
from tasks.tokenizers.characters import spelled
from tasks.tokenizers.foreign import Foreign, Options, numbered, special

SCHEME = "tiktoken:"


class Encoding(NamedTuple):
    """What the installed tiktoken knows of an encoding, without fetching anything.

    pattern: that cuts text into words. special_tokens: {token: id}. cached: {name of the file: where it is, or would
    be, in tiktoken's cache}.
    """

    pattern: str
    special_tokens: Mapping[str, int]
    cached: Mapping[str, Path]


def encodings() -> list[str]:
    """The names that the installed tiktoken knows."""
    from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

    return list(ENCODING_CONSTRUCTORS)


def encoding(name: str) -> Encoding:
    """An encoding of tiktoken by its name.

    Raises:
        BadConfig: tiktoken does not know the name.
    """
    from tiktoken_ext import openai_public

    if name not in openai_public.ENCODING_CONSTRUCTORS:
        raise BadConfig(f"tiktoken knows no encoding {name!r}", f"known: {', '.join(encodings())}")
    cached: dict[str, Path] = {}

    def note(*urls: str, **named: Any) -> dict[bytes, int]:
        for url in (*urls, *(value for key, value in named.items() if key.endswith("_file"))):
            cached[url.rsplit("/", 1)[-1]] = _cache() / hashlib.sha1(url.encode()).hexdigest()
        return {}

    # Its constructors hold all the facts, and fetch: here they run with another loader, which notes the addresses.
    names = {**vars(openai_public), "load_tiktoken_bpe": note, "data_gym_to_mergeable_bpe_ranks": note}
    for each, constructor in openai_public.ENCODING_CONSTRUCTORS.items():
        names[each] = FunctionType(constructor.__code__, names)
    facts = names[name]()
    return Encoding(facts["pat_str"], dict(facts["special_tokens"]), cached)


def _cache() -> Path:
    """tiktoken's cache folder, found as it finds it."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if variable in os.environ:
            return Path(os.environ[variable])
    return Path(tempfile.gettempdir()) / "data-gym-cache"


def cached_files(name: str) -> dict[str, Path]:
    """{name: path} of an encoding's files in tiktoken's cache.

    Raises:
        BadConfig: the name is unknown, or a file is not there: nothing is fetched at run time.
    """
    found = encoding(name)
    for file, path in found.cached.items():
        if not path.is_file():
            raise BadConfig(
                f"source: {SCHEME}{name}: {file} is not in tiktoken's cache",
                f"fetch it once, with network: python -c \"import tiktoken; tiktoken.get_encoding('{name}')\"",
            )
    return dict(found.cached)


def read(files: Mapping[str, Path], options: Options) -> Foreign:
    """A rank file; pattern and special tokens are the encoding's where the file has an encoding's name.

    Raises:
        BadConfig: the pattern is not known, or not one that can be translated.
        BadData: the file is damaged, or lacks one of the 256 bytes.
    """
    import tiktoken
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    ((name, path),) = files.items()
    known = Path(name).stem if Path(name).stem in encodings() else None
    pattern, added = options.pattern, list(options.added)
    if pattern in encodings():
        pattern = encoding(pattern).pattern
    if known:
        facts = encoding(known)
        pattern = pattern or facts.pattern
        added = [*facts.special_tokens.items(), *added]
    if not pattern:
        raise BadConfig(
            f"{name} does not say how text is cut into words",
            f"set pattern: a regular expression, or the name of an encoding that has it ({', '.join(encodings())})",
        )
    ranks = _ranks(path)
    words = {"".join(map(spelled, token)): rank for token, rank in ranks.items()}
    vocabulary = words | numbered(max(words.values()) + 1, added, words)
    tokenizer = Tokenizer(models.BPE(vocabulary, _merges(ranks), ignore_merges=True))
    try:
        cut = pre_tokenizers.Split(Regex(oniguruma(pattern)), behavior="isolated")
    except Exception as error:  # the library has no exception of its own
        raise BadConfig(f"pattern: {pattern!r} cannot be used: {error}") from None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special(tokenizer, [token for token, _ in added])
    try:
        original = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except Exception as error:  # as Rust's regular expressions say it
        raise BadConfig(f"pattern: {pattern!r} cannot be used: {error}") from None
    return Foreign(tokenizer, {}, original.encode_ordinary)


def _ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise BadData(
                f"{path.name}, line {number}: {line[:60]!r} is no base64 token with its rank", "fetch the file again"
            ) from None
    lacking = [value for value in range(256) if bytes([value]) not in ranks]
    if lacking or len(set(ranks.values())) != len(ranks) or min(ranks.values()) < 0:
        what = f"lacks {len(lacking)} of the 256 bytes" if lacking else "has a rank twice, or a negative one"
        raise BadData(f"{path.name} {what}", "fetch the file again")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """Every cut of every token into two tokens, by the rank of the whole, then of the parts."""
    merges = []
    for token, rank in ranks.items():
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in ranks and right in ranks:
                merges.append((rank, ranks[left], ranks[right], left, right))
    return [("".join(map(spelled, left)), "".join(map(spelled, right))) for *_, left, right in sorted(merges)]


def oniguruma(pattern: str) -> str:
    """A pattern of tiktoken's in Oniguruma's syntax, where `{1,3}+` repeats and `$` ends a line.

    >>> oniguruma(r"\\p{N}{1,3}+|\\s++$")
    '(?>\\\\p{N}{1,3})|\\\\s++\\\\z'
    """
    parts: list[str] = []  # atoms with their quantifiers
    at = 0
    groups: list[int] = []  # parts before each open bracket
    while at < len(pattern):
        start, c = at, pattern[at]
        if c == "(":
            groups.append(len(parts))
            at += 1
            parts.append("(")
            continue
        if c == ")" and groups:
            opened = groups.pop()
            atom = "".join([*parts[opened:], ")"])
            del parts[opened:]
            at += 1
        elif c == "[":
            at = _class_end(pattern, at)
            atom = pattern[start:at]
        elif c == "\\":
            braced = pattern[at + 1 : at + 2] in "pPxu" and pattern[at + 2 : at + 3] == "{"
            at = pattern.index("}", at) + 1 if braced else at + 2
            atom = pattern[start:at]
        else:
            at += 1
            atom = r"\z" if c == "$" else c
        interval = _interval(pattern, at) if c not in "|^$?*+" else ""
        if interval and pattern[at + len(interval) : at + len(interval) + 1] == "+":
            atom, at = f"(?>{atom}{interval})", at + len(interval) + 1
        elif interval:
            atom, at = atom + interval, at + len(interval)
        parts.append(atom)
    return "".join(parts)


def _class_end(pattern: str, at: int) -> int:
    """Where the character class that begins at `at` ends."""
    depth = 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
        elif pattern[at] == "]":
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    return at


def _interval(pattern: str, at: int) -> str:
    import re

    found = re.compile(r"\{\d+(?:,\d*)?\}").match(pattern, at)
    return found[0] if found else ""
