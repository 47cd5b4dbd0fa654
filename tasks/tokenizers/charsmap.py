"""SentencePiece's normalisation rules: a trie of what is replaced, read, and written with `tokenizers`' parts.

SentencePiece replaces the longest rule that fits at each place of the text. `Precompiled` of `tokenizers` holds the
same trie, but looks at whole graphemes of fewer than six bytes and takes the *shortest* rule in them, so it drops
the second accent of a Vietnamese letter that is written decomposed, and leaves Hangul letters and kana with marks
uncomposed. Rules that come from a Unicode normalisation form agree with that form on all but rare texts, so the form is
applied first, and the trie then meets single characters only.

What is left: a combining mark after a letter that is composed already, or after marks that should follow it, for which
SentencePiece has no rule, is composed and sorted here; and so are characters of a Unicode version that the rules do not
know yet. Text in a normal form has none of the former.
"""

from __future__ import annotations

import struct
import sys
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

from cluster.errors import BadData

_MOST_RULES = 64  # of several characters, that are written out one by one
_OTHER_UNICODE = 0.03  # share of rules, and of characters that a form changes, which another Unicode version explains
_STAND_IN = 0xFDD0  # the first of 32 characters that no text has


class Form(NamedTuple):
    """A Unicode normalisation form that may be applied before single characters are replaced.

    kept: {character: what the rules make of it}, where the form would make something else. lower: whether text may be
    put in lower case, too, which is most of folding cases.
    """

    name: str
    kept: Mapping[str, str]
    lower: bool


def rules(charsmap: bytes) -> dict[str, str]:
    """{what is replaced: by what} of a `precompiled_charsmap`: the size of a Darts-clone trie, the trie, the texts.

    Raises:
        BadData: it is damaged.
    """
    try:
        (size,) = struct.unpack_from("<I", charsmap)
        return _walk(charsmap[4 : 4 + size], charsmap[4 + size :])
    except (struct.error, IndexError, ValueError) as error:
        raise BadData(f"the model's normalisation rules are damaged: {error}", "fetch the file again") from None


def _walk(trie: bytes, texts: bytes) -> dict[str, str]:
    """A level of the trie at a time.

    The child of a node for a byte lies at `start ^ byte` and holds that byte, `start` being the node's. So each unit
    says itself whose child it is, and sorted by that, children are a range.
    """
    import numpy as np

    units = np.frombuffer(trie, dtype="<u4").astype(np.int64)
    label = units & 0x800000FF
    is_child = (label > 0) & (label < 256)
    places = np.nonzero(is_child)[0]
    parents = places ^ label[is_child]
    order = np.argsort(parents, kind="stable")
    places, parents = places[order], parents[order]

    found: dict[str, str] = {}
    starts, keys = _offsets(units[:1]), np.empty((1, 0), dtype=np.uint8)
    while len(starts):
        if keys.shape[1] > 64:
            raise ValueError("the trie has no end")
        first, last = np.searchsorted(parents, starts), np.searchsorted(parents, starts, side="right")
        node = np.repeat(np.arange(len(starts)), last - first)
        at = places[np.arange(len(node)) - np.repeat(np.cumsum(last - first) - last, last - first)]
        unit = units[at]
        keys = np.concatenate([keys[node], label[at, None].astype(np.uint8)], axis=1)
        starts = at ^ _offsets(unit)
        for row in np.nonzero(unit >> 8 & 1)[0].tolist():  # rules that end here
            start = int(units[starts[row]]) & 0x7FFFFFFF
            found[keys[row].tobytes().decode()] = texts[start : texts.index(b"\0", start)].decode()
    return found


def _offsets(units: Any) -> Any:
    return (units >> 10) << ((units & 1 << 9) >> 6)


def form_of(replaced: Mapping[str, str]) -> Form | None:
    """The form that does what the rules for several characters do."""
    single = {key: value for key, value in replaced.items() if len(key) == 1}

    def mapped(text: str) -> str:
        return "".join(single.get(c, c) for c in text)

    for name in ("NFKC", "NFC"):
        broken = sum(mapped(unicodedata.normalize(name, key)) != value for key, value in replaced.items())
        if broken > _OTHER_UNICODE * len(replaced):
            continue
        changed = [c for c in _characters() if unicodedata.normalize(name, c) != c]
        others = {c: mapped(c) for c in changed if mapped(unicodedata.normalize(name, c)) != mapped(c)}
        if single.get("A") == "a":  # the rules fold cases
            unlike = {c: mapped(c) for c in _characters() if c.lower() != c and mapped(c.lower()) != mapped(c)}
            if len(others) + len(unlike) <= 32:
                return Form(name, others | unlike, True)
        if len(others) <= _OTHER_UNICODE * len(changed):
            return Form(name, others if len(others) <= 32 else {}, False)
    return None


def _characters() -> list[str]:
    return [chr(n) for n in range(sys.maxunicode + 1) if not 0xD800 <= n < 0xE000]


def normalizers_of(charsmap: bytes) -> list[Any]:
    """The `tokenizers` normalisers that do what the rules say; none for no rules.

    Raises:
        BadData: the rules are damaged, or too many of them are of several characters and no form stands for them.
    """
    from tokenizers import normalizers

    if not charsmap:
        return []
    replaced = rules(charsmap)
    if not replaced:
        return []
    form = form_of(replaced)
    steps: list[Any] = []
    after: list[Any] = []
    if form:
        stand_ins = {c: chr(_STAND_IN + n) for n, c in enumerate(sorted(form.kept))}
        steps += [normalizers.Replace(c, stand_in) for c, stand_in in stand_ins.items()]
        steps.append(normalizers.NFKC() if form.name == "NFKC" else normalizers.NFC())
        if form.lower:
            steps.append(normalizers.Lowercase())
        after = [normalizers.Replace(stand_in, form.kept[c]) for c, stand_in in stand_ins.items()]
    else:
        few = len(replaced) <= _MOST_RULES
        written = sorted((key for key in replaced if few or len(key) > 1), key=lambda key: (-len(key), key))
        if len(written) > _MOST_RULES:
            raise BadData(
                f"the model has {len(written):,} normalisation rules of its own for several characters, at most "
                f"{_MOST_RULES} can be written in a tokenizer.json",
                "name a tokenizer.json",
            )
        steps += [normalizers.Replace(key, replaced[key]) for key in written]
        if few:
            return steps
    if "\r" in replaced and replaced["\r"] == replaced.get("\n"):
        steps.append(normalizers.Replace("\r\n", "\n\n"))  # one grapheme, two characters
    return [*steps, normalizers.Precompiled(charsmap), *after]
