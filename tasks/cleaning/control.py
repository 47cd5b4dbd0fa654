"""Control characters: what nobody sees goes, and the many line ends and spaces become one of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tasks.cleaning.base import DocumentStep, Verdict
from tasks.cleaning.characters import unusual
from tasks.cleaning.settings import ControlCharactersSettings

# (what is counted, its characters). Sources: Unicode 16, chapter 23; Unicode technical report 20 (characters not
# suitable for markup); CVE-2021-42574 for what bidirectional controls can hide.
_REMOVED = (
    ("byte order mark", "\ufeff"),
    ("zero-width character", "\u180e\u200b\u2060-\u2064"),
    ("soft hyphen", "\xad"),
    ("direction mark", "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"),
    ("control character", "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufdd0-\ufdef\ufff9-\ufffc\ufffe\uffff"),
)
_LINE_ENDS = "\x0b\x0c\r\x85\u2028\u2029"
_SPACES = "\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"
_TERMINAL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_JOINERS = re.compile("[\u200c\u200d]")
_LOOSE_JOINERS = re.compile("(?<![^\x00-\x7f])[\u200c\u200d]")
# tag characters spell flags after a black flag, and hide text anywhere else
_TAGS = re.compile("[\U000e0000-\U000e007f]")
_LOOSE_TAGS = re.compile("(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+")


class ControlCharacters(DocumentStep):
    r"""Removes C0 and C1 controls (tab and line feed stay), terminal escapes, zero-width and direction marks, soft
    hyphens, byte order marks and noncharacters; makes line ends `\n` and, with `unify_spaces`, spaces U+0020.

        "Zero\u200bwidth,\xa0no-break\r\n\x1b[1mbold\x1b[0m" -> "Zerowidth, no-break\nbold"

    Zero-width joiners and non-joiners (U+200C, U+200D) mean something in Persian, in Indic scripts and in emoji: with
    `keep_joiners` they stay after a character beyond ASCII. Most texts have none of all these, which is seen at a
    glance; the others are replaced character by character, each at the speed of a search for it.
    """

    settings: ControlCharactersSettings

    def __init__(self, settings: ControlCharactersSettings, evaluation: object = None) -> None:
        self.settings = settings
        self.replaced = {char: (what, "") for what, ranges in _REMOVED for char in _expand(ranges)}
        self.replaced |= {char: ("line end", "\n") for char in _expand(_LINE_ENDS)}
        if settings.unify_spaces:
            self.replaced |= {char: ("space", " ") for char in _expand(_SPACES)}
        self.joiners = _LOOSE_JOINERS if settings.keep_joiners else _JOINERS

    def clean(self, texts: Sequence[str]) -> list[Verdict]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Verdict:
        rare = unusual(text)
        if not rare:
            return Verdict(text)
        counts: Counter[str] = Counter()
        given = text
        if "\x1b" in rare:
            text, counts["terminal escape"] = _TERMINAL.subn("", text)
        if _TAGS.search(rare):
            text, counts["hidden tag characters"] = _LOOSE_TAGS.subn("", text)
        if "\r" in rare:
            counts["line end"] += text.count("\r\n")
            text = text.replace("\r\n", "\n")
        for char in sorted(set(rare)):
            if char in self.replaced:
                what, by = self.replaced[char]
                counts[what] += text.count(char)
                text = text.replace(char, by)
        if _JOINERS.search(rare):
            text, joiners = self.joiners.subn("", text)
            counts["zero-width character"] += joiners
        if text == given:
            return Verdict(given)
        return Verdict(text, "unseen or odd characters", {what: n for what, n in counts.items() if n})


def _expand(ranges: str) -> list[str]:
    """The characters of a class as in a regular expression: `a-cx` -> a, b, c, x."""
    found: list[str] = []
    for first, last in re.findall(r"(.)-(.)|.", ranges, re.DOTALL):
        if first:
            found += map(chr, range(ord(first), ord(last) + 1))
    return found + [char for char in re.sub(r".-.", "", ranges, flags=re.DOTALL)]
