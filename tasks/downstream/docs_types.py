"""`docs-parameter-type`: extractive question answering over parameter lists, in SQuAD's form.

- question: What type is parameter axis?
- context: a : array_like Input array … axis : {int, None} Axis along which … out : ndarray …
- answer: {int, None}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.downstream.docs_text import Doc, apart, documents, need_rows
from tasks.downstream.spec import Downstream, Row, Splits, rank

_CONTEXT = 140  # characters of a window, at most
_ANSWER = 48  # characters; longer types are enumerations rather than types
_FORMS = (" : ", ": ", " (", "(")  # between a parameter's name and its type
_FEWEST = 2  # parameters a window must show: with one there is nothing to find
# "int, optional", "float, default=1.0", "bool (default: True)", "str, *optional*, defaults to None": the type alone.
_EXTRA = re.compile(r"[,;]?\s*(\*?optional\*?|\(?defaults?\b|\(optional|keyword[- ]only|by default).*$", re.IGNORECASE)


@dataclass(frozen=True)
class DocsParameterType(Downstream):
    @property
    def needs_corpus(self) -> bool:
        return True

    def build(self, corpus: Path, seed: int) -> tuple[Splits, dict[str, Any]]:
        """A window of each docstring with two parameters or more, and a question on each of them, as in SQuAD.

        Several questions on one text make the question count: who only looks for something like a type
        is right on one of them. Which window is a pure function of (seed, document).
        """
        asked: dict[str, list[Row]] = {}
        windows: Splits = {}
        for split in ("train", "validation"):
            windows[split] = []
            for doc in documents(corpus, split, self.name):
                if rows := questions(doc, seed):
                    asked[doc.id] = rows
                    windows[split].append(Row(doc.id, "", rows[0].text_b))
        notes: dict[str, Any] = dict(apart(windows, "text_b"))
        splits = {split: [row for window in found for row in asked[window.id]] for split, found in windows.items()}
        need_rows(self.name, splits)
        return splits, notes


def bare_type(text: str) -> str:
    """A parameter's type without its default.

    >>> bare_type("int or None, optional (default=None)")
    'int or None'
    """
    return _EXTRA.sub("", text).strip(" ,;")


def questions(doc: Doc, seed: int) -> list[Row]:
    """The questions on one window of a docstring; none where no window shows two parameters of different types.

    A window begins at a parameter's name and ends at a word. Rows are named `document#parameter`.
    """
    flat, spots = _spots(doc)
    fitting = []
    for low in (spot[1] for spot in spots):
        high = low + _CONTEXT
        if high < len(flat):
            high = max(low, flat.rfind(" ", low, high + 1))
        shown = [spot for spot in spots if low <= spot[1] and spot[2] + len(spot[3]) <= high]
        if len({answer for *_, answer in shown}) >= _FEWEST:
            fitting.append((low, high, shown))
    if not fitting:
        return []
    low, high, shown = fitting[rank(seed, doc.id) % len(fitting)]
    context = flat[low:high]
    return [
        Row(f"{doc.id}#{name}", f"What type is parameter {name}?", context, None, (answer,), (start - low,))
        for name, _, start, answer in shown
    ]


def _spots(doc: Doc) -> tuple[str, list[tuple[str, int, int, str]]]:
    """The text on one line, and (name, place of the name, place of the type, type) of each parameter found in order."""
    flat = " ".join(doc.text.split())
    spots = []
    at = 0
    for name, stated in doc.parameters:
        answer = bare_type(" ".join(stated.split()))
        if not answer or len(answer) > _ANSWER or "," in name:
            continue
        found = min((p for form in _FORMS if (p := _find(flat, name + form + answer, at)) >= 0), default=-1)
        if found < 0:
            continue
        at = found + max(len(name + form + answer) for form in _FORMS if flat.startswith(name + form + answer, found))
        spots.append((name.lstrip("*"), found, at - len(answer), answer))
    return flat, spots


def _find(flat: str, text: str, at: int) -> int:
    """Place of `text` from `at` on that does not begin inside a word; -1 where there is none."""
    while (at := flat.find(text, at)) > 0 and (flat[at - 1].isalnum() or flat[at - 1] == "_"):
        at += 1
    return at


DOCS_PARAMETER_TYPE = DocsParameterType(
    name="docs-parameter-type",
    kind="span",
    metrics=("token_f1", "exact_match"),
    primary="token_f1",
    description="the type of a parameter, found in a stretch of a docstring that shows several parameters",
)
