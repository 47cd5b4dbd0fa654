"""TrainTokenizer: a vocabulary learnt from a corpus, as a Hugging Face `tokenizer.json`.

Training is a pure function of the corpus: the sample is drawn by hash, and the trainers are given every
symbol of their starting alphabet in a fixed order. (`tokenizers` numbers a continuation symbol such as
`##e` when its hash map first meets it, and breaks ties between equally frequent pairs by those numbers, so
the same text otherwise gives another vocabulary in every process. What Unigram needs for this is told in
`tasks.tokenizers.unigram`.)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from cluster.errors import BadConfig
from modeling.config import Registry
from tasks.base import Context, Corpus, Task
from tasks.corpus_reader import read_texts, split_bytes
from tasks.tokenizers.base import TokenizerSettings

TOKENIZERS = Registry(
    "tokenizer kind",
    {
        "wordpiece": "tasks.tokenizers.wordpiece:train_wordpiece",
        "bpe": "tasks.tokenizers.bpe:train_byte_bpe",
        "gpt2": "tasks.tokenizers.bpe:train_gpt2",
        "bpe-words": "tasks.tokenizers.bpe:train_word_bpe",
        "unigram": "tasks.tokenizers.unigram:train_unigram",
        "unigram-bert": "tasks.tokenizers.unigram:train_unigram_bert",
    },
)
_ALL = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
ROLES_OF = {
    "wordpiece": _ALL,
    "bpe": _ALL,
    "gpt2": ("pad", "unk", "bos", "eos"),
    "bpe-words": ("pad", "unk", "cls", "sep", "bos", "eos", "delimiter"),
    "unigram": ("pad", "unk", "sep", "bos", "eos", "sentinels"),
    "unigram-bert": _ALL,
}
"""Roles of the special tokens that each kind has; `sentinels` stands for <extra_id_0> and so on."""
LEAST_SIZE = {"bpe": 261, "gpt2": 258, "unigram": 64}
"""Tokens that a kind has whatever the text, where the field's own bound is too low; without sentinels."""
LOWERCASED = {"wordpiece", "unigram-bert"}
"""Kinds that `lowercase` is for; `bpe-words` is always in lower case, the others keep text as it is."""

_MEASURED_BYTES = 4 << 20  # of the validation split, for the figures


class TrainTokenizer(Task):
    """Learn a vocabulary of one of the kinds in `TOKENIZERS`; each kind's function says what it is."""

    produces: ClassVar[str] = "tokenizer"
    stage: ClassVar[str] = "tokenizer"

    corpus: Corpus
    kind: Annotated[str, TOKENIZERS] = Field("wordpiece", description="the algorithm")
    vocab_size: int = Field(30_522, ge=64, le=1 << 20, description="tokens, special ones and sentinels included")
    lowercase: bool = Field(True, description="fold case and strip accents (wordpiece, unigram-bert)")
    min_frequency: int = Field(2, ge=1, description="rarer pairs are not merged (wordpiece and the bpe kinds)")
    sentinels: int = Field(100, ge=0, le=10_000, description="unigram: tokens <extra_id_…>, the last ids")
    sample_bytes: int = Field(32 << 20, ge=1 << 10, description="text to learn from, drawn by document hash")

    @model_validator(mode="after")
    def _holds_its_symbols(self) -> TrainTokenizer:
        least = LEAST_SIZE.get(self.kind, 0) + (self.sentinels if self.kind == "unigram" else 0)
        if self.vocab_size < least:
            raise BadConfig(
                f"vocab_size is {self.vocab_size}, a {self.kind} tokenizer"
                f"{f' with {self.sentinels} sentinels' if self.kind == 'unigram' else ''} has at least {least}",
                "raise vocab_size",
            )
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the special tokens that the tokenizer will have: known before it is trained."""
        return tuple(r for r in ROLES_OF[self.kind] if r != "sentinels" or self.sentinels)

    def run(self, ctx: Context) -> Mapping[str, Any]:
        """Write `tokenizer.json` and `tokenizer-info.json`.

        Raises:
            BadData: the vocabulary is too small for its own alphabet, or the text gives nothing to learn.
        """
        folder = ctx.input("corpus").path
        ctx.progress(0, 2, "steps")
        settings = TokenizerSettings(self.vocab_size, self.lowercase, self.min_frequency, self.sentinels)
        tokenizer = TOKENIZERS.load(self.kind)(_Sample(folder, self.sample_bytes), settings)
        ctx.progress(1, 2, "steps")
        found = tokenizer.get_vocab_size()
        if found < self.vocab_size:
            ctx.log(f"warning: the text gives {found:,} tokens, not the {self.vocab_size:,} of vocab_size")
        info = measure(tokenizer, folder)
        info |= {
            "kind": self.kind,
            "requested_vocab_size": self.vocab_size,
            "lowercase": self.kind == "bpe-words" or (self.kind in LOWERCASED and self.lowercase),
            "sentinels": len(sentinel_ids(tokenizer)),
        }
        tokenizer.save(str(ctx.out / "tokenizer.json"), pretty=False)
        (ctx.out / "tokenizer-info.json").write_text(json.dumps(info, indent=1, sort_keys=True) + "\n")
        ctx.progress(2, 2, "steps")
        return {k: v for k, v in info.items() if isinstance(v, float) or k == "vocab_size"}


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


_NAMES = {
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "unk": ("[UNK]", "<unk>", "<|endoftext|>"),
    "cls": ("[CLS]", "<s>", "<cls>"),
    "sep": ("[SEP]", "</s>", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
    "bos": ("<s>", "<|endoftext|>", "[CLS]", "<cls>"),
    "eos": ("</s>", "<|endoftext|>", "[SEP]", "<sep>"),
    "delimiter": ("<delimiter>",),
}


def special_ids(tokenizer: Any) -> dict[str, int]:
    """{role: id} of the special tokens that a tokenizer has, by how they are spelled.

    `bos` and `eos` are always there for the kinds of this module: T5's, which begins texts with nothing, has its
    end for both.
    """
    found = {}
    for role, spellings in _NAMES.items():
        ids = [i for t in spellings if (i := tokenizer.token_to_id(t)) is not None]
        if ids:
            found[role] = ids[0]
    if "eos" in found:
        found.setdefault("bos", found["eos"])
    return found


def sentinel_ids(tokenizer: Any) -> list[int]:
    """Ids of <extra_id_0>, <extra_id_1>, … as far as they go."""
    found: list[int] = []
    while (i := tokenizer.token_to_id(f"<extra_id_{len(found)}>")) is not None:
        found.append(i)
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
