"""Mojibake, HTML escapes, ligatures and normal forms: ftfy's repairs, at the price of a glance for clean text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import ftfy
from ftfy import badness, chardata, fixes

from tasks.cleaning.base import DocumentStep, Verdict
from tasks.cleaning.characters import runs_beyond_ascii
from tasks.cleaning.settings import UnicodeSettings

# What must stand in a line before ftfy takes it for mojibake (`ftfy.badness.BADNESS_RE`, version 6): a C1 control, one
# of these letters, or two characters beyond ASCII side by side, of which one is outside the ranges below.
_ALONE = re.compile(r"[\x80-\x9fŒœÂÃ]")
_HARMLESS = re.compile(
    "[\u0370-\u0383\u0386-\u0401\u0403-\u045d\u045f-\u048f\u0492-\u1fff\u2e80-\uf8fe\uf900-\ufaff\uff00-\uffef"
    "\U00010000-\U0010ffff]+"
)
_ESCAPE = re.compile(r"&#?[0-9A-Za-z]{1,24};")
_MOST_RUNS = 1 << 16  # remembered

MOJIBAKE, ESCAPES, NORMALISED = "mojibake repaired", "HTML escapes decoded", "characters normalised"


class Unicode(DocumentStep):
    """Repairs text line by line with ftfy (Speer 2019) and puts it into one Unicode normal form.

        "The caf\u00c3\u00a9 isn\u00e2\u20ac\u2122t open &amp; free" -> "The café isn’t open & free"

    With unescape_html=auto a document that has a "<" keeps its escapes: there they may be what it writes about.
    A line without characters beyond ASCII can only hold escapes, so most lines never reach ftfy; which others need it
    is told by their runs of characters beyond ASCII, of which a corpus has few different ones. Control characters are
    left to the step of that name. Counted are lines.
    """

    settings: UnicodeSettings

    def __init__(self, settings: UnicodeSettings, evaluation: object = None) -> None:
        self.settings = settings
        form = None if settings.normalization == "none" else settings.normalization
        self.form: Any = form
        self.config = ftfy.TextFixerConfig(
            unescape_html=False,
            remove_terminal_escapes=False,
            fix_encoding=settings.fix_encoding,
            fix_latin_ligatures=settings.split_ligatures,
            fix_character_width=settings.fold_width,
            uncurl_quotes=settings.straight_quotes,
            fix_line_breaks=False,
            remove_control_chars=False,
            normalization=form,
            explain=False,
        )
        replaced: set[str] = set()
        if settings.split_ligatures:
            replaced |= set(map(chr, chardata.LIGATURES))
        if settings.fold_width:
            replaced |= set(map(chr, chardata.WIDTH_MAP))
        if settings.straight_quotes:
            replaced |= set("\u02bc\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f")
        self.replaced = re.compile("[" + re.escape("".join(sorted(replaced))) + "]") if replaced else None
        self.suspect: dict[str, bool] = {}

    def clean(self, texts: Sequence[str]) -> list[Verdict]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Verdict:
        escapes = "&" in text and self._may_unescape(text)
        if not escapes and not self._suspect(text):
            return Verdict(text)
        config = self.config._replace(unescape_html=True) if escapes else self.config
        counts: Counter[str] = Counter()
        lines = text.split("\n")
        for number, line in enumerate(lines):
            if line.isascii() and not (escapes and "&" in line):
                continue
            fixed = ftfy.fix_text(line, config)
            if fixed != line:
                lines[number] = fixed
                counts[self._what(line, escapes)] += 1
        if not counts:
            return Verdict(text)
        reason = next(what for what in (MOJIBAKE, ESCAPES, NORMALISED) if what in counts)
        return Verdict("\n".join(lines), reason, {f"lines with {what}": n for what, n in counts.items()})

    def _may_unescape(self, text: str) -> bool:
        mode = self.settings.unescape_html
        if mode == "never" or (mode == "auto" and "<" in text):
            return False
        return bool(_ESCAPE.search(text))

    def _suspect(self, text: str) -> bool:
        """Whether anything but escapes could be there to repair; never False where ftfy would change something."""
        for run in runs_beyond_ascii(text):
            found = self.suspect.get(run)
            if found is None:
                if len(self.suspect) >= _MOST_RUNS:
                    self.suspect.clear()
                found = self.suspect[run] = self._suspect_run(run)
            if found:
                return True
        return bool(self.form) and not unicodedata.is_normalized(self.form, text)

    def _suspect_run(self, run: str) -> bool:
        if self.replaced and self.replaced.search(run):
            return True
        if not self.settings.fix_encoding:
            return False
        if _ALONE.search(run):
            return True
        if len(run) < 2 or _HARMLESS.fullmatch(run):
            return False
        # neighbours that ftfy's patterns ask for around such a run: a letter, a space, the ends of the line
        return any(badness.is_bad(f"{before}{run}{after}") for before in ("a", " ", "") for after in ("aa", "  ", ""))

    def _what(self, line: str, escapes: bool) -> str:
        unescaped = fixes.unescape_html(line) if escapes else line
        if self.settings.fix_encoding and ftfy.fix_encoding(unescaped) != unescaped:
            return MOJIBAKE
        return ESCAPES if unescaped != line else NORMALISED
