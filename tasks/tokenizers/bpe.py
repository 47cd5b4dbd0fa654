"""Byte-pair encoding (Sennrich et al. 2016): over bytes as GPT-2 and RoBERTa, or over letters as GPT-1.

Over bytes no unknown can occur, and a space belongs to the word after it. GPT-1's way ends each word's last symbol
with `</w>`, on lower-cased words cut at spaces and punctuation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tasks.tokenizers.base import TokenizerSettings, alphabet, check_size

ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
GPT2 = ("<|endoftext|>", "<|pad|>")
GPT1 = ("<pad>", "<unk>", "<s>", "<delimiter>", "</s>")
_END = "</w>"


def train_byte_bpe(sample: Iterable[str], settings: TokenizerSettings) -> Any:
    """RoBERTa's: <s> <pad> </s> <unk> <mask> = 0 … 4, then bytes and merges.

    Raises:
        BadData: vocab_size cannot hold the 256 bytes and the special tokens.
    """
    from tokenizers import AddedToken, processors

    # a mask stands for a word with the space before it, so it takes a text's own space there
    mask = AddedToken(ROBERTA[-1], lstrip=True, special=True)
    tokenizer = _bytes(sample, settings, before=(*ROBERTA[:-1], mask))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")],
    )
    return tokenizer


def train_gpt2(sample: Iterable[str], settings: TokenizerSettings) -> Any:
    """GPT-2's: bytes and merges from 0, then <|endoftext|> (beginning, end and unknown), then <|pad|>.

    So all ids but the padding's, which GPT-2 has not, stand where they stand in its vocabulary. Nothing is added
    to an encoded text.

    Raises:
        BadData: vocab_size cannot hold the 256 bytes and the special tokens.
    """
    from tokenizers import processors

    tokenizer = _bytes(sample, settings, after=GPT2)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _bytes(
    sample: Iterable[str], settings: TokenizerSettings, before: tuple[Any, ...] = (), after: tuple[str, ...] = ()
) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    check_size(settings.vocab_size, 256 + len(before) + len(after), "a byte-level vocabulary")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size - len(after),
        min_frequency=settings.min_frequency,
        special_tokens=list(before),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.add_special_tokens(list(after))
    return tokenizer


def train_word_bpe(sample: Iterable[str], settings: TokenizerSettings) -> Any:
    """GPT-1's (Radford et al. 2018): <pad> <unk> <s> <delimiter> </s> = 0 … 4; always lower-cased; two readings.

    `<s> a </s>` and `<s> a <delimiter> b </s>` are its inputs for fine-tuning: start, delimiter, extract.

    Raises:
        BadData: the sample holds no letters, or vocab_size cannot hold them.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = list(GPT1)
    normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=None)
    splitter = pre_tokenizers.BertPreTokenizer()
    letters = alphabet(sample, normalizer, settings.vocab_size)
    endings = [c + _END for c in letters]
    check_size(settings.vocab_size, len(special) + 2 * len(letters), "a vocabulary of this text's letters")
    learner = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix=_END))
    learner.normalizer, learner.pre_tokenizer = normalizer, splitter
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=settings.min_frequency,
        special_tokens=special + endings,  # numbered first, so that no hash map's order decides
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        end_of_word_suffix=_END,
        show_progress=False,
    )
    learner.train_from_iterator(sample, trainer)
    vocabulary = learner.get_vocab(with_added_tokens=True)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]

    # Built anew, since the learner holds the endings as special tokens.
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", end_of_word_suffix=_END))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.BPEDecoder(suffix=_END)
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A <delimiter> $B </s>",
        special_tokens=[(t, vocabulary[t]) for t in ("<s>", "<delimiter>", "</s>")],
    )
    return tokenizer
