"""Sentences of English text by rule, for packings and objectives that keep them whole.

A sentence ends at `.`, `!`, `?` or `…` (closing quotes and brackets included) before white space, at `。！？`
anywhere, and at a blank line. A full stop does not end one after a known abbreviation or a single letter ("Dr.
Smith", "J. R. Tolkien", "No. 5"), and no mark does where a small letter follows ('"Who?" he said').

Nothing is lost: the sentences joined are the text. White space between two belongs to the second, as a space belongs
to the word after it in byte-level BPE; so tokens of the sentences are the tokens of the text.
"""

from __future__ import annotations

import re

import numpy as np

# One set of characters first, which the engine looks for at the speed of a plain search; then what each needs.
_END = re.compile(
    r"""
    [.!?…。！？\n]
    (?: (?<= [.!?…] ) [.!?…]* ["'”’»)\]]* (?= \s+ (?P<next> \S ) )
    |   (?<= [。！？] ) [。！？]* [」』”’）]*
    |   (?<= \n ) (?P<blank> [^\S\n]* \n )
    )
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
    ends = sentence_ends(text)
    return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def sentence_ends(text: str) -> list[int]:
    """Where the sentences of a text end, in characters; the last ends with the text."""
    found: list[int] = []
    start = 0
    for match in _END.finditer(text):
        if match["blank"] is not None:
            end = match.start()
            while end > start and text[end - 1].isspace() and text[end - 1] != "\n":
                end -= 1
            if not end or text[end - 1].isspace():
                continue
        elif match["next"] is not None and not _ends(text, match):
            continue
        else:
            end = match.end()
        if end > start:
            found.append(end)
            start = end
    if text[start:].strip():
        found.append(len(text))
    elif found:
        found[-1] = len(text)
    return found


def sentence_places(data: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sentences of consecutive texts in UTF-8.

    Args:
        data: uint8 [N]. places: int64 [texts + 1], where the texts begin, and N. No text is of white space only.

    Returns:
        int64 [sentences + 1], where the sentences begin, and N; int64 [sentences], the number of each one's text.
    """
    ends: list[np.ndarray] = []
    bounds = places.tolist()
    for begin, end in zip(bounds, bounds[1:], strict=False):
        text = data[begin:end].tobytes().decode()
        own = np.array(sentence_ends(text), dtype=np.int64)
        if len(text) < end - begin:  # from characters to bytes
            firsts = np.flatnonzero((data[begin:end] & 0xC0) != 0x80)
            own = np.append(firsts, end - begin)[own]
        ends.append(own + begin)
    texts = np.repeat(np.arange(len(ends)), [len(own) for own in ends])
    return np.concatenate([np.zeros(1, dtype=np.int64), *ends]), texts


def _ends(text: str, match: re.Match[str]) -> bool:
    if match["next"].islower():
        return False
    if match[0] != ".":
        return True
    at = match.start()
    word = _LAST_WORD.search(text[max(0, at - _LONGEST_ABBREVIATION) : at])
    spelled = word[0].lower() if word else ""
    if spelled in _ABBREVIATIONS or (len(spelled) == 1 and spelled.isalpha() and spelled != "i"):
        return False
    return not (spelled in _BEFORE_A_NUMBER and match["next"].isdigit())
