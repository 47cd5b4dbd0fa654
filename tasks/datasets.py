"""LabelledData: the labelled rows of a downstream task, from a benchmark's files or from the corpus itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from cluster.errors import BadConfig
from modeling.config import Registry
from tasks.base import Context, Corpus, Produces, Task
from tasks.downstream import DOWNSTREAM

if TYPE_CHECKING:
    from tasks.downstream.spec import Downstream, Row

Dataset = Annotated[Task, Produces("dataset")]


def needs_corpus(task: str) -> bool:
    """Whether a downstream task labels the run's corpus by itself; the others read files from a `directory`."""
    return bool(_spec(DOWNSTREAM, task).needs_corpus)


def asks_for_spans(task: str) -> bool:
    """Whether a downstream task's answers are spans of a text, not labels or scores."""
    return str(_spec(DOWNSTREAM, task).kind) == "span"


def is_symmetric(task: str) -> bool:
    """Whether a downstream task's pairs say the same in either order."""
    return bool(_spec(DOWNSTREAM, task).symmetric)


def _spec(registry: Registry, task: str) -> Downstream:
    return registry.load(task)


class LabelledData(Task):
    """The rows of one downstream task: `train.parquet`, `validation.parquet`, further labelled splits, `dataset.json`.

    Columns: id, text_a, text_b (null for single texts), label (class number or score; null for spans),
    answers and answer_starts (character offsets into text_b; text_a is the question). Train rows
    stand in an order shuffled by `seed`, and fewer of them are always a part of more.
    """

    produces: ClassVar[str] = "dataset"
    stage: ClassVar[str] = "data"

    task: Annotated[str, DOWNSTREAM]
    directory: str = Field("", description="folder of the benchmark (GLUE) or of the task; any fsspec URL")
    corpus: Corpus | None = Field(None, description="for tasks that label the corpus by themselves (docs-…)")
    train_examples: int = Field(0, ge=0, description="labels to train on; 0: all")
    validation_examples: int = Field(0, ge=0, description="rows to measure on; 0: all")
    seed: int = Field(0, ge=0, description="of the choice and order of rows, and of what the task makes up")

    def external(self) -> Mapping[str, Any]:
        """Fingerprints of the task's files, base names only; a BadConfig where they or the corpus are missing."""
        spec = _spec(DOWNSTREAM, self.task)
        if spec.needs_corpus:
            if self.corpus is None:
                raise BadConfig(
                    f"task {self.task!r} labels the corpus by itself, and corpus is not given",
                    "pass the corpus stage: LabelledData(task=…, corpus=corpus)",
                )
            if self.directory:
                raise BadConfig(f"task {self.task!r} reads the corpus; directory is of no use to it", "leave it out")
            return {}
        if self.corpus is not None:
            raise BadConfig(f"task {self.task!r} reads files; corpus is of no use to it", "leave it out")
        return spec.fingerprints(self.directory)

    def run(self, ctx: Context) -> Mapping[str, Any]:
        import json

        from tasks.downstream.spec import choose

        spec = _spec(DOWNSTREAM, self.task)
        if spec.needs_corpus:
            splits, notes = spec.build(ctx.input("corpus").path, self.seed)
        else:
            splits, notes = spec.read(self.directory)
        labels = notes.pop("labels", spec.labels)
        available = {split: len(rows) for split, rows in splits.items()}
        splits["train"] = choose(splits["train"], self.train_examples, self.seed, spec.balanced)
        if self.validation_examples:
            splits["validation"] = choose(splits["validation"], self.validation_examples, self.seed, spec.balanced)
        for split, rows in splits.items():
            write_rows(ctx.out / f"{split}.parquet", rows)
        facts = {
            "task": self.task,
            "kind": spec.kind,
            "labels": list(labels),
            "metrics": list(spec.metrics),
            "primary": spec.primary,
            "symmetric": spec.symmetric,
            "description": spec.description,
            "splits": {split: len(rows) for split, rows in splits.items()},
            "available": available,
            "notes": notes,
        }
        if spec.published:
            facts |= {"published": dict(spec.published), "published_metric": spec.published_metric}
        (ctx.out / "dataset.json").write_text(
            json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        ctx.dataset(self.task, **{f"{split}_examples": len(rows) for split, rows in splits.items()})
        ctx.log(f"{self.task}: " + ", ".join(f"{split} {len(rows):,}" for split, rows in splits.items()))
        return {f"{split}_examples": len(rows) for split, rows in splits.items()}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Rows as Parquet, byte-identical for equal rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": pa.string(),
        "text_a": pa.string(),
        "text_b": pa.string(),
        "label": pa.float64(),
        "answers": pa.list_(pa.string()),
        "answer_starts": pa.list_(pa.int32()),
    }
    table = pa.table({name: pa.array([getattr(r, name) for r in rows], kind) for name, kind in columns.items()})
    pq.write_table(table, path, compression="zstd", row_group_size=1 << 16)


def read_rows(path: Path) -> list[Row]:
    """The rows that `write_rows` wrote."""
    import pyarrow.parquet as pq

    from tasks.downstream.spec import Row

    return [
        Row(**{**row, "answers": tuple(row["answers"]), "answer_starts": tuple(row["answer_starts"])})
        for row in pq.read_table(path).to_pylist()
    ]
