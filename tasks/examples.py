"""MakeExamples: documents become raw rows of one length, ready for an objective.

Tokenising runs in parallel over slices of the corpus; one process packs the tokens in the corpus's order and
writes them as Arrow IPC, so the files are the same on any number of workers. What a raw row is (its length, the
tokens that it begins and ends with, what separates documents, whether it is a pair of segments) is the
objective's `layout`; how documents fill rows is `packing` (`tasks.packing`).

With masking=dynamic the files hold raw rows, and what is random is drawn when they are read, anew each epoch. With
masking=static the same code draws here, `duplication` times, and the files hold the objective's `columns`. Some
objectives learn from the whole text at once (GloVe's co-occurrences): their `prepare` gives the rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData, Cancelled
from cluster.parallel import map_ordered
from tasks.base import Context, Corpus, Task, Tokenizer
from tasks.corpus_reader import split_bytes
from tasks.objectives import OBJECTIVES
from tasks.objectives.settings import AnyObjective, Masked
from tasks.tokenizer import ROLES_OF

if TYPE_CHECKING:
    import numpy as np

    from tasks.objectives.base import Objective, Vocabulary
    from tasks.slices import Tokenise

_MOST_ROWS = 16_384  # of every record batch but the last
_BATCH_TOKENS = 1 << 23  # fewer rows where they are long: what the writer holds is bounded
_NEVER_STATIC = {"word-vectors", "bilstm"}  # architectures whose objectives have nothing to write but their rows


class MakeExamples(Task):
    """Tokenise, pack and (with static masking) mask a corpus."""

    produces: ClassVar[str] = "examples"
    stage: ClassVar[str] = "examples"

    corpus: Corpus
    tokenizer: Tokenizer
    objective: AnyObjective = Field(Masked(kind="mlm"), description="what the examples train, with its settings")
    length_tokens: int = Field(128, ge=8, le=1 << 17, description="tokens of a model input, special ones included")
    packing: Literal["stream", "full-sentences", "doc-sentences"] = Field(
        "stream", description="rows cut from the stream, or of whole sentences, over documents or of one each"
    )
    masking: Literal["dynamic", "static"] = Field("dynamic", description="drawn on reading, or written here")
    duplication: int = Field(1, ge=1, le=100, description="copies with different masks (static) or sentence pairs")
    seed: int = Field(
        0, ge=0, lt=1 << 63, description="of static masks and sentence pairs, and of the validation split"
    )

    @model_validator(mode="after")
    def _possible(self) -> MakeExamples:
        """What can be known before anything runs. Raises BadConfig."""
        objective = self.objective
        layout = objective.layout(self.length_tokens)
        if self.duplication > 1 and self.masking == "dynamic" and layout.pairs == "none":
            raise BadConfig(
                f"duplication={self.duplication} with masking=dynamic: copies would be the same",
                "set masking=static, or leave duplication at 1",
            )
        if self.packing != "stream" and layout.pairs != "none":
            raise BadConfig(
                f"packing={self.packing} with objective.pairs={layout.pairs}: pairs are made of sentences already",
                "leave packing=stream",
            )
        if self.packing != "stream" and layout.overlap:
            raise BadConfig(
                f"packing={self.packing} with objective {objective.kind!r}: its rows share a token with the one before",
                "leave packing=stream; objective.documents_apart keeps documents apart",
            )
        if self.masking == "static" and set(objective.architectures) <= _NEVER_STATIC:
            raise BadConfig(
                f"masking=static with objective {objective.kind!r}: it masks nothing that could be written",
                "set masking=dynamic",
            )
        room = layout.tokens - len(layout.begin) - len(layout.end) - layout.overlap
        least = 2 if layout.pairs != "none" else 1
        if room < least:
            raise BadConfig(
                f"length_tokens={self.length_tokens} leaves {max(0, room)} tokens of text in a row of "
                f"{objective.kind!r}, at least {least} needed",
                "raise length_tokens",
            )
        self._check_roles()
        return self

    def _check_roles(self) -> None:
        """Raise BadConfig where a tokenizer stage will lack what the objective needs."""
        roles = getattr(self.tokenizer, "roles", None)  # only of stages whose special tokens are known beforehand
        missing = [role for role in self.objective.needs if roles is not None and role not in roles]
        if missing:
            able = [kind for kind, has in ROLES_OF.items() if set(self.objective.needs) <= set(has)]
            raise BadConfig(
                f"objective {self.objective.kind!r} needs {_tokens(missing)}, a tokenizer of kind "
                f"{getattr(self.tokenizer, 'kind', '?')!r} has {_tokens(list(roles or ()))}",
                f"set tokenizer.kind to {' or '.join(able)}"
                + (" with tokenizer.sentinels above 0" if "sentinels" in missing else ""),
            )

    def run(self, ctx: Context) -> Mapping[str, Any]:
        """Write `train.arrow`, `validation.arrow`, `vocabulary.arrow` and `examples.json`.

        Raises:
            BadConfig: the tokenizer lacks a special token that the objective needs.
            BadData: the corpus has too few tokens for one row.
        """
        from dataclasses import replace

        from tasks.slices import Tokenise
        from tasks.vocabulary import FILE, vocabulary_of, write_vocabulary

        corpus, tokenizer = ctx.input("corpus").path, ctx.input("tokenizer").path
        tokenizer_json = (tokenizer / "tokenizer.json").read_text()
        special_tokens = json.loads((tokenizer / "tokenizer-info.json").read_text())["special_tokens"]
        vocabulary = vocabulary_of(tokenizer_json, special_tokens)
        objective: Objective = OBJECTIVES.load(self.objective.kind)(vocabulary, self.objective, self.length_tokens)
        if self.masking == "static" and not objective.columns:
            raise BadConfig(f"masking=static with objective {self.objective.kind!r}: it has no fixed columns")

        layout = self.objective.layout(self.length_tokens)
        clock = _Clock(ctx, split_bytes(corpus, "train") + split_bytes(corpus, "validation"))
        rows_per_batch = max(16, min(_MOST_ROWS, _BATCH_TOKENS // layout.tokens))
        counts, sequences, tokens = {}, {}, {}
        for split in ("train", "validation"):
            tokenise = Tokenise(
                tokenizer_json,
                vocabulary.size,
                special_tokens,
                layout,
                sentences=self.packing != "stream",
                seed=self.seed,
                short_share=getattr(self.objective, "short_share", 0.0),
                copies=self.duplication if split == "train" else 1,
            )
            made = _Split(self, tokenise, vocabulary, objective)
            sequences[split] = made.write(corpus, split, ctx, clock, rows_per_batch)
            counts[split] = made.counts
            tokens[split] = int(made.counts[~vocabulary.special].sum())
        if not sequences["train"]:
            raise BadData(
                f"the corpus gives {tokens['train']} training tokens, too few for one row of {layout.tokens}",
                "use more text or a smaller length_tokens",
            )
        write_vocabulary(ctx.out / FILE, replace(vocabulary, counts=counts["train"]))
        facts = {
            "objective": self.objective.model_dump(mode="json"),
            "layout": layout._asdict(),
            "lengths": self.objective.lengths(self.length_tokens),
            "packing": self.packing,
            "masking": self.masking,
            "length_tokens": self.length_tokens,
            "vocab_size": vocabulary.size,
            "special_tokens": special_tokens,
            "sequences": sequences,
            "tokens": tokens,
            "unigram_entropy_nats": round(unigram_entropy(counts["train"][~vocabulary.special]), 6),
            "duplication": self.duplication,
            "seed": self.seed,
            "rows_per_batch": rows_per_batch,
        }
        (ctx.out / "examples.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
        ctx.timing("megabytes_per_second", clock.rate())
        return {
            "train_sequences": sequences["train"],
            "validation_sequences": sequences["validation"],
            "train_tokens": tokens["train"],
            "unigram_entropy_nats": facts["unigram_entropy_nats"],
        }


def unigram_entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution with these counts: the loss of a model that knows frequencies only."""
    import numpy as np

    counts = counts[counts > 0].astype(np.float64)
    total = counts.sum()
    return float(np.log(total) - (counts * np.log(counts)).sum() / total) if total else 0.0


