"""WordPiece, BERT's tokenizer (Devlin et al. 2019): words cut at spaces and punctuation, `##` continues a word."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tasks.tokenizers.base import TokenizerSettings, alphabet

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(sample: Iterable[str], settings: TokenizerSettings) -> Any:
    """[PAD] [UNK] [CLS] [SEP] [MASK] = 0 … 4; `sample` is read twice.

    Raises:
        BadData: the sample holds no letters.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = list(SPECIAL)
    normalizer = normalizers.BertNormalizer(lowercase=settings.lowercase, strip_accents=None)
    splitter = pre_tokenizers.BertPreTokenizer()
    letters = alphabet(sample, normalizer, settings.vocab_size)
    continuations = ["##" + c for c in letters if len(splitter.pre_tokenize_str("a" + c)) == 1]

    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, splitter
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=settings.min_frequency,
        special_tokens=special + continuations,  # numbered first, so that no hash map's order decides
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        continuing_subword_prefix="##",
        show_progress=False,
    )
    learner.train_from_iterator(sample, trainer)
    vocabulary = learner.get_vocab(with_added_tokens=True)

    # Built anew, since the learner holds the continuations as special tokens.
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(t, vocabulary[t]) for t in ("[CLS]", "[SEP]")],
    )
    return tokenizer
