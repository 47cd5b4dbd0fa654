"""Unigram language model (Kudo 2018; SentencePiece's way of writing spaces): T5's, and ALBERT's and XLNet's.

Words are cut at white space and begin with `▁`; the pieces of a word are its likeliest cut under independent
pieces. The words are counted here, in parallel, and learnt from by `sentencepiece`, whose trainer sorts whatever comes
out of a hash map, ties by their text, and sums each thread's share in the order of the words: so the same text gives
the same pieces in every process, as long as the number of threads is fixed. (The trainer of `tokenizers` sums in the
order of its hash maps; which of two equal pieces it prunes is then a matter of chance.) Scores are rounded, so that
another processor's last digit of a logarithm does not show.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import BadData
from tasks.tokenizers.base import TokenizerSettings, check_size, most_frequent
from tasks.tokenizers.sample import count_words

T5 = ("<pad>", "</s>", "<unk>")
ALBERT = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")

_DECIMALS = 4  # of a log-probability
_THREADS = 16  # each sums its share of the words, so their number is part of the result, whatever cores there are
_LONGEST = 1000  # letters of a word; the lattice of a longer one would cost more than it tells
_NEVER = -1000.0  # score of a special token: a text that spells one is cheaper to cut into its letters


def train_unigram(sample: Iterable[str], settings: TokenizerSettings) -> Any:
    """T5's: <pad> </s> <unk> = 0 … 2, pieces, and `sentinels` at the end, descending: <extra_id_0> is the last id.

    Case is kept.

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
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = [*before, *after]
    words = count_words(sample, normalizer)
    letters = most_frequent(letters_of(words), settings.vocab_size)
    # Letters of the special tokens' names are pieces, too, so that a text that spells one can be cut.
    needed = sorted({*letters, *"".join(special), "▁"})
    check_size(settings.vocab_size, len(special) + len(needed), "a vocabulary of this text's letters")
    pieces = settled(_learn(words, needed, settings.vocab_size - len(special)))

    vocabulary = [(t, _NEVER) for t in before] + pieces + [(t, _NEVER) for t in after]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=before.index("<unk>"), byte_fallback=False))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(special)
    return tokenizer


def _learn(words: Mapping[str, int], needed: Sequence[str], size: int) -> list[tuple[str, float]]:
    """At most `size` pieces of these words with their log-probabilities, all of the `needed` letters among them."""
    import io

    import sentencepiece as spm

    model = io.BytesIO()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "words.tsv"
            with path.open("w", encoding="utf-8", newline="\n") as file:
                for word, count in known_words(words, needed):
                    file.write(f"{word}\t{count}\n")
            spm.SentencePieceTrainer.train(
                input=str(path),
                input_format="tsv",
                model_writer=model,
                model_type="unigram",
                vocab_size=size + 1,  # its own unknown token is one of them
                hard_vocab_limit=False,
                required_chars="".join(needed),
                character_coverage=1.0,
                normalization_rule_name="identity",
                max_sentence_length=4 * _LONGEST,
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=_THREADS,
                self_test_sample_size=0,
                minloglevel=3,
            )
    except (RuntimeError, OSError) as error:
        raise BadData(f"no vocabulary of {size} pieces could be learnt: {error}", "raise vocab_size") from None
    learnt = spm.SentencePieceProcessor(model_proto=model.getvalue())
    return [(learnt.id_to_piece(n), learnt.get_score(n)) for n in range(1, learnt.get_piece_size())]


def known_words(words: Mapping[str, int], letters: Iterable[str]) -> list[tuple[str, int]]:
    """The words cut where a letter is not one of `letters`, and into at most 1,000 letters; with counts, sorted."""
    from collections import Counter

    known = set(letters)
    kept: Counter[str] = Counter()
    for word, count in words.items():
        unknown = set(word) - known
        parts = word.translate(dict.fromkeys(map(ord, unknown), " ")).split(" ") if unknown else [word]
        for part in parts:
            for start in range(0, len(part), _LONGEST):
                kept[part[start : start + _LONGEST]] += count
    return sorted(kept.items())


def letters_of(words: Mapping[str, int]) -> dict[str, int]:
    """{letter: how often it stands in words with these counts}."""
    counts: dict[str, int] = {}
    for word, count in words.items():
        for letter in word:
            counts[letter] = counts.get(letter, 0) + count
    return counts


def settled(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """(piece, score), rounded and sorted by score, then by text."""
    rounded = [(piece, round(score, _DECIMALS)) for piece, score in pieces]
    return sorted(rounded, key=lambda item: (-item[1], item[0]))
