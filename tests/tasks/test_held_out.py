"""How many bytes a token stands for, for bits per byte."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tasks.held_out import token_bytes

WORDS = ["the", "##ing", "é", "[UNK]"]
PIECES = [("<unk>", 0.0), ("▁the", -1.0), ("<0x0A>", -2.0), ("né", -3.0)]


def made(kind: str) -> tuple[Tokenizer, list[int]]:
    if kind == "wordpiece":
        model = models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
        return Tokenizer(model), [4, 3, 3, 6]
    if kind == "unigram":
        return Tokenizer(models.Unigram(PIECES, 0, byte_fallback=True)), [5, 4, 1, 3]
    if kind == "words":
        model = models.BPE({"a": 0, "a</w>": 1, "é</w>": 2}, [], end_of_word_suffix="</w>")
        return Tokenizer(model), [1, 2, 3]
    tokenizer = Tokenizer(models.BPE({"a": 0, "Ġa": 1, "Ã©": 2}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    return tokenizer, [1, 2, 2]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "words", "bytes"])
def test_bytes_of_each_token(kind: str, tmp_path: Path) -> None:
    tokenizer, expected = made(kind)
    text = tokenizer.to_str()
    assert json.loads(text)["model"]
    assert token_bytes(text, len(expected)).tolist() == expected
