"""TrainTokenizer: a vocabulary learnt from a corpus, as a Hugging Face `tokenizer.json`.

Training is a pure function of the corpus: the sample is drawn by hash, and the trainers are given every
symbol of their starting alphabet in a fixed order. (`tokenizers` numbers a continuation symbol such as
`##e` when its hash map first meets it, and breaks ties between equally frequent pairs by those numbers, so
the same text otherwise gives another vocabulary in every process. How Unigram is made certain is told in
`tasks.tokenizers.unigram`.)
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from cluster.errors import BadConfig
from modeling.config import Registry
from tasks.base import Context, Corpus, Task
from tasks.corpus_reader import split_bytes
from tasks.tokenizer_figures import examples, measure
from tasks.tokenizers.base import TokenizerSettings
from tasks.tokenizers.sample import CorpusSample

TOKENIZERS = Registry(
    "tokenizer kind",
    {
        "wordpiece": "tasks.tokenizers.wordpiece:train_wordpiece",
        "bpe": "tasks.tokenizers.bpe:train_byte_bpe",
        "gpt2": "tasks.tokenizers.bpe:train_gpt2",
        "bpe-words": "tasks.tokenizers.bpe:train_word_bpe",
        "unigram": "tasks.tokenizers.unigram:train_unigram",
        "unigram-bert": "tasks.tokenizers.unigram:train_unigram_bert",
        "characters": "tasks.tokenizers.characters:train_characters",
        "bytes": "tasks.tokenizers.characters:train_bytes",
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
    "characters": (*_ALL, "delimiter", "sentinels"),
    "bytes": (*_ALL, "delimiter", "sentinels"),
}
"""Roles of the special tokens that each kind has; `sentinels` stands for <extra_id_0> and so on."""
LEAST_SIZE = {"bpe": 261, "gpt2": 258, "unigram": 64, "characters": 7, "bytes": 262}
"""Tokens that a kind has whatever the text, where the field's own bound is too low; without sentinels."""
LOWERCASED = {"wordpiece", "unigram-bert"}
"""Kinds that `lowercase` is for; `bpe-words` is always in lower case, the others keep text as it is."""


class TrainTokenizer(Task):
    """Learn a vocabulary of one of the kinds in `TOKENIZERS`; each kind's function says what it is."""

    produces: ClassVar[str] = "tokenizer"
    stage: ClassVar[str] = "tokenizer"

    corpus: Corpus
    kind: Annotated[str, TOKENIZERS] = Field("wordpiece", description="the algorithm")
    vocab_size: int = Field(30_522, ge=64, le=1 << 20, description="tokens, special ones and sentinels included")
    lowercase: bool = Field(True, description="fold case and strip accents (wordpiece, unigram-bert)")
    min_frequency: int = Field(2, ge=1, description="rarer pairs are not merged (wordpiece and the bpe kinds)")
    sentinels: int = Field(
        100, ge=0, le=10_000, description="unigram, characters, bytes: tokens <extra_id_…>, the last ids"
    )
    coverage: float = Field(0.9995, gt=0, le=1, description="characters: share of the text that the vocabulary spells")
    sample_bytes: int = Field(32 << 20, ge=1 << 10, description="text to learn from, drawn by hash")

    @model_validator(mode="after")
    def _holds_its_symbols(self) -> TrainTokenizer:
        check_vocab_size(self.kind, self.vocab_size, self.sentinels)
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
        sample = CorpusSample(folder, self.sample_bytes)
        settings = TokenizerSettings(self.vocab_size, self.lowercase, self.min_frequency, self.sentinels, self.coverage)
        started = time.monotonic()
        tokenizer = TOKENIZERS.load(self.kind)(sample, settings)
        read = sample.share * split_bytes(folder, "train")
        ctx.timing("megabytes_per_second", read / 1e6 / max(1e-9, time.monotonic() - started))
        ctx.progress(1, 2, "steps")
        if shortfall := told(self.kind, tokenizer.get_vocab_size(), self.vocab_size):
            ctx.log(shortfall)
        info = {
            **described(tokenizer),
            "kind": self.kind,
            "requested_vocab_size": self.vocab_size,
            "lowercase": self.kind == "bpe-words" or (self.kind in LOWERCASED and self.lowercase),
        }
        info |= measure(tokenizer, folder, info["special_tokens"])
        tokenizer.save(str(ctx.out / "tokenizer.json"), pretty=False)
        (ctx.out / "tokenizer-info.json").write_text(json.dumps(info, indent=1, sort_keys=True) + "\n")
        ctx.progress(2, 2, "steps")
        return {k: v for k, v in info.items() if isinstance(v, float) or k == "vocab_size"}


def check_vocab_size(kind: str, vocab_size: int, sentinels: int) -> None:
    """Raise BadConfig where a vocabulary cannot hold the tokens that its kind has whatever the text."""
    has = sentinels if "sentinels" in ROLES_OF[kind] else 0
    least = LEAST_SIZE.get(kind, 0) + has
    if vocab_size < least:
        raise BadConfig(
            f"vocab_size is {vocab_size}, a {kind} tokenizer{f' with {has} sentinels' if has else ''} has at least "
            f"{least}",
            "raise vocab_size" + (", or lower sentinels" if has else ""),
        )


def told(kind: str, found: int, asked: int) -> str:
    """What to say of a vocabulary that is smaller than asked for; empty where it is not."""
    if found >= asked:
        return ""
    if kind == "bytes":
        return f"a vocabulary of bytes has {found:,} tokens, not the {asked:,} of vocab_size"
    return f"warning: the text gives {found:,} tokens, not the {asked:,} of vocab_size"


def described(tokenizer: Any) -> dict[str, Any]:
    """What `tokenizer-info.json` says of a tokenizer of this module, but for its figures on a corpus."""
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "special_tokens": special_ids(tokenizer),
        "sentinels": len(sentinel_ids(tokenizer)),
        "examples": examples(tokenizer),
    }


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
