"""C4's rules: lines that are sentences, pages that are prose."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from cluster.errors import BadConfig, BadData
from tasks.cleaning.base import DocumentStep, Verdict
from tasks.cleaning.settings import C4Settings

_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
# where a sentence ends: a mark, what closes after it, and then a space or the end; so not within 3.14 or example.com
_SENTENCE_END = re.compile(r"[.!?。！？][\"'”’»)\]]*(?=\s|$)|[。！？]")
_ELLIPSES = ("...", "…")
_WORD = re.compile(r"\w+")


class C4(DocumentStep):
    """The heuristics of the Colossal Clean Crawled Corpus (Raffel et al. 2020, section 2.2).

        "Home About\\nThis line is a sentence[1].\\nSo is this one, too. It has more." ->
        "This line is a sentence.\\nSo is this one, too. It has more."

    Lines are stripped, and go unless they end in a terminal mark (an ellipsis is none), have at least five words, and
    neither name JavaScript nor speak of cookies, terms of use or a privacy policy. Documents go where "lorem ipsum" or
    "{" stands in them, a word of `bad_words_file`, or where fewer than three sentences are left. As in the authors'
    code, what stands in a line that went still counts against the document, and lines with a word of more than 1,000
    characters go. Left out: removing spans of three sentences that occur twice in the corpus (`duplicate-paragraphs`
    does such work), and language detection (`language`).
    """

    settings: C4Settings

    def __init__(self, settings: C4Settings, evaluation: object = None) -> None:
        self.settings = settings
        self.marks = tuple(settings.terminal_marks)
        self.bad_words = _BadWords(settings.bad_words_file) if settings.bad_words_file else None

    def clean(self, texts: Sequence[str]) -> list[Verdict]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Verdict:
        s = self.settings
        low = text.lower()
        if s.curly_brackets and "{" in text:
            return Verdict(None, "has a curly bracket")
        if s.lorem_ipsum and "lorem ipsum" in low:
            return Verdict(None, "has lorem ipsum")
        if self.bad_words and self.bad_words.found(low):
            return Verdict(None, "has a word of bad_words_file")
        javascript = s.javascript_lines and "javascript" in low
        policy = [phrase for phrase in _POLICY if phrase in low] if s.policy_lines else []
        given, counts = text, Counter[str]()
        if s.citation_marks and "[" in text:
            text, counts["citation marks"] = _CITATION.subn("", text)
        kept: list[str] = []
        sentences = 0
        for line in text.split("\n"):
            line = line.strip()
            if not line:
                if kept and kept[-1]:
                    kept.append("")  # paragraphs stay apart
                continue
            if reason := self._line(line, javascript, policy):
                counts[reason] += 1
                continue
            kept.append(line)
            if sentences < s.min_sentences:  # enough is enough: the rest need not be counted
                sentences += len(_SENTENCE_END.findall(line)) or 1
        if sentences < s.min_sentences:
            return Verdict(None, f"fewer than {s.min_sentences} sentences")
        text = "\n".join(kept).rstrip("\n")
        if text == given:
            return Verdict(given)
        found = {what: n for what, n in counts.items() if n}
        if not found:
            return Verdict(text, "white space around lines removed")
        return Verdict(text, "lines or marks removed", found)

    def _line(self, line: str, javascript: bool, policy: Sequence[str]) -> str:
        """Why a line goes; empty: it stays."""
        s = self.settings
        if self.marks and (not line.endswith(self.marks) or line.endswith(_ELLIPSES)):
            return "lines without a terminal mark"
        least = s.min_line_words
        if least and len(line.split(None, least - 1)) < least:  # cut no further than must be known
            return f"lines of fewer than {least} words"
        if 0 < s.max_word_chars < len(line) and max(map(len, line.split())) > s.max_word_chars:
            return "lines with an endless word"
        if javascript or policy:
            low = line.lower()
            if javascript and "javascript" in low:
                return "lines with JavaScript"
            if any(phrase in low for phrase in policy):
                return "lines on policies or cookies"
        return ""


class _BadWords:
    """A file's words and phrases, one a line, to be found as whole words in lower-case text."""

    def __init__(self, url: str) -> None:
        from cluster.files import open_plain

        try:
            with open_plain(url) as file:
                lines = {line.strip() for line in file.read().decode("utf-8-sig").lower().splitlines()} - {""}
        except (BadConfig, BadData, UnicodeDecodeError) as error:
            said = getattr(error, "message", str(error))
            raise BadConfig(f"bad_words_file cannot be read: {said}", "give a UTF-8 text, a word a line") from None
        self.words = frozenset(line for line in lines if _WORD.fullmatch(line))
        self.phrases = sorted(lines - self.words)

    def found(self, low: str) -> bool:
        if not self.words.isdisjoint(_WORD.findall(low)):
            return True
        return any(phrase in low and re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", low) for phrase in self.phrases)
