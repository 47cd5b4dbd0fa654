"""What workers do to a slice of the corpus: sign it for a comparison, or apply steps to it.

A slice is an Arrow table of some MB: id, text, source, meta (strings) and validation (bool). It travels to the
worker, wherever that is, and what is left of it comes back the same way. Slices depend on the corpus alone, not on the
number of workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from tasks.cleaning import STEPS
from tasks.cleaning.base import Decision, Documents, DocumentStep, Verdict
from tasks.cleaning.funnel import Row, add_sample, empty_row, room
from tasks.cleaning.settings import StepSettings
from tasks.corpus_reader import read_batches
from tasks.shards import Shard
from tasks.word_counts import word_counts

SLICE_BYTES = 4 << 20  # of text, at least, but for the last
COLUMNS = ("id", "text", "source", "meta", "validation")
NOTHING_LEFT = "nothing left"


class Item(NamedTuple):
    """A slice, the number of its first document in the corpus, and what was decided about it, if anything was."""

    table: Any
    first: int
    decision: Decision | None = None


# ---------------------------------------------------------------- slices, in the stage's process


def corpus_tables(folder: Path) -> Iterator[Any]:
    """The documents of a corpus artifact as tables: training split, then validation."""
    import pyarrow as pa

    for split in ("train", "validation"):
        for batch in read_batches(folder, split, COLUMNS[:4]):
            column = pa.repeat(pa.scalar(split == "validation"), len(batch))
            yield pa.Table.from_batches([batch]).append_column("validation", column)


def slices(tables: Iterable[Any]) -> Iterator[Any]:
    """The same documents in tables of `SLICE_BYTES` of text."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    held: list[Any] = []
    size = 0
    for table in tables:
        lengths = pc.binary_length(table.column("text")).to_numpy().astype(np.int64)
        ends = np.cumsum(lengths)
        first = before = 0
        while first < len(table):
            last = min(len(table), int(np.searchsorted(ends, before + SLICE_BYTES - size)) + 1)
            held.append(table.slice(first, last - first))
            size += int(ends[last - 1]) - before
            first, before = last, int(ends[last - 1])
            if size >= SLICE_BYTES:
                yield pa.concat_tables(held).combine_chunks()
                held, size = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


# ---------------------------------------------------------------- in a worker


class Evaluation(NamedTuple):
    """What must not be learnt: an Arrow table (task, text), which costs nothing to send, and its checksum."""

    table: Any
    digest: str

    @classmethod
    def of(cls, folders: Iterable[Path]) -> Evaluation:
        """Every labelled split of the datasets but `train`.

        The texts of a pair are texts by themselves, since a corpus could hold either; each once for its task.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        seen: dict[tuple[str, str], None] = {}
        for folder in folders:
            task = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["task"]
            for path in sorted(folder.glob("*.parquet")):
                if path.stem == "train":
                    continue
                for row in pq.read_table(path, columns=["text_a", "text_b"]).to_pylist():
                    seen.update(((task, text), None) for text in row.values() if text)
        columns = list(zip(*seen, strict=True)) if seen else [(), ()]
        table = pa.table([pa.array(column, pa.string()) for column in columns], names=["task", "text"])
        return cls(table, blake2b(json.dumps(list(seen)).encode(), digest_size=16).hexdigest())

    def by_task(self) -> dict[str, list[str]]:
        """{task: texts}."""
        found: dict[str, list[str]] = {}
        for row in self.table.to_pylist():
            found.setdefault(row["task"], []).append(row["text"])
        return found


class Sign(NamedTuple):
    """Makes the signatures of a slice for a step that compares documents."""

    settings: StepSettings

    def work(self, item: Item) -> Shard:
        step = STEPS.load(self.settings.kind)(self.settings)
        return Shard(step.sign(_documents(item)), {"documents": len(item.table)})


class Apply(NamedTuple):
    """Carries out a decision on a slice, then runs document steps over what is left.

    Attributes:
        decided: name of the step that decided; empty where none did.
        steps: (name, settings) of the document steps, in order.
        evaluation: for the steps that need it.
        last: whether words and characters are counted, for the corpus's facts.
    """

    decided: str
    steps: tuple[tuple[str, StepSettings], ...]
    evaluation: Evaluation
    last: bool

    def work(self, item: Item) -> Shard:
        """The documents that are left (as `COLUMNS`, with `words` and `chars` where `last`), and the funnel's rows."""
        state = _State(item.table)
        rows = []
        if item.decision is not None:
            rows.append(state.apply(self.decided, item.decision.verdicts(_documents(item)), None))
        made = _steps(tuple(settings for _, settings in self.steps), self.evaluation)
        for (name, _), step in zip(self.steps, made, strict=True):
            rows.append(state.apply(name, step.clean(state.texts()), step))
            rows[-1]["facts"] = dict(step.facts())
        return Shard(state.table(counts=self.last), {"documents": len(item.table), "rows": rows})