def _tokens(roles: list[str]) -> str:
    return ", ".join(roles[:-1]) + (" and " if len(roles) > 1 else "") + roles[-1] if roles else "none"


class _Clock:
    """Progress and speed over both splits."""

    def __init__(self, ctx: Context, total: int) -> None:
        self.ctx, self.total, self.done, self.started = ctx, total, 0, time.monotonic()

    def add(self, size: int) -> None:
        if self.ctx.cancelled():
            raise Cancelled("making examples was cancelled")
        self.done += size
        self.ctx.progress(min(self.done, self.total), self.total, "bytes", rate=self.rate())

    def rate(self) -> float:
        """MB of text a second."""
        return self.done / max(1e-9, time.monotonic() - self.started) / 1e6


class _Split:
    """Makes the rows of one split: tokenised, packed, prepared, drawn, written, each step streaming into the next."""

    def __init__(self, task: MakeExamples, tokenise: Tokenise, vocabulary: Vocabulary, objective: Objective) -> None:
        import numpy as np

        self.task, self.tokenise, self.vocabulary, self.objective = task, tokenise, vocabulary, objective
        self.counts = np.zeros(vocabulary.size, dtype=np.int64)  # of the split's tokens, once all rows are read

    def write(self, corpus: Path, split: str, ctx: Context, clock: _Clock, rows_per_batch: int) -> int:
        """Write `<split>.arrow`; the number of rows."""
        from tasks.example_files import ExampleWriter

        writer = ExampleWriter(ctx.out / f"{split}.arrow", rows_per_batch, self.vocabulary.size, self.tokenise.dtype)
        limit = ctx.runtime.workers if "workers" in ctx.runtime.model_fields_set else None
        rows = self._raw(corpus, split, clock, limit)
        try:
            for columns in self._drawn(self._prepared(rows)):
                writer.add(columns)
        finally:
            rows.close()
        writer.close()
        return writer.rows

    def _raw(
        self, corpus: Path, split: str, clock: _Clock, limit: int | None
    ) -> Generator[Mapping[str, np.ndarray], None, None]:
        """Raw rows in the corpus's order: `tokens`, and what sentence pairs have beside them."""
        from tasks.packing import packer
        from tasks.slices import slices

        packed = packer(self.task.packing, self.tokenise.layout, self.tokenise.special_tokens, self.tokenise.dtype)
        pieces = map_ordered(self.tokenise.piece, slices(corpus, split), max_in_flight=limit)
        try:
            for piece in pieces:
                self.counts += piece.counts
                if piece.pairs is not None:
                    yield piece.pairs
                elif piece.stream is not None:
                    yield {"tokens": packed.add(piece.stream)}
                clock.add(piece.size)
        finally:
            pieces.close()
        if self.tokenise.layout.pairs == "none":
            yield {"tokens": packed.end()}

    def _prepared(self, rows: Iterator[Mapping[str, np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
        """The rows, or what an objective that needs the whole split makes of them."""
        if (prepare := getattr(self.objective, "prepare", None)) is None:
            return rows
        tokens = (columns["tokens"] for columns in rows)
        return prepare(tokens, self.vocabulary, self.task.objective, self.task.length_tokens)

    def _drawn(self, rows: Iterator[Mapping[str, np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
        """With static masking the examples of the rows, a row's copies side by side, so that writing streams."""
        import numpy as np

        if self.task.masking == "dynamic":
            yield from rows
            return
        copies = 1 if self.tokenise.layout.pairs != "none" else self.tokenise.copies
        first = 0
        for columns in rows:
            facts = {name: column for name, column in columns.items() if name != "tokens"}
            tokens = columns["tokens"]
            indices = np.arange(first, first + len(tokens))
            first += len(tokens)
            if not len(tokens):
                continue
            epochs = facts.get("copy", np.zeros(len(tokens)))
            drawn = [
                self.objective.draw(tokens, self.task.seed, epochs.astype(np.int64) + copy, indices, facts)
                for copy in range(copies)
            ]
            example = {
                name: np.stack([each[name] for each in drawn], axis=1).reshape(-1, *drawn[0][name].shape[1:])
                for name in self.objective.columns
            }
            if "copy" in facts:
                example["copy"] = facts["copy"]
            yield example
