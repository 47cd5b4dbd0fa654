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

from tasks.downstream.docs_text import Doc, apart, both_sides, need_rows
from tasks.downstream.spec import Downstream, Row, Splits, rank

_CONTEXT = 160  # characters of a window, at most
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
        """One row a docstring: a window of its text that shows a parameter and its type, and the question on it.

        Which parameter and which window is a pure function of (seed, document).
        """
        splits: Splits = {
            split: [row for doc in docs if (row := question(doc, seed))]
            for split, docs in both_sides(corpus, self.name).items()
        }
        notes: dict[str, Any] = dict(apart(splits, "text_b"))
        need_rows(self.name, splits)
        return splits, notes


def bare_type(text: str) -> str:
    """A parameter's type without its default.

    >>> bare_type("int or None, optional (default=None)")
    'int or None'
    """
    return _EXTRA.sub("", text).strip(" ,;")


def question(doc: Doc, seed: int) -> Row | None:
    """The question on one parameter of a docstring; None where it names no parameter with a short type.

    The window begins and ends at a word, anywhere that leaves the name and the type inside.
    """
    flat, spots = _spots(doc)
    if not spots:
        return None
    name, at, start, answer = spots[rank("parameter", seed, doc.id) % len(spots)]
    end = start + len(answer)
    earliest = max(0, end - _CONTEXT)
    begins = [p for p in range(earliest, at + 1) if p == 0 or flat[p - 1] == " "]
    if not begins or len(flat) < 2 * len(answer):
        return None
    low = begins[rank("window", seed, doc.id) % len(begins)]
    high = low + _CONTEXT
    if high < len(flat):
        high = max(end, flat.rfind(" ", low, high + 1))
    return Row(doc.id, f"What type is parameter {name}?", flat[low:high], None, (answer,), (start - low,))


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
