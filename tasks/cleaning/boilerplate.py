"""Boilerplate: lines that belong to a page (its menus, buttons, notices), not to its text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tasks.cleaning.base import DocumentStep, Verdict
from tasks.cleaning.settings import BoilerplateSettings

# Phrases in lower case. Those of notices and buttons make a line of up to `max_line_words` go wherever they stand.
_NOTICES = (
    (
        "cookie and privacy notices",
        (
            "accept all cookies", "accept cookies", "by continuing to use", "by using this site", "cookie preferences",
            "cookie settings", "do not sell my", "this site uses cookies", "this website uses cookies",
            "we use cookies", "our use of cookies", "our privacy policy", "our cookie policy", "our terms of service",
            "our terms of use",
        ),
    ),
    ("rights and imprints", ("all rights reserved", "powered by wordpress", "proudly powered by")),
    (
        "calls to share, sign in or subscribe",
        (
            "add to cart", "already a member?", "click here to", "create an account", "don't have an account",
            "enter your email", "follow us on", "forgot password", "forgot your password", "join our mailing list",
            "like us on facebook", "please enable javascript", "please log in", "share on facebook",
            "share on linkedin", "share on pinterest", "share on twitter", "share on whatsapp", "share this:",
            "sign up for our", "sign up to our", "subscribe now", "subscribe to our", "tweet this",
            "you must be logged in", "you need to enable javascript", "your email address will not be",
        ),
    ),
)  # fmt: skip
# What is a button's or a footer's text, but is spoken of in prose too: only in lines of up to `_LABEL_WORDS` words
# that begin with it.
_LABELS = (
    (
        "cookie and privacy notices",
        (
            "cookie policy", "privacy notice", "privacy policy", "privacy statement", "terms and conditions",
            "terms of service", "terms of use", "terms & conditions",
        ),
    ),
    ("rights and imprints", ("©", "copyright ©", "copyright (c)")),
    ("calls to share, sign in or subscribe", ("log in to", "login to", "sign in to", "sign up for", "sign up")),
    (
        "page furniture",
        (
            "advertisement", "back to top", "continue reading", "leave a comment", "leave a reply", "loading...",
            "next post", "page not found", "previous post", "print this page", "read more", "related articles",
            "related posts", "return to top", "scroll to top", "skip to content", "skip to main content",
            "table of contents", "toggle navigation", "view all posts",
        ),
    ),
)  # fmt: skip
_LABEL_WORDS = 6

_MENU_TEXT = """
about account archives articles blog books business careers cart categories checkout comments community contact
culture donate download downloads education entertainment events facebook faq faqs features feed forum forums
gallery health help home imprint instagram jobs linkedin links login logout media members menu more music news
newsletter next opinion photos pinterest podcast politics previous press pricing privacy products profile register
reviews rss science search services settings share shop sitemap sports store subscribe support tags team tech
technology terms topics travel twitter videos weather world youtube
"""
_MENU = frozenset(_MENU_TEXT.split())
_MENU_WORDS = 4  # of a menu's line, at most
_SEPARATING = "|»›•·/>"
_SEPARATORS = re.compile(rf"\s*[{_SEPARATING}]\s*")
_ENDINGS = (".", "!", "?", '"', "”", ":", ";", ",", "…")
_LETTER = re.compile(r"[^\W\d_]")


class Boilerplate(DocumentStep):
    r"""Removes lines of notices and buttons, menus, and lines without a word at the ends of a document.

        "Home | News | Contact\nThe river rose.\nShare on Facebook\n***" -> "The river rose."

    A line of at most `max_line_words` that has a notice's phrase goes, and a line of six words that begins with a
    label ("Privacy policy", "Read more"). A menu is a run of `navigation_lines` lines or more of at most four words
    without punctuation at their end, half of which have a menu word ("home", "login"); or one line of at least three
    such items with separators between. At the ends of a document lines without a letter go, but for a single figure.
    Runs of empty lines that this leaves become one. The lists are of our own choosing and English; `phrases` adds to
    the notices'.
    """

    settings: BoilerplateSettings

    def __init__(self, settings: BoilerplateSettings, evaluation: object = None) -> None:
        self.settings = settings
        own = tuple(phrase.lower() for phrase in settings.phrases)
        self.notices = _NOTICES + ((("phrases of the settings", own),) if own else ())
        self.phrases = tuple(phrase for _, phrases in (*self.notices, *_LABELS) for phrase in phrases)

    def clean(self, texts: Sequence[str]) -> list[Verdict]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Verdict:
        lines = text.split("\n")
        why: dict[int, str] = {}
        most = self.settings.max_line_words
        short = [number for number, line in enumerate(lines) if line and len(line.split(None, most)) <= most]
        low = "\n".join(lines[number] for number in short).lower()
        for phrase in self.phrases:  # nearly always in vain, so over all short lines at once
            if phrase in low:
                why = {number: what for number in short if (what := self._phrase(lines[number]))}
                break
        for number in self._menus(lines):
            why.setdefault(number, "menu lines")
        if self.settings.trim_ends:
            for number in _wordless_ends(lines, why):
                why[number] = "lines without a word at an end"
        if not why:
            return Verdict(text)
        kept: list[str] = []
        for number, line in enumerate(lines):
            if number not in why and (line or (kept and kept[-1])):
                kept.append(line)
        return Verdict("\n".join(kept).strip("\n"), "boilerplate lines removed", Counter(why.values()))

    def _phrase(self, line: str) -> str:
        """What a short line is, if it has a phrase."""
        low = line.lower().strip()
        for what, phrases in self.notices:
            if any(phrase in low for phrase in phrases):
                return what
        for what, phrases in _LABELS:
            if low.startswith(phrases) and len(low.split()) <= _LABEL_WORDS:
                return what
        return ""

    def _menus(self, lines: Sequence[str]) -> list[int]:
        """Numbers of lines that are menus or parts of them."""
        least = self.settings.navigation_lines
        if not least:
            return []
        found: list[int] = []
        run: list[int] = []
        menu = 0  # lines of the run with a menu word

        def end() -> None:
            if len(run) >= least and 2 * menu >= len(run):
                found.extend(run)

        for number, line in enumerate(lines):
            item = _menu_item(line) if len(line) < 100 else None
            if item is not None:
                run.append(number)
                menu += item
                continue
            if not line:
                continue  # menus are often double-spaced
            end()
            run, menu = [], 0
            if len(line) < 400 and _is_menu_bar(line):
                found.append(number)
        end()
        return found


def _menu_item(line: str) -> bool | None:
    """None: no line of a menu. Otherwise whether it has a menu word."""
    line = line.strip("•*-–|» \t")
    if not line or line.endswith(_ENDINGS):
        return None
    words = line.split(None, _MENU_WORDS)
    return None if len(words) > _MENU_WORDS else any(word in _MENU for word in line.lower().split())


def _is_menu_bar(line: str) -> bool:
    """Whether a line is several menu items with separators between."""
    if sum(map(line.count, _SEPARATING)) < 2:
        return False
    items = [item for item in _SEPARATORS.split(line) if item]
    known = [_menu_item(item) for item in items]
    return len(items) >= 3 and None not in known and 2 * sum(map(bool, known)) >= len(items)


def _wordless_ends(lines: Sequence[str], gone: dict[int, str]) -> list[int]:
    """Lines at either end with something on them, but no letter; a single figure (1984, 44/876) may be a title."""
    found: list[int] = []
    for numbers in (range(len(lines)), range(len(lines) - 1, -1, -1)):
        for number in numbers:
            line = lines[number].strip()
            if number in gone or number in found or not line:
                continue
            if _LETTER.search(line) or (any(map(str.isdigit, line)) and len(line.split()) == 1):
                break
            found.append(number)
    return found
