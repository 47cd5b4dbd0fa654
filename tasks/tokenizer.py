"""TrainTokenizer: a vocabulary learnt from a corpus, as a Hugging Face `tokenizer.json`.

Training is a pure function of the corpus: the sample is drawn by hash, and the trainers are given every
symbol of their starting alphabet in a fixed order. (`tokenizers` numbers a continuation symbol such as
`##e` when its hash map first meets it, and breaks ties between equally frequent pairs by those numbers, so
the same text otherwise gives another vocabulary in every process.)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from cluster.errors import BadData
from modeling.config import Registry
from tasks.base import Context, Corpus, Task
from tasks.corpus_reader import read_texts, split_bytes

TOKENIZERS = Registry(
    "tokenizer kind",
    {
        "wordpiece": "tasks.tokenizer:train_wordpiece",
        "bpe": "tasks.tokenizer:train_byte_bpe",
    },
)
ROLES = ("pad", "unk", "cls", "sep", "mask")

_MEASURED_BYTES = 4 << 20  # of the validation split, for the figures
_LARGEST_ALPHABET = 1000


class TrainTokenizer(Task):
    """Learn a vocabulary: WordPiece as BERT's, or byte-level BPE as GPT-2's and RoBERTa's."""

    produces: ClassVar[str] = "tokenizer"
    stage: ClassVar[str] = "tokenizer"

    corpus: Corpus
    kind: Annotated[str, TOKENIZERS] = Field("wordpiece", description="the algorithm")
    vocab_size: int = Field(30_522, ge=64, le=1 << 20, description="tokens, special ones included")
    lowercase: bool = Field(True, description="fold case and strip accents (WordPiece); bpe keeps text as it is")
    min_frequency: int = Field(2, ge=1, description="rarer pairs are not merged")
    sample_bytes: int = Field(32 << 20, ge=1 << 10, description="text to learn from, drawn by document hash")

    def run(self, ctx: Context) -> Mapping[str, Any]:
        """Write `tokenizer.json` and `tokenizer-info.json`.

        Raises:
            BadData: the vocabulary is too small for its own alphabet, or the text gives nothing to learn.
        """
        folder = ctx.input("corpus").path
        ctx.progress(0, 2, "steps")
        settings = TokenizerSettings(self.vocab_size, self.lowercase, self.min_frequency)
        tokenizer = TOKENIZERS.load(self.kind)(_Sample(folder, self.sample_bytes), settings)
        ctx.progress(1, 2, "steps")
        found = tokenizer.get_vocab_size()
        if found < self.vocab_size:
            ctx.log(f"warning: the text gives {found:,} tokens, not the {self.vocab_size:,} of vocab_size")
        info = measure(tokenizer, folder)
        info |= {
            "kind": self.kind,
            "requested_vocab_size": self.vocab_size,
            "lowercase": self.kind == "wordpiece" and self.lowercase,
        }
        tokenizer.save(str(ctx.out / "tokenizer.json"), pretty=False)
        (ctx.out / "tokenizer-info.json").write_text(json.dumps(info, indent=1, sort_keys=True) + "\n")
        ctx.progress(2, 2, "steps")
        return {k: v for k, v in info.items() if isinstance(v, float) or k == "vocab_size"}


class TokenizerSettings(NamedTuple):
    """What every trainer needs to know."""

    vocab_size: int
    lowercase: bool
    min_frequency: int


class _Sample:
    """Texts of the training split, about `wanted` bytes, chosen by a hash of each; may be read again."""

    def __init__(self, folder: Path, wanted: int) -> None:
        self.folder = folder
        self.share = min(1.0, wanted / max(1, split_bytes(folder, "train")))

    def __iter__(self) -> Iterator[str]:
        from zlib import crc32

        for texts in read_texts(self.folder, "train"):
            if self.share >= 1:
                yield from texts
            else:
                yield from (t for t in texts if crc32(t.encode()) < self.share * 2**32)


def train_wordpiece(sample: _Sample, settings: TokenizerSettings) -> Any:
    """BERT's tokenizer: cleaned and split at spaces and punctuation, `##` before continuations."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=settings.lowercase, strip_accents=None)
    splitter = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in sample:
        words.update(text.split())
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for letter in normalizer.normalize_str(word):
            counts[letter] += count
    del words
    letters = [c for c in counts if not c.isspace()]
    letters.sort(key=lambda c: (-counts[c], c))
    letters = sorted(letters[: min(_LARGEST_ALPHABET, settings.vocab_size // 16)])
    continuations = ["##" + c for c in letters if len(splitter.pre_tokenize_str("a" + c)) == 1]
    if not letters:
        raise BadData("the corpus has no characters to learn a vocabulary from", "give a corpus that holds text")

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


def train_byte_bpe(sample: _Sample, settings: TokenizerSettings) -> Any:
    """GPT-2's byte-level BPE with RoBERTa's special tokens: no unknown can occur, a space belongs to its word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if settings.vocab_size < 256 + len(special):
        raise BadData(
            f"vocab_size is {settings.vocab_size}, a byte-level vocabulary has at least {256 + len(special)}",
            "raise vocab_size",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=settings.min_frequency,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")],
    )
    return tokenizer


_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


def special_ids(tokenizer: Any) -> dict[str, int]:
    """{role: id} of the special tokens that a tokenizer has."""
    found = {}
    for role, spellings in _NAMES.items():
        ids = [i for t in spellings if (i := tokenizer.token_to_id(t)) is not None]
        if ids:
            found[role] = ids[0]
    return found


def measure(tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Figures on the validation split (the training split where there is none), at most 4 MB of it.

    `fertility_tokens_per_word` counts words between spaces; `whole_word_share` and `unk_rate` count the
    words and tokens of the tokenizer's own splitting.
    """
    split = "validation" if split_bytes(folder, "validation") else "train"
    texts: list[str] = []
    size = 0
    for each in read_texts(folder, split):
        for text in each:
            if size < _MEASURED_BYTES:
                texts.append(text)
                size += len(text.encode())
        if size >= _MEASURED_BYTES:
            break
    special = special_ids(tokenizer)
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
    tokens = unknown = words = pieces_words = whole = 0
    for start in range(0, len(texts), 256):
        for text, encoding in zip(
            texts[start : start + 256],
            tokenizer.encode_batch(texts[start : start + 256], add_special_tokens=False),
            strict=True,
        ):
            ids = encoding.ids
            tokens += len(ids)
            unknown += ids.count(special.get("unk", -1))
            words += len(text.split())
            pieces = Counter(encoding.word_ids)
            pieces_words += len(pieces)
            whole += sum(1 for n in pieces.values() if n == 1)
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "special_tokens": special,
        "fertility_tokens_per_word": round(tokens / max(1, words), 4),
        "bytes_per_token": round(size / max(1, tokens), 4),
        "unk_rate": round(unknown / max(1, tokens), 6),
        "whole_word_share": round(whole / max(1, pieces_words), 4),
        "measured_on": split,
        "measured_bytes": size,
    }
