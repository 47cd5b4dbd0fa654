"""Plain text. Where documents begin is a rule, chosen by `documents` or by the file itself.

`auto` takes the first that fits the file's first 64 KiB:

- a line `<|endoftext|>`: documents lie between such lines;
- WikiText's headings (` = Title = `): an article is a document, its inner headings (` = = History = = `) are not;
- otherwise paragraphs, separated by blank lines, are gathered until a document has 2,000 characters, so that
  a play's short speeches stay with their scene and a book becomes passages. A shorter file is one document.

`blank-line`: blank lines separate documents (the layout of BERT's own files). `line`: a document per line.
`file`: a document per file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cluster.files import open_stream
from tasks.sources.base import Document, Part, ReadOptions, Source, Tally, lines

GATHERED_CHARS = 2000
_SNIFFED_BYTES = 1 << 16
_END_OF_TEXT = "<|endoftext|>"
_ARTICLE = re.compile(r"^ ?= [^=\s].* = ?$")
_ARTICLE_BYTES = re.compile(rb"^ ?= [^=\s].* = ?\r?$", re.MULTILINE)


class TextFiles(Source):
    """Text files; a document's id is its file and the line where it begins."""

    def read(self, part: Part, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        with open_stream(part.at) as stream:
            rule = options.documents
            if rule == "auto":
                rule = _rule(stream.peek(_SNIFFED_BYTES)[:_SNIFFED_BYTES])
            numbered = lines(stream, part.name, options, tally)
            for first, text in _split(numbered, rule):
                yield Document(f"{part.name}:{first}", text, part.name)


def _rule(head: bytes) -> str:
    if re.search(rb"^<\|endoftext\|>\r?$", head, re.MULTILINE):
        return "end-of-text"
    return "article" if _ARTICLE_BYTES.search(head) else "gather"


def _split(numbered: Iterator[tuple[int, str]], rule: str) -> Iterator[tuple[int, str]]:
    """(first line's number, text) of each document; blank lines at its ends are dropped."""
    held: list[str] = []
    first, chars = 0, 0
    for number, line in numbered:
        blank = not line.strip()
        if rule == "line":
            if not blank:
                yield number, line.strip()
            continue
        ends = (
            (rule == "blank-line" and blank)
            or (rule == "end-of-text" and line == _END_OF_TEXT)
            or (rule == "article" and _ARTICLE.match(line) is not None)
            or (rule == "gather" and blank and chars >= GATHERED_CHARS)
        )
        if ends:
            if held:
                yield first, "\n".join(held).strip()
            held, chars = [], 0
            if rule != "article":
                continue
        if blank:
            if held and held[-1]:
                held.append("")
            continue
        if not held:
            first = number
        held.append(line.rstrip())
        chars += len(line) + 1
    if held:
        yield first, "\n".join(held).strip()
