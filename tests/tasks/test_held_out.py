"""How many bytes a token stands for, for bits per byte."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tasks.label_bytes import bytes_per_token_byte, token_bytes
from tasks.tokenizer import TOKENIZERS
from tasks.tokenizers.base import TokenizerSettings

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


TEXTS = ["Hello, world. Don't stop (please)!", "A  line,\n\n    indented;\tand Café again: 3.14 %", "the end ☃ of it"]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe-words", "bpe"])
def test_scaled_sizes_sum_up_to_the_bytes_of_the_text(kind: str) -> None:
    settings = TokenizerSettings(vocab_size=1000, lowercase=True, min_frequency=1)
    tokenizer = TOKENIZERS.load(kind)(TEXTS[:2] * 50, settings)
    tokenizer.encode_special_tokens = True
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    special = np.zeros(len(vocabulary), dtype=bool)
    special[[i for token, i in vocabulary.items() if token in ("[UNK]", "<unk>")]] = True
    text = tokenizer.to_str()
    ratio = bytes_per_token_byte(text, special, TEXTS)
    ids = [i for t in TEXTS for i in tokenizer.encode(t, add_special_tokens=False).ids]
    known = [i for i in ids if not special[i]]
    unknown = 0 if kind == "bpe" else len("☃".encode())
    assert len(known) < len(ids) or kind == "bpe"
    total = ratio * token_bytes(text, len(vocabulary))[known].sum()
    slack = 1.01 if kind == "unigram" else 1e-6  # SentencePiece's unknown has the space before it
    assert total == pytest.approx(sum(len(t.encode()) for t in TEXTS) - unknown, abs=slack)
    assert (ratio == 1.0) == (kind == "bpe")


def test_texts_without_a_known_token_scale_nothing() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = np.array([True, False])
    assert bytes_per_token_byte(tokenizer.to_str(), special, []) == 1.0
    assert bytes_per_token_byte(tokenizer.to_str(), special, ["b b"]) == 1.0
    assert bytes_per_token_byte(tokenizer.to_str(), special, ["a b", "a  a"]) == (1 + 1 + 4) / 3
