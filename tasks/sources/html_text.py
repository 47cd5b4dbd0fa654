"""The readable text of a web page: scripts, styles, menus and forms left out, blocks kept as lines and paragraphs.

The page is parsed by libxml2 (lxml), which makes a tree of any markup. What is a block and what is left out follows
the HTML standard's default style sheet and sectioning elements; nothing is guessed from class names or densities.
"""

from __future__ import annotations

import codecs
import re
from typing import Any, NamedTuple

_LEFT_OUT = frozenset((
    "script", "style", "nav", "template", "noscript", "svg", "math", "head", "iframe", "object", "embed", "canvas",
    "audio", "video", "map", "button", "select", "textarea", "input", "option", "datalist", "dialog", "menu", "aside",
    "footer",
))  # fmt: skip
_PARAGRAPHS = frozenset((
    "p", "div", "section", "article", "main", "header", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "ul",
    "ol", "dl", "table", "figure", "figcaption", "address", "details", "summary", "fieldset", "form", "hr", "body",
    "center", "hgroup", "search",
))  # fmt: skip
_LINES = frozenset(("li", "dt", "dd", "tr", "br", "caption", "thead", "tbody", "tfoot"))
_INLINE = (
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins",
    "kbd", "label", "mark", "nobr", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt",
    "u", "var", "wbr",
)  # fmt: skip
_CELLS = frozenset(("td", "th"))
_SPACES = re.compile(r"[ \t\n\r\f]{2,}|[\t\n\r\f]")  # white space of HTML that is not one blank; a no-break space stays
_META_CHARSET = re.compile(rb"<meta[^>]{0,300}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{2,40})", re.IGNORECASE)
_HEADER_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{2,40})", re.IGNORECASE)
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_SNIFFED_BYTES = 4096
# Browsers read pages that say latin-1 or ASCII as windows-1252 (WHATWG Encoding, section 4.2).
_MEANT = {"iso8859-1": "cp1252", "ascii": "cp1252", "latin-1": "cp1252", "iso8859-9": "cp1254"}


class Page(NamedTuple):
    title: str
    text: str


def decode_page(raw: bytes, content_type: str = "") -> tuple[str, bool]:
    """(text, whether bytes had to be replaced) of a page: by byte-order mark, HTTP header, or meta element.

    A page that names no charset, or one unknown here, is UTF-8 if it can be, else windows-1252.
    """
    for mark, name in _BOMS:
        if raw.startswith(mark):
            return _decoded(raw[len(mark) :], name)
    said = _HEADER_CHARSET.search(content_type)
    in_page = _META_CHARSET.search(raw, 0, _SNIFFED_BYTES)
    for label in (said and said[1], in_page and in_page[1].decode("ascii")):
        name = _known(label or "")
        if name and not (label is not said and name.startswith("utf-16")):  # its own markup was read as ASCII
            return _decoded(raw, name)
    try:
        return raw.decode(), False
    except UnicodeDecodeError:
        return _decoded(raw, "cp1252")


def _known(label: str) -> str:
    try:
        codec = codecs.lookup(label)
    except (LookupError, ValueError):
        return ""
    if not getattr(codec, "_is_text_encoding", True) or codec.name in ("idna", "punycode", "unicode_escape", "utf-7"):
        return ""
    return _MEANT.get(codec.name, codec.name)


def _decoded(raw: bytes, name: str) -> tuple[str, bool]:
    try:
        return raw.decode(name), False
    except (UnicodeError, ValueError):
        return raw.decode(name, "replace"), True


def read_page(html: str) -> Page:
    """Title and text of a page; both empty where there is nothing to read.

    Paragraphs are separated by a blank line, list items, table rows and `<br>` by a newline, table cells by a tab.
    """
    from lxml import etree

    data = html.replace("\0", "").encode("utf-8", "replace")
    parser = etree.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True, huge_tree=True)
    try:
        parser.feed(data)
        root = parser.close()
    except (etree.LxmlError, AssertionError, ValueError):
        return Page("", "")
    if root is None:
        return Page("", "")
    title = root.findtext(".//title") or ""
    for hidden in root.xpath("//*[@hidden or @aria-hidden='true']"):
        hidden.tag = "template"
    etree.strip_elements(root, *_LEFT_OUT, with_tail=False)
    etree.strip_tags(root, *_INLINE)  # in C: what is left to walk over is blocks
    return Page(_SPACES.sub(" ", title).strip(), _text(root))


def _text(root: Any) -> str:
    """Text in the order of the page, without recursion: pages nest deeper than Python's stack."""
    parts: list[str] = []
    pre = 0
    todo: list[tuple[Any, bool]] = [(root, True)]
    while todo:
        node, opens = todo.pop()
        tag = node.tag if isinstance(node.tag, str) else ""
        parts.append(_break(tag))
        if opens:
            pre += tag == "pre"
            text = node.text if tag else None
            todo.append((node, False))
            if len(node):
                todo.extend((child, True) for child in node.iterchildren(reversed=True))
        else:
            pre -= tag == "pre"
            text = node.tail
        if text:
            parts.append(_kept_spaces(text) if pre > 0 else text)
    return _joined(_SPACES.sub(" ", "".join(parts)))


# Marks of breaks among the parts; they cannot be in a parsed page, whose NUL bytes and form feeds are gone.
_PARAGRAPH, _LINE, _CELL, _SPACE = "\0p", "\0l", "\0c", "\0s"


def _break(tag: str) -> str:
    if tag in _PARAGRAPHS:
        return _PARAGRAPH
    return _LINE if tag in _LINES else _CELL if tag in _CELLS else ""


def _kept_spaces(text: str) -> str:
    return text.expandtabs(8).replace(" ", _SPACE).replace("\n", _LINE).replace("\r", "")


def _joined(marked: str) -> str:
    paragraphs = []
    for paragraph in marked.split(_PARAGRAPH):
        if "\0" not in paragraph:
            if shown := paragraph.strip(" "):
                paragraphs.append(shown)
            continue
        lines = []
        for line in paragraph.split(_LINE):
            cells = (cell.strip(" ") for cell in line.split(_CELL))
            shown = "\t".join(cell for cell in cells if cell).replace(_SPACE, " ").rstrip()
            if shown:
                lines.append(shown)
        if lines:
            paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)
