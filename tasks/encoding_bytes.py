"""New words of byte-level BPE, many in one call of `tiktoken`, whose merges take a fraction of the time.

Both libraries merge the adjacent pair of the lowest rank until none is left. In `tokenizers` a rank is the merge's
place in a list, in `tiktoken` the id of what the pair makes, and any pair counts that makes a token. The results are
equal where ids ascend in the order of the list and every token, by itself, is made by its merges: two neighbours that
make a token stand on that token's own way then, since no merge has crossed its ends. Both are checked at loading;
where they do not hold, this is not used.

Only parts that are certainly one word of the pre-tokeniser are given: letters, with a space before them or not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_SETTLED = "\u0530"  # Latin, Greek and Cyrillic: what is a letter below has not changed for many versions of Unicode


class ByteWords:
    """Encodes words of letters.

    Args:
        ranks: {bytes of a token: its id}.
        mixed_case: a word may have capitals after its first letter; otherwise it is two.
    """

    def __init__(self, ranks: Mapping[bytes, int], mixed_case: bool) -> None:
        import tiktoken

        # A line end is a word of its own, and in no other: it tells where words end.
        self._tiktoken = tiktoken.Encoding(
            "words", pat_str=r"[^\n]+|\n", mergeable_ranks=dict(ranks), special_tokens={}
        )
        self._line_end = ranks[b"\n"]
        self._mixed_case = mixed_case

    def takes(self, part: str) -> bool:
        """Whether a part of a text is one word, whatever the version of Unicode's tables."""
        word = part[1:] if part[:1] == " " else part
        if self._mixed_case:
            return word.isalpha() and max(word) < _SETTLED
        return word.isalpha() and word.isascii() and (len(word) == 1 or word[1:].islower())

    def encode(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids of all, uint32; how many each has, int64)."""
        ids = self._tiktoken.encode_to_numpy("\n".join([*words, ""]), disallowed_special=())
        ends = np.flatnonzero(ids == self._line_end)
        return np.delete(ids, ends), np.diff(ends, prepend=-1) - 1


def byte_words(spec: Mapping[str, Any], mixed_case: bool) -> ByteWords | None:
    """For a `tokenizer.json`, parsed, of byte-level BPE; None where the results could differ."""
    from tokenizers import Tokenizer

    model = spec["model"]
    unlike = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model.get("type") != "BPE" or spec.get("normalizer") is not None or any(model.get(name) for name in unlike):
        return None
    special = {token["content"] for token in spec.get("added_tokens") or ()}
    letters = _bytes_of_letters()
    vocabulary = {token: i for token, i in model["vocab"].items() if token not in special}
    if not set("".join(vocabulary)) <= set(letters) or not set(letters) <= set(vocabulary):
        return None
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    made = [vocabulary.get(left + right, -1) for left, right in pairs]
    if any(later < earlier for earlier, later in zip([0, *made], made, strict=False)):
        return None
    bare = {"type": "BPE", "vocab": model["vocab"], "merges": model["merges"]}
    merging = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": bare}))
    tokens = list(vocabulary)
    if [ids.ids for ids in merging.encode_batch_fast(tokens, add_special_tokens=False)] != [
        [vocabulary[t]] for t in tokens
    ]:
        return None
    return ByteWords({bytes(map(letters.__getitem__, token)): i for token, i in vocabulary.items()}, mixed_case)


def _bytes_of_letters() -> dict[str, int]:
    """{letter: byte} of the alphabet that spells bytes (GPT-2's): itself where it prints, otherwise from U+0100 on."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in prints]
    return {chr(value): value for value in prints} | {chr(256 + n): value for n, value in enumerate(others)}
