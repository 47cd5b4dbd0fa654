"""Counting words: `len(text.split())` of many texts at once, on their UTF-8 bytes."""

from __future__ import annotations

from typing import Any


def word_counts(texts: Any) -> Any:
    """How many words each text has: runs of characters that are not white space, as `str.split` sees it.

    Args:
        texts: an Arrow string array without nulls, [N].

    Returns:
        A NumPy array of int32 [N].
    """
    import numpy as np

    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    if not len(texts) or offsets[0] == offsets[-1]:
        return np.zeros(len(texts), np.int32)
    data = np.frombuffer(texts.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    # In bytes, where subtraction wraps round: tab to carriage return, and the separators 1c to 1f with the blank.
    space = (data - np.uint8(9) < 5) | (data - np.uint8(28) < 5)
    _mark_wide_spaces(data, space)
    starts = ~space
    starts[1:] &= space[:-1]
    edges = offsets - offsets[0]
    first = edges[:-1][np.diff(edges) > 0]
    starts[first] = ~space[first]
    ends = edges.tolist()
    return np.array([np.count_nonzero(starts[begin:end]) for begin, end in zip(ends, ends[1:], strict=False)], np.int32)


def _mark_wide_spaces(data: Any, space: Any) -> None:
    """Mark Unicode's other white space, of two and three bytes.

    c2 85, c2 a0; e1 9a 80; e2 80 80 to 8a, a8, a9, af; e2 81 9f; e3 80 80. What follows a lead byte is there.
    """
    import numpy as np

    at = np.flatnonzero(data >= 0xC2)
    lead = data[at]
    at = at[(lead == 0xC2) | ((lead >= 0xE1) & (lead <= 0xE3))]
    lead, second = data[at], data[at + 1]
    two = at[(lead == 0xC2) & ((second == 0x85) | (second == 0xA0))]
    at, lead, second = at[lead != 0xC2], lead[lead != 0xC2], second[lead != 0xC2]
    third = data[at + 2]
    general = (lead == 0xE2) & (second == 0x80)
    wide = (lead == 0xE1) & (second == 0x9A) & (third == 0x80)
    wide |= general & ((third <= 0x8A) | (third == 0xA8) | (third == 0xA9) | (third == 0xAF))
    wide |= (lead == 0xE2) & (second == 0x81) & (third == 0x9F)
    wide |= (lead == 0xE3) & (second == 0x80) & (third == 0x80)
    three = at[wide]
    for places, width in ((two, 2), (three, 3)):
        for byte in range(width):
            space[places + byte] = True
