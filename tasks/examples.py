"""MakeExamples: documents become raw rows of one length, ready for an objective.

Tokenising runs in parallel over slices of the corpus, each kept in the stage's scratch until the stage is done
(`tasks.shards`); one process packs the tokens in the corpus's order and writes them as shards of Arrow IPC, so the
files are the same on any number of workers and after any crash. What a raw row is (its length, the
tokens that it begins and ends with, what separates documents, whether it is a pair of segments) is the
objective's `layout`; how documents fill rows is `packing` (`tasks.packing`).

With masking=dynamic the files hold raw rows, and what is random is drawn when they are read, anew each epoch. With
masking=static the same code draws here, `duplication` times, and the files hold the objective's `columns`. Some
objectives learn from the whole text at once (GloVe's co-occurrences): their `prepare` gives the rows.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData, Cancelled
from tasks.base import Context, Corpus, Task, Tokenizer
from tasks.corpus_reader import split_bytes
from tasks.objectives import OBJECTIVES
from tasks.objectives.settings import AnyObjective, Masked
from tasks.tokenizer import ROLES_OF

if TYPE_CHECKING:
    import numpy as np

    from tasks.example_documents import DocumentWriter
    from tasks.example_files import ShardIndex
    from tasks.objectives.base import Objective, Vocabulary
    from tasks.slices import Tokenise

_MOST_ROWS = 16_384  # of every record batch but the last
_BATCH_TOKENS = 1 << 23  # fewer rows where they are long: what the writer holds is bounded
_UNMASKED = {"word-vectors", "bilstm"}  # architectures whose objectives read running text: no masks, no sentences


class MakeExamples(Task):
    """Tokenise, pack and (with static masking) mask a corpus."""

    produces: ClassVar[str] = "examples"
    stage: ClassVar[str] = "examples"
    later: ClassVar[tuple[str, ...]] = ("*-[0-9][0-9][0-9][0-9][0-9].arrow", "*-documents.arrow")

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
        if self.packing != "stream" and set(objective.architectures) <= _UNMASKED:
            raise BadConfig(
                f"packing={self.packing} with objective {objective.kind!r}: it reads running text, whose windows "
                "and states do not end where a sentence does",
                "leave packing=stream",
            )
        if self.masking == "static" and set(objective.architectures) <= _UNMASKED:
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
        """Write shards and documents of both splits, `vocabulary.arrow` and `examples.json`.

        Raises:
            BadConfig: the tokenizer lacks a special token that the objective needs.
            BadData: the corpus has too few tokens for one row.
        """
        from dataclasses import replace

        from tasks.corpus_reader import read_texts
        from tasks.label_bytes import bytes_per_token_byte
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
        origin = self._origin(tokenizer_json, corpus)
        counts, shards, copies, tokens = {}, {}, {}, {}
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
            shards[split] = made.write(corpus, split, ctx, clock, rows_per_batch, origin)
            copies[split], counts[split] = made.copies, made.counts
            tokens[split] = int(made.counts[~vocabulary.special].sum())
        sequences = {split: index.rows for split, index in shards.items()}
        if not sequences["train"]:
            raise BadData(
                f"the corpus gives {tokens['train']} training tokens, too few for one row of {layout.tokens}",
                "use more text or a smaller length_tokens",
            )
        write_vocabulary(ctx.out / FILE, replace(vocabulary, counts=counts["train"]))
        texts = (text for batch in read_texts(corpus, "validation") for text in batch)
        facts = {
            "bytes_per_token_byte": bytes_per_token_byte(tokenizer_json, vocabulary.special, texts),
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
            "copies": copies,
            "seed": self.seed,
            "shards": {split: index._asdict() for split, index in shards.items()},
        }
        (ctx.out / "examples.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
        ctx.timing("megabytes_per_second", clock.rate())
        return {
            "train_sequences": sequences["train"],
            "validation_sequences": sequences["validation"],
            "train_tokens": tokens["train"],
            "unigram_entropy_nats": facts["unigram_entropy_nats"],
        }

    def _origin(self, tokenizer_json: str, corpus: Path) -> str:
        """Names the artifact in its shards: a checksum of all that they are made of."""
        own = self.model_dump(mode="json", exclude={"corpus", "tokenizer", "name", "runtime"})
        parts = (json.dumps(own, sort_keys=True), tokenizer_json, (corpus / "corpus.json").read_text())
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def unigram_entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution with these counts: the loss of a model that knows frequencies only."""
    import numpy as np

    counts = counts[counts > 0].astype(np.float64)
    total = counts.sum()
    return float(np.log(total) - (counts * np.log(counts)).sum() / total) if total else 0.0


