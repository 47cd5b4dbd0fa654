"""Reading the `installed-docs` corpus for tasks that label it by themselves.

Train rows come from the corpus's train split and validation rows from its validation split, which is
drawn by module. Docstrings still recur across modules (inherited ones, generated ones), so
`both_sides` drops validation documents that stand on the train side too, and `apart` such rows.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import BadData
from tasks.downstream.spec import Row, Splits

_NEEDED = ("library", "module", "object")
_HEADS = {
    *("notes", "note", "parameters", "returns", "return", "yields", "raises", "warns", "warnings", "examples"),
    *("example", "references", "attributes", "methods", "see", "also", "other", "arguments", "args", "usage"),
}
_KEY = re.compile(r"[^a-z]+")


@dataclass(frozen=True)
class Doc:
    """One docstring: its corpus id, text, and the facts of its `meta` column."""

    id: str
    text: str
    library: str
    module: str
    object: str
    parameters: tuple[tuple[str, str], ...] = ()
    """(name, type) pairs, as the docstring states them."""


def documents(corpus: Path, split: str, task: str) -> Iterator[Doc]:
    """The documents of a corpus artifact's split, in file order.

    Raises BadData where the corpus is not one of docstrings: its `meta` lacks library, module or object.
    """
    import pyarrow.parquet as pq

    seen: Counter[str] = Counter()
    for path in sorted(corpus.glob(f"{split}-*.parquet")):
        table = pq.read_table(path, columns=["id", "text", "meta"])
        for number, (name, text, meta) in enumerate(zip(*(c.to_pylist() for c in table.columns), strict=True)):
            facts = json.loads(meta or "{}")
            missing = [field for field in _NEEDED if field not in facts]
            if missing:
                raise BadData(
                    f"task {task!r}: {path.name}, row {number}: meta has no {', '.join(missing)}",
                    "this task labels a corpus of docstrings: use the corpus installed-docs, or leave the task out",
                )
            seen[name] += 1  # overloads and conditional definitions share a name
            name = name if seen[name] == 1 else f"{name}~{seen[name]}"
            yield Doc(name, text, facts["library"], facts["module"], facts["object"], _parameters(facts))


def both_sides(corpus: Path, task: str) -> dict[str, list[Doc]]:
    """{"train": documents, "validation": documents}, without validation documents whose text is in train too.

    Ingest has dropped equal documents of one corpus already; a corpus from elsewhere may still hold them.
    """
    docs = {split: list(documents(corpus, split, task)) for split in ("train", "validation")}
    train = {" ".join(doc.text.split()).lower() for doc in docs["train"]}
    docs["validation"] = [doc for doc in docs["validation"] if " ".join(doc.text.split()).lower() not in train]
    return docs


def _parameters(facts: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((p["name"], p["type"]) for p in facts.get("parameters") or () if p.get("name") and p.get("type"))


def prose(text: str) -> Iterator[str]:
    """The running-text paragraphs of a docstring, each on one line: no lists, tables, sections or indented blocks."""
    for block in re.split(r"\n\s*\n", text):
        lines = block.split("\n")
        if len(lines) > 1 and set(re.findall(r"\w+", lines[0].lower())) <= _HEADS:
            lines = lines[1:]  # a section's title, without the rule that stood under it
        if any(line[:1] in " \t-*|>" or line.rstrip().endswith(":") for line in lines if line):
            continue
        joined = " ".join(" ".join(lines).split())
        if len(joined.split()) >= 5 and joined[-1:] in ".!?":
            yield joined


def text_key(text: str) -> str:
    """What makes two texts the same: the letters alone, in lower case."""
    return _KEY.sub(" ", text.lower()).strip()


def apart(splits: Splits, field: str) -> dict[str, int]:
    """Drop repeated texts (by `text_key` of `field`) within a split, and from validation those of train, in place.

    Returns how many rows went, {"duplicates", "overlap"}.
    """
    train: set[str] = set()
    kept, duplicates = _unrepeated(splits["train"], field, train)
    splits["train"] = kept
    own: set[str] = set()
    fresh, repeated = _unrepeated(splits["validation"], field, own)
    splits["validation"] = [row for row in fresh if text_key(getattr(row, field)) not in train]
    return {"duplicates": duplicates + repeated, "overlap": len(fresh) - len(splits["validation"])}


def _unrepeated(rows: Sequence[Row], field: str, seen: set[str]) -> tuple[list[Row], int]:
    kept = []
    for row in rows:
        key = text_key(getattr(row, field))
        if key not in seen:
            seen.add(key)
            kept.append(row)
    return kept, len(rows) - len(kept)


def need_rows(task: str, splits: Splits, least: int = 1) -> None:
    """Raise BadData where a split is left without rows."""
    for split, rows in splits.items():
        if len(rows) < least:
            raise BadData(
                f"task {task!r}: the corpus's {split} split gives {len(rows)} labelled rows, expected at least {least}",
                "use a larger corpus, or leave the task out",
            )
