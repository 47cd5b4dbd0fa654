"""What a tokenizer does to text, in figures and by example: for `tokenizer-info.json` and comparisons.

The figures are those by which vocabularies are usually compared (Rust et al. 2021, "How Good is Your Tokenizer?",
section 3): fertility, the share of words kept whole, the unknown rate, and bytes per token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.corpus_reader import read_texts, split_bytes

MEASURED_BYTES = 4 << 20  # of the validation split

EXAMPLES = (
    ("common", "hat"),
    ("common", "learn"),
    ("variant", "taaaaasty"),
    ("misspelt", "laern"),
    ("novel", "Transformerify"),
)
"""(class, word): a vocabulary of words alone keeps the common ones and loses all others."""

_WORD = re.compile(r"\w+")


def measure(tokenizer: Any, folder: Path, special: Mapping[str, int]) -> dict[str, Any]:
    """Figures on the validation split of a corpus (the training split where there is none), at most 4 MB of it.

    fertility_tokens_per_word: tokens for each word between white space. whole_word_share: of the words in letters and
    digits, those that lie in one token which is not the unknown one; so it means the same for tokenizers that
    cut at spaces, at punctuation, or not at all. unk_rate: unknown tokens of all tokens; 0 where `special` has no
    unknown, or where it is a token that means something else (GPT-2's end of text).
    """
    import numpy as np

    split = "validation" if split_bytes(folder, "validation") else "train"
    texts = _texts(folder, split)
    size = sum(len(text.encode()) for text in texts)
    unk = special.get("unk", -1)
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
    tokens = unknown = words = runs = whole = 0
    for start in range(0, len(texts), 256):
        some = texts[start : start + 256]
        for text, encoding in zip(some, tokenizer.encode_batch(some, add_special_tokens=False), strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            tokens += len(ids)
            unknown += int((ids == unk).sum())
            words += len(text.split())
            spans = np.array([match.span() for match in _WORD.finditer(text)], dtype=np.int64).reshape(-1, 2)
            runs += len(spans)
            whole += _whole(spans, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), ids == unk)
    return {
        "fertility_tokens_per_word": round(tokens / max(1, words), 4),
        "bytes_per_token": round(size / max(1, tokens), 4),
        "unk_rate": round(unknown / max(1, tokens), 6),
        "whole_word_share": round(whole / max(1, runs), 4),
        "measured_on": split,
        "measured_bytes": size,
    }


def examples(tokenizer: Any) -> list[dict[str, Any]]:
    """The words of `EXAMPLES` as the tokenizer cuts them within a text: [{class, word, pieces}].

    Pieces are as the vocabulary spells them (`##`, `Ġ`, `▁`, `</w>`).
    """
    return [
        {"class": what, "word": word, "pieces": tokenizer.encode(f" {word}", add_special_tokens=False).tokens}
        for what, word in EXAMPLES
    ]


def _texts(folder: Path, split: str) -> list[str]:
    """The first texts of a split, the last one cut, so that a book does not make it many times too long."""
    found: list[str] = []
    left = MEASURED_BYTES
    for texts in read_texts(folder, split, rows=64):
        for text in texts:
            data = text.encode()
            found.append(text if len(data) <= left else data[:left].decode(errors="ignore"))
            left -= len(data)
            if left <= 0:
                return found
    return found


def _whole(spans: Any, offsets: Any, unknown: Any) -> int:
    """How many of the words are touched by one token only, and that a known one.

    Args:
        spans: int64 [words, 2], first and last-plus-one character of each word, ascending.
        offsets: int64 [tokens, 2], the same of the tokens; never descending, empty ones are left out.
        unknown: bool [tokens].
    """
    import numpy as np

    kept = offsets[:, 1] > offsets[:, 0]
    offsets, unknown = offsets[kept], unknown[kept]
    first = np.searchsorted(offsets[:, 1], spans[:, 0], side="right")  # tokens that end before the word
    after = np.searchsorted(offsets[:, 0], spans[:, 1], side="left")  # tokens that begin before its end
    alone = after - first == 1
    return int((alone & ~unknown[np.minimum(first, len(unknown) - 1)]).sum()) if len(unknown) else 0
