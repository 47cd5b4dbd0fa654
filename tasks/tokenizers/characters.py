"""The vocabularies without learning: a text's characters, or the 256 bytes.

Both are written as byte-pair encodings without merges, cut into words that begin with their space, so that all that
reads a `tokenizer.json` (whole words, decoding, other libraries) works on them as on the others. The special tokens
serve every objective. Case is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cluster.errors import BadData
from tasks.tokenizers.base import TokenizerSettings, check_size
from tasks.tokenizers.sample import count_letters

BEFORE = ("<pad>", "</s>", "<unk>")
AFTER = ("<s>", "<mask>", "<delimiter>")
_SPACE = "▁"


def train_bytes(sample: Iterable[str], settings: TokenizerSettings) -> Any:
    """ByT5's (Xue et al. 2022, section 3.1): <pad> </s> <unk> = 0 … 2 and byte b = b + 3; nothing is learnt.

    Then <s> <mask> <delimiter> = 259 … 261, which ByT5 has not, and the sentinels, descending: <extra_id_0> is the
    last id. No unknown can occur.

    Raises:
        BadData: vocab_size cannot hold them.
    """
    from tokenizers import decoders, pre_tokenizers

    check_size(settings.vocab_size, len(BEFORE) + 256 + len(AFTER) + settings.sentinels, "a vocabulary of bytes")
    tokenizer = _without_merges([spelled(value) for value in range(256)], settings)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_characters(sample: Iterable[str], settings: TokenizerSettings) -> Any:
    """<pad> </s> <unk> = 0 … 2, characters by frequency, <s> <mask> <delimiter>, sentinels as in `train_bytes`.

    The most frequent characters that make up `coverage` of the sample, white space among them, as far as vocab_size
    goes (SentencePiece's `character_coverage`); each other one is an <unk>. A space is `▁`, and a text's own `▁`
    is read back as a space.

    Raises:
        BadData: the sample has no characters, or vocab_size holds none.
    """
    from tokenizers import decoders, pre_tokenizers

    counts = count_letters(sample)
    if spaces := counts.pop(" ", 0):
        counts[_SPACE] = counts.get(_SPACE, 0) + spaces
    total = sum(counts.values())
    if not total:
        raise BadData("the corpus has no characters to learn a vocabulary from", "give a corpus that holds text")
    room = settings.vocab_size - len(BEFORE) - len(AFTER) - settings.sentinels
    check_size(settings.vocab_size, settings.vocab_size - room + 1, "a vocabulary of characters")
    letters: list[str] = []
    covered = 0
    for letter, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(letters) == room or covered >= settings.coverage * total:
            break
        letters.append(letter)
        covered += count
    tokenizer = _without_merges(letters, settings)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="never")
    return tokenizer


def spelled(value: int) -> str:
    """A byte as byte-level vocabularies spell it (GPT-2's table): itself where it prints, otherwise from U+0100 on."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(value) if value in prints else chr(256 + value - sum(p < value for p in prints))


def _without_merges(symbols: Sequence[str], settings: TokenizerSettings) -> Any:
    from tokenizers import AddedToken, Tokenizer, models, processors

    sentinels = [f"<extra_id_{n}>" for n in reversed(range(settings.sentinels))]
    entries = [*BEFORE, *symbols, *AFTER, *sentinels]
    vocabulary = {token: number for number, token in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    # a mask stands for a word with the space before it, so it takes a text's own space there
    special = [AddedToken(t, lstrip=t == "<mask>", special=True) for t in (*BEFORE, *AFTER, *sentinels)]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(t, vocabulary[t]) for t in ("<s>", "</s>")],
    )
    return tokenizer
