"""MakeExamples: documents become packed token sequences of one length, ready for an objective.

Tokenising runs in parallel over slices of the corpus; one process packs the tokens in the corpus's order and
writes them as Arrow IPC, so the files are the same on any number of workers. Packing is RoBERTa's
FULL-SENTENCES idea taken to the token (Liu et al. 2019, section 4.2): documents follow one another with a
separator between them, and the stream is cut into `[CLS] … [SEP]` of exactly `length_tokens`; only a split's
last sequence is padded.

With masking=dynamic the files hold tokens, and masks are drawn when they are read, new ones each epoch. With
masking=static the same code draws them here, `duplication` times with different masks, and the files hold
inputs and labels.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData, Cancelled
from cluster.parallel import in_ray, map_ordered
from tasks.base import Context, Corpus, Task, Tokenizer
from tasks.corpus_reader import read_batches, split_bytes
from tasks.objectives import OBJECTIVES

if TYPE_CHECKING:
    import numpy as np

    from tasks.objectives.base import Objective, Vocabulary

_SLICE_BYTES = 2 << 20  # of text per tokenising item
_ROWS_PER_BATCH = 16_384  # of every record batch but the last; readers rely on it being the same


class MakeExamples(Task):
    """Tokenise, pack and (with static masking) mask a corpus."""

    produces: ClassVar[str] = "examples"
    stage: ClassVar[str] = "examples"

    corpus: Corpus
    tokenizer: Tokenizer
    objective: Annotated[str, OBJECTIVES] = Field("mlm", description="what the examples train")
    length_tokens: int = Field(128, ge=8, le=1 << 17, description="tokens per sequence, [CLS] and [SEP] included")
    masking: Literal["dynamic", "static"] = Field("dynamic", description="masks drawn on reading, or written here")
    duplication: int = Field(1, ge=1, le=100, description="copies with different masks; static masking only")
    mask_rate: float = Field(0.15, gt=0, lt=1, description="share of a sequence's tokens to predict")
    max_predictions: int = Field(0, ge=0, description="most tokens to predict in a sequence; 0: no limit")
    whole_word: bool = Field(False, description="mask whole words")
    random_token: Literal["ordinary", "any"] = Field(
        "ordinary", description="what the 10 % random tokens are drawn from"
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="of static masks, and of the validation split's masks")

    @model_validator(mode="after")
    def _duplicates_differ(self) -> MakeExamples:
        if self.duplication > 1 and self.masking == "dynamic":
            raise BadConfig(
                f"duplication={self.duplication} with masking=dynamic: copies would be the same",
                "set masking=static, or leave duplication at 1",
            )
        return self

    def run(self, ctx: Context) -> Mapping[str, Any]:
        """Write `train.arrow`, `validation.arrow`, `vocabulary.arrow` and `examples.json`.

        Raises:
            BadConfig: the tokenizer lacks a special token that the objective needs.
            BadData: the corpus has too few tokens for one sequence.
        """
        import numpy as np

        corpus, tokenizer = ctx.input("corpus").path, ctx.input("tokenizer").path
        tokenizer_json = (tokenizer / "tokenizer.json").read_text()
        special_tokens = json.loads((tokenizer / "tokenizer-info.json").read_text())["special_tokens"]
        vocabulary = vocabulary_of(tokenizer_json, special_tokens)
        objective: Objective = OBJECTIVES.load(self.objective)(vocabulary, self.model_dump())
        write_vocabulary(ctx.out / "vocabulary.arrow", vocabulary, tokenizer_json)

        started, total = time.monotonic(), split_bytes(corpus, "train") + split_bytes(corpus, "validation")
        done = 0
        counts = np.zeros(vocabulary.size, dtype=np.int64)
        sequences, tokens = {}, {}
        limit = ctx.runtime.workers if "workers" in ctx.runtime.model_fields_set else None
        for split in ("train", "validation"):
            copies = self.duplication if split == "train" else 1
            writer = _Writer(ctx.out / f"{split}.arrow", self, vocabulary, objective, copies)
            pieces = map_ordered(
                partial(tokenize, tokenizer_json, special_tokens["sep"]), _slices(corpus, split), max_in_flight=limit
            )
            try:
                for ids, size in pieces:
                    if ctx.cancelled():
                        raise Cancelled("making examples was cancelled")
                    if split == "train":
                        counts += np.bincount(ids, minlength=vocabulary.size)
                    writer.add(ids)
                    done += size
                    rate = done / max(1e-9, time.monotonic() - started) / 1e6
                    ctx.progress(min(done, total), total, "bytes", rate=rate)
            finally:
                pieces.close()
            sequences[split], tokens[split] = writer.close()
        if not sequences["train"]:
            raise BadData(
                f"the corpus gives {tokens['train']} training tokens, too few for one sequence of {self.length_tokens}",
                "use more text or a smaller length_tokens",
            )
        facts = {
            "objective": self.objective,
            "settings": {
                name: getattr(self, name) for name in ("mask_rate", "max_predictions", "whole_word", "random_token")
            },
            "masking": self.masking,
            "length_tokens": self.length_tokens,
            "vocab_size": vocabulary.size,
            "special_tokens": special_tokens,
            "sequences": sequences,
            "tokens": tokens,
            "unigram_entropy_nats": round(unigram_entropy(counts[~vocabulary.special]), 6),
            "duplication": self.duplication,
            "seed": self.seed,
            "rows_per_batch": _ROWS_PER_BATCH,
        }
        (ctx.out / "examples.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
        ctx.timing("megabytes_per_second", total / max(1e-9, time.monotonic() - started) / 1e6)
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


# ---------------------------------------------------------------- tokenising, in a worker


def _slices(corpus: Path, split: str) -> Iterator[Any]:
    """Arrow arrays of about 2 MB of text, in order; they travel to the worker, wherever that is."""
    import numpy as np
    import pyarrow.compute as pc

    for batch in read_batches(corpus, split):
        texts = batch.column(0)
        ends = np.cumsum(pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int64))
        first = 0
        while first < len(texts):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + _SLICE_BYTES, side="right")))
            yield texts.slice(first, last - first)
            first = last


@lru_cache(maxsize=2)
def _tokenizer(tokenizer_json: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
    return tokenizer


def tokenize(tokenizer_json: str, separator: int, texts: Any) -> tuple[np.ndarray, int]:
    """(ids of the texts one after another, each followed by the separator; bytes of text).

    ids: uint16 where the vocabulary allows, otherwise uint32.
    """
    import os

    import numpy as np
    import pyarrow.compute as pc

    if in_ray():
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core per Ray task; the tasks are the parallelism
    tokenizer = _tokenizer(tokenizer_json)
    encoded = tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
    ids: list[int] = []
    for encoding in encoded:
        ids += encoding.ids
        ids.append(separator)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    return np.array(ids, dtype=dtype), pc.sum(pc.binary_length(texts)).as_py() or 0


# ---------------------------------------------------------------- the vocabulary


def vocabulary_of(tokenizer_json: str, special_tokens: Mapping[str, int]) -> Vocabulary:
    """Which tokens are special and which begin a word, from the tokenizer itself."""
    import numpy as np

    from tasks.objectives.base import Vocabulary

    tokenizer = _tokenizer(tokenizer_json)
    spelled = tokenizer.get_vocab(with_added_tokens=True)
    size = max(spelled.values()) + 1
    special = np.ones(size, dtype=bool)  # an id without a token is nothing to predict
    starts_word = np.zeros(size, dtype=bool)
    added = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    continuing = json.loads(tokenizer_json)["model"]["type"] == "WordPiece"
    for token, i in spelled.items():
        special[i] = i in added
        # WordPiece marks what continues a word, byte-level BPE the space before what begins one.
        starts_word[i] = not token.startswith("##") if continuing else token.startswith(("Ġ", "Ċ", "ĉ"))
    return Vocabulary(size, dict(special_tokens), special, starts_word)


def write_vocabulary(path: Path, vocabulary: Vocabulary, tokenizer_json: str) -> None:
    """`vocabulary.arrow`: token, special and starts_word by id, for the reader and for showing examples."""
    import pyarrow as pa

    spelled = {i: t for t, i in _tokenizer(tokenizer_json).get_vocab(with_added_tokens=True).items()}
    table = pa.table(
        {
            "token": pa.array([spelled.get(i) for i in range(vocabulary.size)], pa.string()),
            "special": pa.array(vocabulary.special),
            "starts_word": pa.array(vocabulary.starts_word),
        }
    )
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)


# ---------------------------------------------------------------- packing and writing


class Packer:
    """Cuts a stream of tokens into sequences [CLS] … [SEP] of one length; loses none."""

    def __init__(self, length_tokens: int, vocabulary: Vocabulary, dtype: Any) -> None:
        import numpy as np

        self.length, self.special_tokens, self.dtype = length_tokens, vocabulary.special_tokens, dtype
        self.rest = np.empty(0, dtype=dtype)

    def add(self, ids: np.ndarray) -> np.ndarray:
        """The sequences that are full now: [N, length]."""
        import numpy as np

        body = self.length - 2
        stream = np.concatenate([self.rest, ids.astype(self.dtype, copy=False)])
        full = len(stream) // body
        self.rest = stream[full * body :]
        rows = np.empty((full, self.length), dtype=self.dtype)
        rows[:, 0] = self.special_tokens["cls"]
        rows[:, 1:-1] = stream[: full * body].reshape(full, body)
        rows[:, -1] = self.special_tokens["sep"]
        return rows

    def end(self) -> np.ndarray:
        """The last, padded sequence: [1, length], or [0, length] where no token is left."""
        import numpy as np

        rest = self.rest
        if len(rest) and rest[-1] == self.special_tokens["sep"]:
            rest = rest[:-1]  # the sequence's own [SEP] ends the last document
        self.rest = self.rest[:0]
        rows = np.full((1 if len(rest) else 0, self.length), self.special_tokens["pad"], dtype=self.dtype)
        if len(rest):
            rows[0, 0] = self.special_tokens["cls"]
            rows[0, 1 : 1 + len(rest)] = rest
            rows[0, 1 + len(rest)] = self.special_tokens["sep"]
        return rows


class _Writer:
    """Packs one split and writes it in record batches of `_ROWS_PER_BATCH`."""

    def __init__(
        self, path: Path, task: MakeExamples, vocabulary: Vocabulary, objective: Objective, copies: int
    ) -> None:
        import numpy as np
        import pyarrow as pa

        self.static, self.copies, self.seed, self.objective = task.masking == "static", copies, task.seed, objective
        self.dtype = np.uint16 if vocabulary.size <= 1 << 16 else np.uint32
        self.columns = objective.columns if self.static else ("tokens",)
        kind = pa.list_(pa.from_numpy_dtype(self.dtype), task.length_tokens)
        # A static label needs a value for "no loss"; with 65,536 tokens there would be none left in 16 bits.
        wide = pa.list_(pa.int32(), task.length_tokens)
        self.schema = pa.schema([(c, wide if c == "labels" else kind) for c in self.columns])
        self.file = pa.ipc.new_file(str(path), self.schema)
        self.packer = Packer(task.length_tokens, vocabulary, self.dtype)
        self.vocabulary = vocabulary
        self.held: list[Any] = []
        self.held_rows = self.packed = self.tokens = 0

    def add(self, ids: np.ndarray) -> None:
        self.tokens += int((~self.vocabulary.special[ids]).sum())
        self._rows(self.packer.add(ids))

    def _rows(self, rows: np.ndarray) -> None:
        import numpy as np

        if not len(rows):
            return
        if not self.static:
            self._hold({"tokens": rows})
        else:
            indices = np.arange(self.packed, self.packed + len(rows))
            # A sequence's copies stand side by side, so that writing streams; reading shuffles them anyway.
            drawn = [
                self.objective.draw(rows, self.seed, np.full(len(rows), copy), indices) for copy in range(self.copies)
            ]
            self._hold({c: np.stack([d[c] for d in drawn], axis=1).reshape(-1, rows.shape[1]) for c in self.columns})
        self.packed += len(rows)

    def _hold(self, columns: dict[str, np.ndarray]) -> None:
        self.held.append(columns)
        self.held_rows += len(next(iter(columns.values())))
        while self.held_rows >= _ROWS_PER_BATCH:
            self._flush(_ROWS_PER_BATCH)

    def _flush(self, count: int) -> None:
        import numpy as np
        import pyarrow as pa

        joined = {c: np.concatenate([h[c] for h in self.held]) for c in self.columns}
        arrays = []
        for column in self.columns:
            kind = self.schema.field(column).type
            flat = pa.array(joined[column][:count].reshape(-1).astype(kind.value_type.to_pandas_dtype(), copy=False))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=kind))
        self.file.write_batch(pa.record_batch(arrays, schema=self.schema))
        self.held = [{c: joined[c][count:] for c in self.columns}]
        self.held_rows -= count

    def close(self) -> tuple[int, int]:
        """(rows written, ordinary tokens packed)."""
        self._rows(self.packer.end())
        if self.held_rows:
            self._flush(self.held_rows)
        self.file.close()
        return self.packed * self.copies, self.tokens
