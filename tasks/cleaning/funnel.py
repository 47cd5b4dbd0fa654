"""The funnel: documents and bytes after each step, what it removed and why, and samples to look at.

Workers make a row for each step and slice; the stage's process adds them up in the slices' order, so the figures and
the samples (the first ones in the corpus) are the same on any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

SAMPLES_PER_REASON = 3
SAMPLES_PER_STEP = 12
SAMPLE_CHARS = 300  # of a text's excerpt
_BEFORE_CHARS = 80  # of them, what stands before the first change

Row = dict[str, Any]


def empty_row(step: str) -> Row:
    """A row of a step that has seen nothing: as in `corpus.json`, key `funnel`."""
    return {
        "step": step,
        "documents": 0,
        "bytes": 0,
        "validation_documents": 0,
        "removed": {"documents": 0, "bytes": 0},
        "changed": 0,
        "reasons": {},
        "counts": {},
        "facts": {},
        "samples": [],
    }


def add_sample(row: Row, id_: str, reason: str, before: str, after: str | None) -> None:
    """Keep a sample (excerpts around the first difference) where the row has room for it."""
    if not room(row, reason):
        return
    start = 0
    if after is not None:
        start = max(0, _first_difference(before, after) - _BEFORE_CHARS)
    row["samples"].append(
        {
            "id": id_,
            "reason": reason,
            "before": before[start : start + SAMPLE_CHARS],
            "after": None if after is None else after[start : start + SAMPLE_CHARS],
        }
    )


def room(row: Row, reason: str) -> bool:
    """Whether a row takes another sample of a reason."""
    samples = row["samples"]
    return len(samples) < SAMPLES_PER_STEP and sum(s["reason"] == reason for s in samples) < SAMPLES_PER_REASON


def _first_difference(one: str, other: str) -> int:
    """The first place where two texts differ, by halving: comparing stretches is much faster than characters."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def add_rows(total: Row, part: Row) -> None:
    """Add a slice's row to the step's."""
    for name in ("documents", "bytes", "validation_documents", "changed"):
        total[name] += part[name]
    for name in ("documents", "bytes"):
        total["removed"][name] += part["removed"][name]
    for name in ("reasons", "counts"):
        for key, count in part[name].items():
            total[name][key] = total[name].get(key, 0) + count
    total["facts"] = total["facts"] or part["facts"]
    for sample in part["samples"]:
        if room(total, sample["reason"]):
            total["samples"].append(sample)


def step_names(kinds: Iterable[str]) -> list[str]:
    """Names of the steps for people, a kind that comes again with its number: `pii`, `pii (2)`."""
    seen: dict[str, int] = {}
    names = []
    for kind in kinds:
        seen[kind] = seen.get(kind, 0) + 1
        names.append(kind if seen[kind] == 1 else f"{kind} ({seen[kind]})")
    return names


def as_lines(rows: Sequence[Row]) -> list[str]:
    """The funnel as lines of text, for the stage's log."""
    width = max(len(row["step"]) for row in rows)
    lines = []
    for row in rows:
        line = f"{row['step']:<{width}}  {row['documents']:>12,} documents  {row['bytes'] / 1e6:>12,.3f} MB"
        if removed := row["removed"]["documents"]:
            line += f"  -{removed:,}"
        if row["changed"]:
            line += f"  {row['changed']:,} changed"
        if row["reasons"]:
            line += f"  ({counted(row['reasons'])})"
        lines.append(line)
    return lines


def counted(reasons: dict[str, int], most: int = 5) -> str:
    """Reasons by how many documents they hit: `812 fewer than 50 words, 3 …`."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{count:,} {reason}" for reason, count in ordered[:most])
    return shown + (", …" if len(ordered) > most else "")