def _tokens(roles: list[str]) -> str:
    return ", ".join(roles[:-1]) + (" and " if len(roles) > 1 else "") + roles[-1] if roles else "none"


class _Clock:
    """Progress and speed over both splits, and now and then the finished slices to where a crash leaves them."""

    def __init__(self, ctx: Context, total: int) -> None:
        self.ctx, self.total, self.done, self.started = ctx, total, 0, time.monotonic()
        self._next_save = self.started + ctx.runtime.checkpoint_every_seconds

    def add(self, size: int) -> None:
        if self.ctx.cancelled():
            raise Cancelled("making examples was cancelled")
        self.done += size
        self.ctx.progress(min(self.done, self.total), self.total, "bytes", rate=self.rate())
        if (begun := time.monotonic()) > self._next_save:
            self.ctx.publish_scratch()
            # It reads all that is there, so it takes a tenth of the time at most, however much that is.
            spent = time.monotonic() - begun
            self._next_save = begun + spent + max(self.ctx.runtime.checkpoint_every_seconds, 9 * spent)

    def rate(self) -> float:
        """MB of text a second."""
        return self.done / max(1e-9, time.monotonic() - self.started) / 1e6


class _Split:
    """Makes the rows of one split: tokenised, packed, prepared, drawn, written, each step streaming into the next."""

    def __init__(self, task: MakeExamples, tokenise: Tokenise, vocabulary: Vocabulary, objective: Objective) -> None:
        import numpy as np

        from tasks.example_slices import SliceWork

        self.task, self.tokenise, self.vocabulary, self.objective = task, tokenise, vocabulary, objective
        self.work = SliceWork(tokenise)
        self.frame = self.work.frame
        self.counts = np.zeros(vocabulary.size, dtype=np.int64)  # of the split's tokens, once all rows are read
        self._begun = False  # a row has come

    @property
    def copies(self) -> int:
        """Rows written for each raw row: copies with other masks, side by side."""
        return self.tokenise.copies if self.task.masking == "static" and self.tokenise.layout.pairs == "none" else 1

    def write(
        self, corpus: Path, split: str, ctx: Context, clock: _Clock, rows_per_batch: int, origin: str
    ) -> ShardIndex:
        """Write the split's shards and documents; where its rows lie."""
        from tasks.example_documents import DocumentWriter
        from tasks.example_files import ExampleWriter

        located = self.tokenise.layout.pairs == "none" and not hasattr(self.objective, "prepare")
        documents = DocumentWriter(ctx.out, corpus, split, located)
        writer = ExampleWriter(ctx.out, split, rows_per_batch, self.vocabulary.size, self.tokenise.dtype, origin)
        with closing(self._raw(corpus, split, ctx, clock, documents)) as rows:
            for columns in self._drawn(self._prepared(rows)):
                writer.add(columns)
        documents.close()
        return writer.close()

    def _raw(
        self, corpus: Path, split: str, ctx: Context, clock: _Clock, documents: DocumentWriter
    ) -> Generator[Mapping[str, np.ndarray], None, None]:
        """Raw rows in the corpus's order: `tokens`, and what sentence pairs have beside them."""
        from tasks.example_slices import read
        from tasks.packing import packer
        from tasks.shards import saved_map
        from tasks.slices import slices

        packed = packer(self.task.packing, self.tokenise.layout, self.tokenise.special_tokens, self.tokenise.dtype)
        with closing(saved_map(ctx, split, slices(corpus, split), self.work.shard)) as shards:
            for piece in map(read, shards):
                self.counts[piece.tokens] += piece.counts
                documents.documents(piece.document_tokens)
                if piece.pairs is not None:
                    yield piece.pairs
                elif piece.stream is not None:
                    yield self._located(packed.add(piece.stream), documents)
                clock.add(piece.size)
        if self.tokenise.layout.pairs == "none":
            yield self._located(packed.end(), documents)

    def _located(self, rows: np.ndarray, documents: DocumentWriter) -> dict[str, np.ndarray]:
        """The raw rows as a column, told to `documents`."""
        if len(rows) and documents.located:
            text = ~self.frame[rows]
            tokens = text.sum(axis=1)
            if self.tokenise.layout.overlap:  # the token that a row shares with the one before is that one's
                tokens -= text[:, len(self.tokenise.layout.begin)]
                if not self._begun:
                    tokens[0] += text[0, len(self.tokenise.layout.begin)]
            self._begun = True
            documents.rows(tokens)
        return {"tokens": rows}

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
                for copy in range(self.copies)
            ]
            example = {
                name: np.stack([each[name] for each in drawn], axis=1).reshape(-1, *drawn[0][name].shape[1:])
                for name in self.objective.columns
            }
            if "copy" in facts:
                example["copy"] = facts["copy"]
            yield example
