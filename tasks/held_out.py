"""Validation examples for the training loop: the first of the split, in chunks, with the bytes of their labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from modeling.validation import HeldOut
    from tasks.example_reader import ExampleReader

CHUNK = 64
"""Sequences of a forward pass. Not placement: sums of other chunks would round otherwise."""


def held_out(reader: ExampleReader, sequences: int, tokenizer_json: Path) -> HeldOut:
    """The first `sequences` examples of a validation split.

    Their masks are the artifact's own, the same for every model that is validated on them. Where the objective's
    labels are text as it stands (`ObjectiveSettings.covers_text`) they come with their bytes.
    """
    from modeling.validation import LABEL_BYTES, HeldOut
    from tasks.vocabulary import tokenizers_installed

    count = min(len(reader), sequences)
    size_of = None
    if reader.settings.covers_text and tokenizers_installed():
        size_of = token_bytes(tokenizer_json.read_text(encoding="utf-8"), reader.vocabulary.size)
        size_of[reader.vocabulary.special] = 0

    def chunk(number: int) -> dict[str, Any]:
        index = np.arange(number * CHUNK, min((number + 1) * CHUNK, count), dtype=np.int64)
        batch = reader.batch(np.stack([np.zeros_like(index), index], axis=1))
        if size_of is not None:
            labels = batch["labels"]
            batch = {**batch, LABEL_BYTES: np.where(labels >= 0, size_of[np.maximum(labels, 0)], 0)}
        return batch

    return HeldOut(-(-count // CHUNK), chunk)


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
