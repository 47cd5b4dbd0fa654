"""Unigram language model (Kudo 2018; SentencePiece's way of writing spaces): T5's, and ALBERT's and XLNet's.

Words are cut at white space and begin with `▁`; the pieces of a word are its likeliest cut under independent
pieces. `tokenizers` sums its expectations in a hash map's order: the same text gives the same pieces with scores
that differ in the last digits, and ranks the letters that it must add for coverage by that order, too. So scores are
rounded and pieces sorted again here. This leaves one chance for two processes to differ, that two pieces tie to the
last digit just where the trainer prunes; it has not been seen, and a test looks for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from cluster.errors import BadData
from tasks.tokenizers.base import TokenizerSettings, alphabet, check_size

T5 = ("<pad>", "</s>", "<unk>")
ALBERT = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")

_DECIMALS = 4  # of a log-probability; what differs between processes stands behind the tenth
_NEVER = -1000.0  # score of a special token: a text that spells one is cheaper to cut into its letters


def train_unigram(sample: Iterable[str], settings: TokenizerSettings) -> Any:
    """T5's: <pad> </s> <unk> = 0 … 2, pieces, and `sentinels` at the end, descending: <extra_id_0> is the last id.

    Case is kept. `sample` is read twice.

    Raises:
        BadData: the sample holds no letters, or vocab_size cannot hold them.
    """
    from tokenizers import normalizers, processors

    sentinels = tuple(f"<extra_id_{n}>" for n in reversed(range(settings.sentinels)))
    normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer = _train(sample, settings, normalizer, T5, sentinels)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def train_unigram_bert(sample: Iterable[str], settings: TokenizerSettings) -> Any:
    """ALBERT's and XLNet's pieces: <pad> <unk> [CLS] [SEP] [MASK] = 0 … 4; `lowercase` also strips accents.

    An encoded text is `[CLS] a [SEP]` as ALBERT's; XLNet's order comes from its objective's layout.

    Raises:
        BadData: the sample holds no letters, or vocab_size cannot hold them.
    """
    from tokenizers import normalizers, processors

    steps: list[Any] = [normalizers.Nmt()]
    if settings.lowercase:
        steps += [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    tokenizer = _train(sample, settings, normalizers.Sequence([*steps, normalizers.NFKC()]), ALBERT, ())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def _train(
    sample: Iterable[str], settings: TokenizerSettings, normalizer: Any, before: tuple[str, ...], after: tuple[str, ...]
) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = [*before, *after]
    letters = alphabet(sample, normalizer, settings.vocab_size)
    # Letters of the special tokens' names are pieces, too, so that a text that spells one can be cut.
    needed = sorted({*letters, *"".join(special), "▁"})
    check_size(settings.vocab_size, len(special) + len(needed), "a vocabulary of this text's letters")
    learner = Tokenizer(models.Unigram())
    learner.normalizer = normalizer
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=special,
        unk_token="<unk>",
        initial_alphabet=needed,
        show_progress=False,
    )
    try:
        learner.train_from_iterator(_without_rare(sample, normalizer, set(needed)), trainer)
    except Exception as error:  # the library's only exception type here
        raise BadData(f"no vocabulary of {settings.vocab_size} could be learnt: {error}", "raise vocab_size") from None
    learnt = json.loads(learner.to_str())["model"]["vocab"]
    pieces = settled([(piece, score) for piece, score in learnt if piece not in special])

    vocabulary = [(t, _NEVER) for t in before] + pieces + [(t, _NEVER) for t in after]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=before.index("<unk>"), byte_fallback=False))
    tokenizer.normalizer, tokenizer.pre_tokenizer = learner.normalizer, learner.pre_tokenizer
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(special)
    return tokenizer


def _without_rare(sample: Iterable[str], normalizer: Any, letters: set[str]) -> Iterator[str]:
    """Normalised texts with a space for each letter outside the alphabet (the trainer would take them all in)."""
    blank: dict[int, str] = {}
    for text in sample:
        text = normalizer.normalize_str(text)
        for letter in set(text):
            if letter not in letters and not letter.isspace():
                blank[ord(letter)] = " "
        yield text.translate(blank) if blank else text


def settled(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """(piece, score) without what depends on a hash map: rounded, and sorted by score, then by text.

    Letters that the trainer added to cover the alphabet stand a few ten-thousandths above its lowest score, in any
    order; they all get that score.
    """
    lowest = min(score for _, score in pieces)
    letters = sum(len(piece) == 1 for piece, _ in pieces)
    added = lowest + 1e-4 * (letters + 1)
    rounded = [
        (piece, round(lowest if len(piece) == 1 and score <= added else score, _DECIMALS)) for piece, score in pieces
    ]
    return sorted(rounded, key=lambda item: (-item[1], item[0]))
