"""Docstrings as plain English: markup, code and tables go, their words and the described parameters stay."""

from __future__ import annotations

import re

_FEWEST_WORDS = 8
_LEAST_LETTERS = 0.7  # share of letters and spaces; tables and code fall below

_ROLE = re.compile(r":(?:[a-zA-Z][\w+-]*:)+`([^`<]*?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}")
_TICKS = re.compile(r"`+([^`]*)`+_{0,2}")
_NOT_WORDS = re.compile(r"[^\w\s]|[\d_]")
_PLACEHOLDER = re.compile(r"^\s*(%\(\w+\)s|\{\w+\})\s*$")
_RULE_LINE = re.compile(r"^[\s\-=~^*#+|_.:\"'`]*$")
_TABLE_LINE = re.compile(r"^\s*(\|.*\||[=\-]{2,}(\s+[=\-]{2,})+)\s*$")
_DIRECTIVE = re.compile(r"^(\s*)\.\.\s+([\w-]+)::\s*(.*)$")
_FOOTNOTE = re.compile(r"^(\s*)\.\.\s+(\[[\w#*-]+\])\s*(.*)$")
_COMMENT = re.compile(r"^\s*\.\.(\s+[^:]*:?.*)?$")
_FIELD_LINE = re.compile(r"^(\s*):(param|parameter|arg|type|returns?|rtype|raises?)\s*([^:`]*):\s*(.*)$")
_WITH_BLOCK = {
    "code-block", "code", "sourcecode", "plot", "math", "testcode", "testsetup", "testoutput", "doctest",
    "autosummary", "toctree", "ipython", "currentmodule", "graphviz", "figure", "image", "inheritance-diagram",
    "raw", "table", "list-table", "csv-table",
}  # fmt: skip
_AS_WORDS = {"note": "Note:", "warning": "Warning:", "seealso": "See also:", "tip": "Tip:", "important": "Important:"}
_NUMPY_ITEM = re.compile(r"^([*\w][\w.]*(?:,\s*[*\w][\w.]*)*) ?: ?(\S.{0,199})$")
_GOOGLE_ITEM = re.compile(r"^\s+([*\w][\w.]*) \(([^()]{2,80}(?:\([^()]*\)[^()]*)*)\) ?: ")
_NO_PARAMETER = {
    "Note", "Notes", "Warning", "Tip", "Important", "Returns", "Return", "Raises", "Yields", "Example",
    "Examples", "References",
}  # fmt: skip
_PARAMETERS = frozenset({"Parameters", "Other Parameters"})
_ARGUMENTS = frozenset({"Args:", "Arguments:", "Keyword Args:", "Keyword Arguments:", "Parameters:"})


def clean(raw: str) -> tuple[str, list[dict[str, str]]]:
    """A docstring as plain text, and the parameters it describes: `[{"name", "type"}]`.

    Examples' code, tables, rules and directives go; roles, links and backticks leave their words. Each
    type is a substring of the text.
    """
    import inspect

    kept: list[str] = []
    skip_deeper = -1  # drop lines indented deeper than this (a directive's block)
    in_doctest = in_fence = False
    for line in inspect.cleandoc(raw).split("\n"):
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if bare.startswith("```"):
            in_fence = not in_fence
            continue
        if in_fence:
            continue
        if skip_deeper >= 0:
            if not bare or indent > skip_deeper:
                continue
            skip_deeper = -1
        if bare.startswith(">>>"):
            in_doctest = True
        if in_doctest:
            in_doctest = bool(bare)
            continue
        if not bare:
            kept.append("")
            continue
        if _RULE_LINE.match(line) or _TABLE_LINE.match(line) or _PLACEHOLDER.match(line):
            continue
        if bare.startswith(".."):
            if found := _FOOTNOTE.match(line):
                line = f"{found[1]}{found[2]} {found[3]}"
            elif found := _DIRECTIVE.match(line):
                if found[2] in _WITH_BLOCK:
                    skip_deeper = indent
                    continue
                if found[2] not in _AS_WORDS:
                    continue
                line = f"{found[1]}{_AS_WORDS[found[2]]} {found[3]}"
            elif _COMMENT.match(line):
                continue
        elif found := _FIELD_LINE.match(line):
            line = f"{found[1]}{found[3] or found[2].capitalize()}: {found[4]}"
        kept.append(_inline(line).rstrip())
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
    return text, _parameters(text.split("\n"))


def _inline(line: str) -> str:
    if "`" in line:
        line = _ROLE.sub(lambda m: m[1].rsplit(".", 1)[-1] if m[1].startswith("~") else m[1].lstrip("!"), line)
        line = _TICKS.sub(r"\1", _LINK.sub(r"\1", line))
    return line.replace("**", "").replace("::", ":")


def _parameters(lines: list[str]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    section = ""
    for line in lines:
        bare = line.strip()
        if bare in _PARAMETERS or bare in _ARGUMENTS:
            section = bare
        elif section in _PARAMETERS:
            if line[:1].isspace():
                continue
            if (item := _NUMPY_ITEM.match(line)) and item[1] not in _NO_PARAMETER:
                found.append({"name": item[1], "type": item[2].strip()})
            elif bare:
                section = ""
        elif section in _ARGUMENTS:
            if item := _GOOGLE_ITEM.match(line):
                found.append({"name": item[1], "type": item[2].strip()})
            elif bare and not line[:1].isspace():
                section = ""
    return found


def summary(text: str) -> str:
    """The first paragraph, on one line."""
    return " ".join(text.split("\n\n", 1)[0].split())


def is_prose(text: str) -> bool:
    """Whether the text has words enough and is not mainly code or figures."""
    if len(text.split()) < _FEWEST_WORDS:
        return False
    return len(text) - len(_NOT_WORDS.sub("", text)) <= (1 - _LEAST_LETTERS) * len(text)