def _documents(item: Item) -> Documents:
    table = item.table
    return Documents(table.column("text").to_pylist(), item.first, table.column("validation").to_pylist())


_LAST_STEPS: list[Any] = []  # [key, steps]: a worker's, kept between slices, since some load a model or build an index


def _steps(settings: tuple[StepSettings, ...], evaluation: Evaluation) -> list[DocumentStep]:
    key = (evaluation.digest, *(each.model_dump_json() for each in settings))
    if not _LAST_STEPS or _LAST_STEPS[0] != key:
        texts = evaluation.by_task() if any(each.needs_evaluation for each in settings) else {}
        made = [STEPS.load(each.kind)(each, texts if each.needs_evaluation else {}) for each in settings]
        _LAST_STEPS[:] = [key, made]
    return list(_LAST_STEPS[1])


class _State:
    """The documents of a slice between steps. Only texts become Python objects; the rest stays in Arrow."""

    def __init__(self, table: Any) -> None:
        import pyarrow.compute as pc

        self.given = table
        self.kept = list(range(len(table)))  # rows of `given` that are left
        self.text: list[str] = table.column("text").to_pylist()  # of each of them
        self.size: list[int] = pc.binary_length(table.column("text")).to_pylist()
        self.validation: list[bool] = table.column("validation").to_pylist()
        self.changed = False
        self.moved = False

    def texts(self) -> list[str]:
        return self.text

    def apply(self, name: str, verdicts: Sequence[Verdict], step: DocumentStep | None) -> Row:
        """Carry verdicts out; the step's row of the funnel."""
        if len(verdicts) != len(self.text):
            raise RuntimeError(f"{name} gave {len(verdicts)} verdicts for {len(self.text)} documents")
        row = empty_row(name)
        reasons, counts = row["reasons"], row["counts"]
        dropped: list[int] = []
        for number, (before, verdict) in enumerate(zip(self.text, verdicts, strict=True)):
            after, reason, found, split = verdict
            for what, count in found.items() if found else ():
                counts[what] = counts.get(what, 0) + count
            if after is not None and after is not before and after != before:
                if not after or after.isspace():
                    after, reason = None, NOTHING_LEFT
                else:
                    row["changed"] += 1
                    self.text[number] = after
                    self.size[number] = len(after.encode())
                    self.changed = True
            if after is None:
                dropped.append(number)
                row["removed"]["documents"] += 1
                row["removed"]["bytes"] += self.size[number]
            elif split and (split == "validation") != self.validation[number]:
                self.validation[number] = split == "validation"
                self.moved = True
                counts[f"moved to {split}"] = counts.get(f"moved to {split}", 0) + 1
            if reason:
                reasons[reason] = reasons.get(reason, 0) + 1
                if room(row, reason):
                    self._sample(row, number, reason, before, after, step)
        if dropped:
            gone = set(dropped)
            every: tuple[list[Any], ...] = (self.kept, self.text, self.size, self.validation)
            for values in every:
                values[:] = [value for number, value in enumerate(values) if number not in gone]
        row["documents"], row["bytes"] = len(self.text), sum(self.size)
        row["validation_documents"] = sum(self.validation)
        return row

    def _sample(
        self, row: Row, number: int, reason: str, before: str, after: str | None, step: DocumentStep | None
    ) -> None:
        """Some steps take out what no report should repeat: they say how a text may be shown."""
        id_ = self.given.column("id")[self.kept[number]].as_py() or ""
        add_sample(row, id_, reason, step.shown(before) if step else before, after)

    def table(self, counts: bool) -> Any:
        import pyarrow as pa

        table = self.given.select(list(COLUMNS))
        if len(self.kept) < len(table):
            table = table.take(pa.array(self.kept, pa.int64()))
        if self.changed:
            table = table.set_column(COLUMNS.index("text"), "text", pa.array(self.text, pa.string()))
        if self.moved:
            place = COLUMNS.index("validation")
            table = table.set_column(place, "validation", pa.array(self.validation, pa.bool_()))
        if counts:
            table = table.append_column("words", pa.array(word_counts(pa.array(self.text, pa.string())), pa.int32()))
            table = table.append_column("chars", pa.array([len(t) for t in self.text], pa.int32()))
        return table
