"""Gopher's quality rules: does it read like text at all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import filterfalse

from tasks.cleaning.base import DocumentStep, Verdict
from tasks.cleaning.settings import GopherSettings

_BULLETS = ("•", "‣", "▪", "●", "◦", "○", "■", "□", "- ", "– ", "* ")
_ELLIPSES = ("...", "…")
_EDGES = ".,;:!?\"'()[]{}“”‘’«»…–—"


class Gopher(DocumentStep):
    """Drops documents that break a quality rule (Rae et al. 2021, appendix A.1.1, "Quality filtering").

        with min_words=3: "the end of it all" -> kept
                          "# # # of the" -> dropped, "more '#' than 0.1 a word"

    Words stand between white space, punctuation included; the mean of their lengths counts Unicode code points. A
    symbol is a "#", or an ellipsis ("..." or "…"). A word is alphabetic if it has a letter. Stop words are looked for
    in lower case and without punctuation around. The first rule that is broken, in the order of the settings, is the
    reason. Thresholds are inclusive: a document of exactly 50 words stays. Empty lines are no lines.
    """

    settings: GopherSettings

    def __init__(self, settings: GopherSettings, evaluation: object = None) -> None:
        self.settings = settings
        self.stop_words = frozenset(settings.stop_words)
        self.quick = tuple(f" {word} " for word in settings.stop_words)

    def clean(self, texts: Sequence[str]) -> list[Verdict]:
        verdicts = []
        for text in texts:
            reason = self._why_not(text)
            verdicts.append(Verdict(None if reason else text, reason))
        return verdicts

    def _why_not(self, text: str) -> str:
        s = self.settings
        words = text.split()
        count = len(words)
        if count < s.min_words:
            return f"fewer than {s.min_words:,} words"
        if count > s.max_words:
            return f"more than {s.max_words:,} words"
        mean = sum(map(len, words)) / max(1, count)
        if mean < s.min_mean_word_chars:
            return f"words shorter than {s.min_mean_word_chars:g} on average"
        if mean > s.max_mean_word_chars:
            return f"words longer than {s.max_mean_word_chars:g} on average"
        if text.count("#") > s.max_symbols_per_word * count:
            return f"more '#' than {s.max_symbols_per_word:g} a word"
        if text.count("...") + text.count("…") > s.max_symbols_per_word * count:
            return f"more ellipses than {s.max_symbols_per_word:g} a word"
        if reason := self._lines(text):
            return reason
        if not self._enough_letters(words):
            return f"fewer than {s.min_alphabetic_words:.0%} of words with a letter"
        if not self._enough_stop_words(text, words):
            return f"fewer than {s.min_stop_words} stop words"
        return ""

    def _lines(self, text: str) -> str:
        s = self.settings
        lines = [line for line in map(str.strip, text.split("\n")) if line]
        if sum(line.startswith(_BULLETS) for line in lines) > s.max_bullet_lines * len(lines):
            return f"more than {s.max_bullet_lines:.0%} of lines with a bullet"
        if sum(line.endswith(_ELLIPSES) for line in lines) > s.max_ellipsis_lines * len(lines):
            return f"more than {s.max_ellipsis_lines:.0%} of lines with an ellipsis"
        return ""

    def _enough_letters(self, words: Sequence[str]) -> bool:
        """Words of letters only are told fast, and are enough in nearly every text; otherwise the rest is read."""
        least = self.settings.min_alphabetic_words * len(words)
        rest = list(filterfalse(str.isalpha, words))
        found = len(words) - len(rest)
        return found >= least or found + sum(any(map(str.isalpha, word)) for word in rest) >= least

    def _enough_stop_words(self, text: str, words: Sequence[str]) -> bool:
        """Two stop words between plain spaces settle it for nearly every English text; otherwise all words are read."""
        least = self.settings.min_stop_words
        found = 0
        for each in self.quick:
            if found >= least:
                return True
            found += each in text
        if found >= least:
            return True
        return len(self.stop_words.intersection(word.strip(_EDGES).lower() for word in words)) >= least
