"""The bytes of text that tokens stand for: what a loss per byte is divided by.

A byte-level tokenizer's tokens are bytes. Others keep less than the text had: WordPiece no spaces, GPT's BPE an end of
word also before a comma, SentencePiece one space for several, and all of them less of what a normaliser changes. So
their tokens are given the bytes they most often stand for, and all of them are scaled by what a text really has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np

SAMPLE_BYTES = 1 << 20
"""Of text that `bytes_per_token_byte` looks at."""


def token_bytes(tokenizer_json: str, size: int) -> np.ndarray:
    """UTF-8 bytes of the text that each token stands for: int64 [size].

    A byte-level token has a character for each byte; `<0x0A>` is a byte; `▁` and the end of a word (`</w>`) are a
    space. WordPiece keeps no spaces: a token that begins a word counts one before it.

        WordPiece   the 4 (with its space)   ##ing 3
        byte-level  Ġthe 4                   Unigram  ▁the 4
    """
    from tasks.vocabulary import load_tokenizer

    config = json.loads(tokenizer_json)
    model, decoder = config["model"], json.dumps(config.get("decoder") or {})
    byte_level, suffix = '"ByteLevel"' in decoder, model.get("end_of_word_suffix") or ""
    prefix = model.get("continuing_subword_prefix") or "" if model["type"] == "WordPiece" else ""
    found = np.zeros(size, dtype=np.int64)
    for token, i in load_tokenizer(tokenizer_json).get_vocab(with_added_tokens=True).items():
        if i >= size:
            continue
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            found[i] = 1
        elif byte_level:
            found[i] = len(token)
        elif prefix:
            word = not token.startswith(prefix)
            found[i] = len(token.removeprefix(prefix).encode()) + word
        else:
            text = token.replace("▁", " ")
            found[i] = len((text.removesuffix(suffix) + " " if suffix and text.endswith(suffix) else text).encode())
    return found


def bytes_per_token_byte(tokenizer_json: str, special: np.ndarray, texts: Iterable[str]) -> float:
    """UTF-8 bytes of texts, less those that became special tokens (unknown ones), over the `token_bytes` of the others.

    Args:
        special: bool [vocabulary].
        texts: as many are read as make `SAMPLE_BYTES`; none where tokens are the text's own bytes: exactly 1.
    """
    from tasks.vocabulary import load_tokenizer

    config = json.loads(tokenizer_json)
    if '"ByteLevel"' in json.dumps(config.get("decoder") or {}) and not config.get("normalizer"):
        return 1.0
    tokenizer, size_of = load_tokenizer(tokenizer_json), token_bytes(tokenizer_json, len(special))
    real = counted = 0
    for text in texts:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int64)
        unknown = special[ids]
        counted += int(size_of[ids[~unknown]].sum())
        real += len(text.encode())
        real -= sum(len(text[slice(*encoding.offsets[place])].encode()) for place in np.flatnonzero(unknown))
        if real >= SAMPLE_BYTES:
            break
    return real / counted if real and counted else 1.0
