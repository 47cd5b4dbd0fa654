"""Plain text. Where documents begin is a rule, chosen by `documents` or by the file itself.

`auto` takes the first that fits the file's first 64 KiB:

- a line `<|endoftext|>`: documents lie between such lines;
- WikiText's headings (` = Title = `): an article is a document, its inner headings (` = = History = = `) are not;
- otherwise paragraphs, separated by blank lines, are gathered until a document has 2,000 characters, so that
  a play's short speeches stay with their scene and a book becomes passages. A shorter file is one document.

`blank-line`: blank lines separate documents (the layout of BERT's own files). `line`: a document per line.
`file`: a document per file.

Large plain files are read in pieces of `PART_BYTES`, at lines where a document begins whatever stood before: each
rule has such lines, and gathering gets them by a rule of its own: the first blank line at or behind each multiple of
`PART_BYTES` of the content also ends a document. It holds for every file, so documents do not depend on how a file
is compressed or read. NUL bytes are dropped and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cluster.files import File
from tasks.sources.base import PART_BYTES, Document, Piece, ReadOptions, Source, Tally, byte_ranges
from tasks.sources.lines import Lines

GATHERED_CHARS = 2000
_SNIFFED_BYTES = 1 << 16
_END_OF_TEXT = "<|endoftext|>"
_ARTICLE = re.compile(r"^ ?= [^=\s].* = ?$")
_ARTICLE_BYTES = re.compile(rb"^ ?= [^=\s].* = ?\r?$", re.MULTILINE)


class TextFiles(Source):
    """Text files; a document's id is its file and the line where it begins."""

    def ranges(self, file: File, options: ReadOptions) -> list[tuple[int, int]]:
        return [] if options.documents == "file" else byte_ranges(file)

    def read_piece(self, piece: Piece, options: ReadOptions, tally: Tally) -> Iterator[Document]:
        rule = options.documents
        if rule == "auto" and piece.start:
            with Lines(Piece(piece.name, piece.url), options, Tally(piece.name, options)) as beginning:
                rule = _rule(beginning.head(_SNIFFED_BYTES))
        with Lines(piece, options, tally, without_nul=True) as lines:
            if rule == "auto":
                rule = _rule(lines.head(_SNIFFED_BYTES))
            if piece.start and rule != "line" and not lines.seek(lambda line: _begins(line, rule), piece.end):
                return
            for first, text in _split(_spans(lines, piece, rule), rule, options.max_document_chars):
                yield Document("", text, piece.name, line=first)


def _rule(head: bytes) -> str:
    if re.search(rb"^<\|endoftext\|>\r?$", head, re.MULTILINE):
        return "end-of-text"
    return "article" if _ARTICLE_BYTES.search(head) else "gather"


def _begins(line: str, rule: str) -> bool:
    """Whether a document ends before this line or begins with it, whatever stood before."""
    if rule == "end-of-text":
        return line == _END_OF_TEXT
    if rule == "article":
        return _ARTICLE.match(line) is not None
    return not line.strip()


def _spans(lines: Lines, piece: Piece, rule: str) -> Iterator[tuple[int, str] | None]:
    """The piece's lines, with None where its bytes pass a multiple of `PART_BYTES`.

    A piece goes on to the line where the next one begins.
    """
    if piece.end < 0:
        while True:
            before = lines.at
            yield from lines.until(before - before % PART_BYTES + PART_BYTES)
            if lines.at == before:
                return
            yield None
    yield from lines.until(piece.end)
    if rule == "line":
        return
    yield None
    yield from lines.beyond(lambda line: _begins(line, rule))


def _split(numbered: Iterator[tuple[int, str] | None], rule: str, max_document_chars: int) -> Iterator[tuple[int, str]]:
    """(first line's number, text) of each document; blank lines at its ends are dropped.

    A document that grows beyond `max_document_chars` comes cut, but longer than that.
    """
    if rule == "line":
        for each in numbered:
            if each is not None and (text := each[1].strip()):
                yield each[0], text
        return
    held: list[str] = []
    first = chars = 0
    enough = GATHERED_CHARS if rule == "gather" else 0
    kept = 0  # characters that will be in the document at least
    for each in numbered:
        if each is None:
            if rule == "gather":
                enough = 0
            continue
        number, line = each
        text = line.rstrip()
        if text:
            ends = (rule == "article" and _ARTICLE.match(line) is not None) or (
                rule == "end-of-text" and line == _END_OF_TEXT
            )
        else:
            ends = rule == "blank-line" or (rule == "gather" and chars >= enough)
        if ends:
            if held:
                yield first, "\n".join(held).strip()
                held, chars, kept = [], 0, 0
            if rule == "gather":
                enough = GATHERED_CHARS
            if rule != "article":
                continue
        if not text:
            if held and held[-1]:
                held.append("")
            continue
        if not held:
            first = number
        chars += len(line) + 1
        if kept <= max_document_chars:
            held.append(text)
            kept += len(text.lstrip())
    if held:
        yield first, "\n".join(held).strip()
