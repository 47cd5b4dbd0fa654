"""CompareTokenizers: kinds of tokenizer and sizes of vocabulary side by side, each learnt from the same sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, model_validator

from cluster.errors import BadConfig
from tasks.base import Context, Corpus, Task
from tasks.shards import Shard, saved_map
from tasks.tokenizer import LOWERCASED, TOKENIZERS, check_vocab_size, special_ids
from tasks.tokenizer_figures import EXAMPLES, examples, measure
from tasks.tokenizers.base import TokenizerSettings
from tasks.tokenizers.sample import CorpusSample

FILE = "comparison.json"
FIXED = {"bytes"}
"""Kinds whose vocabulary has one size, whatever is asked for: there once, not once for each size."""


class CompareTokenizers(Task):
    """Train each kind at each size and write its figures; the tokenizers themselves are not kept."""

    produces: ClassVar[str] = "tokenizer-comparison"
    stage: ClassVar[str] = "compare-tokenizers"

    corpus: Corpus
    kinds: Annotated[tuple[str, ...], TOKENIZERS] = Field(
        ("wordpiece", "bpe", "unigram", "characters", "bytes"), min_length=1, description="the algorithms"
    )
    vocab_sizes: tuple[Annotated[int, Field(ge=64, le=1 << 20)], ...] = Field(
        (1_000, 4_000, 16_000), min_length=1, description="tokens, special ones included"
    )
    lowercase: bool = Field(True, description="fold case and strip accents (wordpiece, unigram-bert)")
    min_frequency: int = Field(2, ge=1, description="rarer pairs are not merged (wordpiece and the bpe kinds)")
    coverage: float = Field(0.9995, gt=0, le=1, description="characters: share of the text that the vocabulary spells")
    sample_bytes: int = Field(8 << 20, ge=1 << 10, description="text to learn from, drawn by hash, the same for all")

    @model_validator(mode="after")
    def _each_once(self) -> CompareTokenizers:
        for name, values in (("kinds", self.kinds), ("vocab_sizes", self.vocab_sizes)):
            if twice := sorted({str(v) for v in values if values.count(v) > 1}):
                raise BadConfig(f"{name}: {twice[0]} stands there twice", "name each once")
        for work in self._work(Path()):
            check_vocab_size(work.kind, work.settings.vocab_size, 0)
        return self

    def _work(self, corpus: Path) -> list[Training]:
        """What is trained, kind by kind, by size. A kind of a fixed size is there once, by its largest."""
        return [
            Training(
                corpus,
                self.sample_bytes,
                kind,
                # Sentinels would take ids from the pieces of some kinds and not of others.
                TokenizerSettings(size, self.lowercase, self.min_frequency, 0, self.coverage),
            )
            for kind in self.kinds
            for size in ([max(self.vocab_sizes)] if kind in FIXED else sorted(self.vocab_sizes))
        ]

    def run(self, ctx: Context) -> Mapping[str, Any]:
        """Write `comparison.json`: {"rows": [figures], "examples": [{class, word, pieces: {kind-size: [piece]}}]}.

        A row has kind, vocab_size (found), asked, lowercase, bytes_per_token, fertility (tokens per word),
        unknown_rate, whole_words (share kept whole), measured_on and measured_bytes; a larger size that
        gives no larger vocabulary has none. Trainings run in parallel; what is finished outlives a crash.

        Raises:
            BadData: a vocabulary is too small for its own alphabet, or the text gives nothing to learn.
        """
        work = self._work(ctx.input("corpus").path)
        rows: list[dict[str, Any]] = []
        pieces: dict[str, list[list[str]]] = {}
        made = zip(work, saved_map(ctx, "train", work, Training.shard, here=True), strict=True)
        for number, (training, shard) in enumerate(made, start=1):
            row = shard.facts["row"]
            ctx.progress(number, len(work), "tokenizers")
            if any((row["kind"], row["vocab_size"]) == (other["kind"], other["vocab_size"]) for other in rows):
                ctx.log(f"{training.kind}: asked for {row['asked']:,} tokens, and there are no more than before")
                continue
            rows.append(row)
            pieces[f"{row['kind']}-{row['vocab_size' if row['kind'] in FIXED else 'asked']}"] = shard.facts["pieces"]
            ctx.log(f"{training.kind}: {row['vocab_size']:,} tokens, {row['bytes_per_token']:.2f} bytes a token")
        shown = [
            {"class": what, "word": word, "pieces": {name: cut[n] for name, cut in pieces.items()}}
            for n, (what, word) in enumerate(EXAMPLES)
        ]
        facts = {"rows": rows, "examples": shown, "sample_bytes": self.sample_bytes}
        (ctx.out / FILE).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return {
            "tokenizers": len(rows),
            "best_bytes_per_token": max(row["bytes_per_token"] for row in rows),
            "lowest_fertility": min(row["fertility"] for row in rows),
        }


class Training(NamedTuple):
    """One tokenizer to train and measure; sent to a worker."""

    corpus: Path
    sample_bytes: int
    kind: str
    settings: TokenizerSettings

    def shard(self) -> Shard:
        """Its figures and the examples' pieces, as facts; the table is empty."""
        import pyarrow as pa

        sample = CorpusSample(self.corpus, self.sample_bytes, parallel=False)
        tokenizer = TOKENIZERS.load(self.kind)(sample, self.settings)
        figures = measure(tokenizer, self.corpus, special_ids(tokenizer))
        row = {
            "kind": self.kind,
            "vocab_size": tokenizer.get_vocab_size(),
            "asked": self.settings.vocab_size,
            "lowercase": self.kind == "bpe-words" or (self.kind in LOWERCASED and self.settings.lowercase),
            "bytes_per_token": figures["bytes_per_token"],
            "fertility": figures["fertility_tokens_per_word"],
            "unknown_rate": figures["unk_rate"],
            "whole_words": figures["whole_word_share"],
            "measured_on": figures["measured_on"],
            "measured_bytes": figures["measured_bytes"],
        }
        return Shard(pa.table({}), {"row": row, "pieces": [each["pieces"] for each in examples(tokenizer)]})
