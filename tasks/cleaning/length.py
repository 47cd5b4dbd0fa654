"""Documents of the wrong size."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.cleaning.base import DocumentStep, Verdict
from tasks.cleaning.settings import LengthSettings


class Length(DocumentStep):
    """Drops documents that are shorter or longer than the settings allow.

        with min_words=2: "short" -> dropped, "fewer than 2 words"

    Characters are Unicode code points; words stand between white space.
    """

    settings: LengthSettings

    def clean(self, texts: Sequence[str]) -> list[Verdict]:
        s = self.settings
        verdicts = []
        for text in texts:
            reason = ""
            if len(text) < s.min_chars:
                reason = f"fewer than {s.min_chars:,} characters"
            elif s.max_chars and len(text) > s.max_chars:
                reason = f"more than {s.max_chars:,} characters"
            elif s.min_words or s.max_words:
                words = len(text.split())
                if words < s.min_words:
                    reason = f"fewer than {s.min_words:,} words"
                elif s.max_words and words > s.max_words:
                    reason = f"more than {s.max_words:,} words"
            verdicts.append(Verdict(None if reason else text, reason))
        return verdicts
