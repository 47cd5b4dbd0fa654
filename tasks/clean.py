"""Clean: steps over a corpus, with what each removed.

The list of steps is cut into passes. Steps that look at one document at a time run together, over slices of some MB
that go to workers and come back cleaned. A step that compares documents has a pass of its own, in which workers sign
slices; the stage's process brings the signatures together and decides; and the next pass carries the decision out
before its own steps. Each pass leaves its slices in the stage's scratch (`tasks.shards`), so a crash costs the slices
at work, and memory holds a few slices and what the comparing step needs per document. Of two passes that are done
only the later one is kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData
from tasks.base import Context, Corpus, Task
from tasks.cleaning.settings import LISTS, AnyStep, StepSettings
from tasks.datasets import Dataset

if TYPE_CHECKING:
    from tasks.cleaning.base import Decided
    from tasks.shards import Shard


class Clean(Task):
    """Repair, drop and deduplicate documents; a corpus in, a corpus out, with its `funnel` in `corpus.json`."""

    produces: ClassVar[str] = "corpus"
    stage: ClassVar[str] = "clean"

    corpus: Corpus
    steps: tuple[AnyStep, ...] = Field(
        cast(Any, LISTS["standard"]),  # names, which the field's type reads
        description="cleaning steps in order, each a name or a section with `kind`; or standard, or web",
    )
    evaluation: tuple[Dataset, ...] = Field(
        (), description="data of the downstream tasks, which decontamination keeps out of the corpus"
    )

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, values: Any) -> Any:
        """A named list becomes its steps, so that both spellings are one stage."""
        if not isinstance(values, dict) or not isinstance(values.get("steps"), str):
            return values
        name = values["steps"]
        if name not in LISTS:
            raise BadConfig(
                f"steps: no list of cleaning steps is called {name!r}",
                f"known: {', '.join(LISTS)}; or give a list of steps, as ['unicode', 'pii']",
            )
        steps = LISTS[name]
        if not values.get("evaluation"):  # nothing is evaluated, so nothing can be given away
            steps = tuple(step for step in steps if step != "decontaminate")
        return {**values, "steps": steps}

    @model_validator(mode="after")
    def _possible(self) -> Clean:
        if not self.steps:
            raise BadConfig("steps: an empty list would clean nothing", "name a step, or leave the stage out")
        needs = [step.kind for step in self.steps if step.needs_evaluation]
        if needs and not self.evaluation:
            raise BadConfig(
                f"steps: {needs[0]} needs to know what is evaluated, and evaluation is not given",
                "pass the datasets of the downstream tasks: Clean(…, evaluation=(LabelledData(…),))",
            )
        if self.evaluation and not needs:  # not looked at, so neither waited for nor part of the key
            object.__setattr__(self, "evaluation", ())
        return self

    def external(self) -> Mapping[str, Any]:
        """Fingerprints of the files that steps read."""
        from cluster.files import fingerprint

        return {
            f"steps.{number}.{step.kind}": fingerprint(step.files(), f"cleaning step {step.kind}")
            for number, step in enumerate(self.steps)
            if step.files()
        }

    def run(self, ctx: Context) -> Mapping[str, Any]:
        """Write the cleaned shards and `corpus.json`.

        Raises:
            BadData: no training document is left; names the step that removed most and its reasons.
        """
        from tasks.cleaning.funnel import as_lines

        made = _Run(self, ctx)
        facts = made.write(made.clean())
        for line in as_lines(made.rows):
            ctx.log(line)
        before, after = made.rows[0], made.rows[-1]
        ctx.dataset("cleaned corpus", documents=facts["documents"], bytes=facts["bytes"])
        return {
            "documents": facts["documents"],
            "bytes": facts["bytes"],
            "words": facts["words"],
            "validation_documents": facts["splits"]["validation"]["documents"],
            "kept_documents_share": round(after["documents"] / max(1, before["documents"]), 6),
            "kept_bytes_share": round(after["bytes"] / max(1, before["bytes"]), 6),
        } | {f"removed.{_metric(row['step'])}": row["removed"]["documents"] for row in made.rows[1:]}


def _metric(step: str) -> str:
    return step.replace(" (", "-").replace(")", "")


class _Pass(NamedTuple):
    """A comparing step, if there is one, and the document steps after it: (name, settings) of each."""

    compares: tuple[str, StepSettings] | None
    steps: tuple[tuple[str, StepSettings], ...]


def _passes(steps: Sequence[StepSettings]) -> list[_Pass]:
    from tasks.cleaning.funnel import step_names

    found: list[tuple[Any, list[Any]]] = []
    for named in zip(step_names(step.kind for step in steps), steps, strict=True):
        if named[1].compares:
            found.append((named, []))
        elif not found:
            found.append((None, [named]))
        else:
            found[-1][1].append(named)
    return [_Pass(compares, tuple(after)) for compares, after in found]


class _Run:
    """The stage at work: its passes one after another, then the artifact."""

    def __init__(self, task: Clean, ctx: Context) -> None:
        from tasks.cleaning.funnel import empty_row
        from tasks.cleaning.passes import Evaluation
        from tasks.corpus_reader import corpus_facts

        self.ctx = ctx
        self.folder = ctx.input("corpus").path
        self.given = corpus_facts(self.folder)
        self.passes = _passes(task.steps)
        self.evaluation = Evaluation.of([a.path for a in ctx.inputs("evaluation")] if task.evaluation else [])
        splits = self.given["splits"]
        self.rows = [empty_row("input")]
        self.rows[0]["documents"] = sum(split["documents"] for split in splits.values())
        self.rows[0]["bytes"] = sum(split["bytes"] for split in splits.values())
        self.rows[0]["validation_documents"] = splits["validation"]["documents"]
        self.turns = sum(1 + (each.compares is not None) for each in self.passes)  # how often slices travel
        self.turn = 0

    # ------------------------------------------------------------ passes

    def clean(self) -> int:
        """Every pass that is not done yet; the number of shards of the last."""
        done, shards = 0, 0
        for number in reversed(range(len(self.passes))):
            if (mark := self._mark(number)).exists():
                found = json.loads(mark.read_text(encoding="utf-8"))
                done, shards = number + 1, found["shards"]
                self.rows += found["rows"]
                self.ctx.log(f"passes 1 to {done} of {len(self.passes)} are done already")
                break
        self.turn = sum(1 + (each.compares is not None) for each in self.passes[:done])
        for number in range(done, len(self.passes)):
            shards = self._pass(number, shards)
        return shards

    def _mark(self, number: int) -> Path:
        return self.ctx.scratch / f"pass-{number:02d}.json"

    def _slices(self, number: int, shards: int) -> Iterator[tuple[int, Any]]:
        """(number of the first document, table) of what pass `number` is given, in slices."""
        from tasks.cleaning.passes import corpus_tables, slices

        first = 0
        for table in slices(self.tables(number - 1, shards) if number else corpus_tables(self.folder)):
            yield first, table
            first += len(table)

    def tables(self, number: int, shards: int) -> Iterator[Any]:
        """What pass `number`, which is done, left of each of its slices."""
        from tasks.shards import saved_map

        for shard in saved_map(self.ctx, f"pass-{number:02d}", range(shards), _is_there):
            yield shard.table

    def _pass(self, number: int, shards: int) -> int:
        """One pass over what the one before left in `shards` shards; the number of its own."""
        from tasks.cleaning.funnel import add_rows, empty_row
        from tasks.cleaning.passes import Apply, Item
        from tasks.shards import saved_map

        each = self.passes[number]
        decided = self._decide(number, shards) if each.compares else None

        def items() -> Iterator[Item]:
            for first, table in self._slices(number, shards):
                yield Item(table, first, decided.slice(first, len(table)) if decided else None)

        name = each.compares[0] if each.compares else ""
        work = Apply(name, each.steps, self.evaluation, last=number == len(self.passes) - 1).work
        rows = [empty_row(step) for step in ([name] if name else []) + [step for step, _ in each.steps]]
        if decided:
            rows[0]["facts"] = dict(decided.facts)
        total, seen, made = self.rows[-1]["documents"], 0, 0
        for shard in saved_map(self.ctx, f"pass-{number:02d}", items(), work):
            made += 1
            seen += shard.facts["documents"]
            for row, part in zip(rows, shard.facts["rows"], strict=True):
                add_rows(row, part)
            self._progress(seen, total)
        self.turn += 1
        self.rows += rows
        self._refuse_nothing()
        _write_json(self._mark(number), {"shards": made, "rows": self.rows[1:]})
        scratch = self.ctx.scratch
        for old in (scratch / f"sign-{number:02d}", scratch / f"pass-{number - 1:02d}", self._work(number)):
            shutil.rmtree(old, ignore_errors=True)
        return made

    def _decide(self, number: int, shards: int) -> Decided:
        from tasks.cleaning import STEPS

        compares = self.passes[number].compares
        assert compares is not None
        name, settings = compares
        self.ctx.log(f"{name}: signing {self.rows[-1]['documents']:,} documents")
        step = STEPS.load(settings.kind)(settings)
        decided: Decided = step.decide(_Signatures(self, number, shards), self._own_work(number))
        self.turn += 1
        return decided

    def _own_work(self, number: int) -> Context:
        """The stage's context with a fresh work folder, since a list may hold the same step twice."""
        folder = self._work(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return cast(Context, _Within(self.ctx, folder))

    def _work(self, number: int) -> Path:
        return self.ctx.work / f"decide-{number:02d}"

    def signatures(self, number: int, shards: int) -> Iterator[Any]:
        """The signatures of all slices of pass `number`, in order; made once."""
        from tasks.cleaning.passes import Item, Sign
        from tasks.shards import saved_map

        compares = self.passes[number].compares
        assert compares is not None
        items = (Item(table, first) for first, table in self._slices(number, shards))
        total, seen = self.rows[-1]["documents"], 0
        for shard in saved_map(self.ctx, f"sign-{number:02d}", items, Sign(compares[1]).work):
            seen += shard.facts["documents"]
            self._progress(seen, total)
            yield shard.table

    def _progress(self, seen: int, total: int) -> None:
        size = self.rows[0]["bytes"] / 1e6
        share = (self.turn + seen / max(1, total)) / self.turns
        self.ctx.progress(size * min(1.0, share), size, "MB", documents=self.rows[-1]["documents"])

    def _refuse_nothing(self) -> None:
        from tasks.cleaning.funnel import counted

        left = self.rows[-1]
        if left["documents"] > left["validation_documents"]:
            return
        most = max(self.rows[1:], key=lambda row: row["removed"]["documents"])
        held = left["validation_documents"]
        raise BadData(
            f"no training document is left{f', {held:,} for validation' if held else ''}: {most['step']} removed "
            f"{most['removed']['documents']:,} of {self.rows[0]['documents']:,} documents ({counted(most['reasons'])})",
            "loosen its thresholds, or leave the step out",
        )

    # ------------------------------------------------------------ the artifact

    def write(self, shards: int) -> dict[str, Any]:
        """The corpus from what the last pass left, and its `corpus.json`, which is returned."""
        import pyarrow.compute as pc

        from tasks.corpus_writer import Shards

        writer = Shards(self.ctx.out)
        words = characters = 0
        sources: dict[str, dict[str, int]] = {}
        for table in self.tables(len(self.passes) - 1, shards):
            writer.write(table)
            words += pc.sum(table.column("words")).as_py() or 0
            characters += pc.sum(table.column("chars")).as_py() or 0
            sizes = table.select(["source"]).append_column("size", pc.binary_length(table.column("text")))
            for row in sizes.group_by("source").aggregate([("size", "sum"), ("size", "count")]).to_pylist():
                counts = sources.setdefault(row["source"], {"documents": 0, "bytes": 0})
                counts["documents"] += row["size_count"]
                counts["bytes"] += row["size_sum"]
        writer.close()
        facts = {name: self.given[name] for name in ("skipped", "repaired", "duplicates") if name in self.given} | {
            "documents": self.rows[-1]["documents"],
            "bytes": self.rows[-1]["bytes"],
            "characters": characters,
            "words": words,
            "splits": writer.splits,
            "sources": sources,
            # of a corpus that was cleaned before: the whole way, which ends where this stage's begins
            "funnel": self.given.get("funnel", self.rows[:1]) + self.rows[1:],
        }
        _write_json(self.ctx.out / "corpus.json", facts)
        return facts


class _Within:
    """A context with another work folder."""

    def __init__(self, ctx: Context, work: Path) -> None:
        self.ctx, self.work = ctx, work

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ctx, name)


class _Signatures:
    """The signatures of a pass; may be read again, and are made only once."""

    def __init__(self, run: _Run, number: int, shards: int) -> None:
        self.run, self.number, self.shards = run, number, shards

    def __iter__(self) -> Iterator[Any]:
        return self.run.signatures(self.number, self.shards)


def _is_there(number: int) -> Shard:
    raise RuntimeError(f"shard {number} of a finished pass is gone from the scratch")


def _write_json(path: Path, value: Any) -> None:
    """At once or not at all, and the same bytes for the same value."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
