"""Sentences of English text by rule, for packings and objectives that keep them whole.

A sentence ends at `.`, `!`, `?` or `…` (closing quotes and brackets included) before white space, at `。！？`
anywhere, and at a blank line. A full stop does not end one after a known abbreviation or a single letter ("Dr.
Smith", "J. R. Tolkien", "No. 5"), and no mark does where a small letter follows ('"Who?" he said').

Nothing is lost: the sentences joined are the text. White space between two belongs to the second, as a space belongs
to the word after it in byte-level BPE; so tokens of the sentences are the tokens of the text.
"""

from __future__ import annotations

import re

_END = re.compile(
    r"""
    (?P<mark> [.!?…]+ ["'”’»)\]]* ) (?= \s+ (?P<next> \S ) )
    | [。！？]+ [」』”’）]*
    | (?<= \S ) (?= [^\S\n]* \n [^\S\n]* \n )
    """,
    re.VERBOSE,
)
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘]*$")
_LONGEST_ABBREVIATION = 12
_TITLES = "mr mrs ms dr prof rev hon st sr jr gen col lt sgt capt cmdr maj adm gov sen rep pres messrs mme"
_OTHERS = "eds cf vs v ca approx e.g i.e viz al ibid inc ltd co corp dept univ assn bros mt ave blvd u.s u.k"
_NUMBERED = "no nos vol vols fig figs eq eqs sec ch p pp op ed art"
_DATES = "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun"
_ABBREVIATIONS = frozenset([*_TITLES.split(), *_OTHERS.split()])
_BEFORE_A_NUMBER = frozenset([*_NUMBERED.split(), *_DATES.split()])  # words of their own otherwise: "He sat. Then"


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, each with the white space before it; none for a text of white space only.

    >>> split_sentences("Dr. No came.  He left! (Why?)\\n\\nA title\\n\\nThe end.")
    ['Dr. No came.', '  He left!', ' (Why?)', '\\n\\nA title', '\\n\\nThe end.']
    """
    found: list[str] = []
    start = 0
    for match in _END.finditer(text):
        if match["mark"] is not None and not _ends(text, match):
            continue
        end = match.end()
        if end > start:
            found.append(text[start:end])
            start = end
    rest = text[start:]
    if rest.strip():
        found.append(rest)
    elif found:
        found[-1] += rest
    return found


def _ends(text: str, match: re.Match[str]) -> bool:
    if match["next"].islower():
        return False
    if match["mark"] != ".":
        return True
    at = match.start()
    word = _LAST_WORD.search(text[max(0, at - _LONGEST_ABBREVIATION) : at])
    spelled = word[0].lower() if word else ""
    if spelled in _ABBREVIATIONS or (len(spelled) == 1 and spelled.isalpha() and spelled != "i"):
        return False
    return not (spelled in _BEFORE_A_NUMBER and match["next"].isdigit())
