"""A look inside a corpus: its documents, what cleaning took from it, and what it is mixed of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from tasks.preview_examples import printable

DOCUMENTS = 2
WIDTH = 600
_REASONS = 3


def table(*columns: str) -> Table:
    """An empty table whose first column is text and whose others are numbers."""
    found = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, name in enumerate(columns):
        found.add_column(name, justify="right" if number else "left", overflow="fold")
    return found


def short(text: str, limit: int = WIDTH) -> str:
    """Text on one line, cut where it is long."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= limit else text[:limit] + " …"


def corpus(folder: Path) -> list[Any]:
    """Renderables for a corpus artifact: documents of each split, `funnel` and `components` where it has them."""
    from tasks.corpus_reader import corpus_facts, read_batches

    facts = corpus_facts(folder)
    lines: list[Any] = []
    for split, figures in facts.get("splits", {}).items():
        sizes = f"{figures.get('documents', 0):,} documents, {figures.get('bytes', 0) / 1e6:,.1f} MB"
        lines.append(Text.assemble((split, "bold"), f"  {sizes}"))
        batch = next(read_batches(folder, split, ("id", "source", "text"), DOCUMENTS), None)
        for row in batch.to_pylist() if batch is not None else []:
            lines.append(
                Text.assemble("  ", (printable(row["id"]), "cyan"), (f"  {printable(row['source'] or '')}", "dim"))
            )
            lines.append(Text(f"    {short(row['text'])}"))
    if facts.get("components"):
        lines += [Text("mixture", "bold"), _components(facts["components"])]
    if facts.get("funnel"):
        lines += [Text("cleaning", "bold"), _funnel(facts["funnel"]), *_samples(facts["funnel"])]
    return lines


def _components(rows: Sequence[Mapping[str, Any]]) -> Table:
    found = table("component", "category", "documents", "MB", "share", "epochs", "effective MB")
    found.columns[1].justify = "left"
    for row in rows:
        found.add_row(
            printable(row["name"]),
            printable(row.get("category") or ""),
            f"{row['documents']:,}",
            f"{row['bytes'] / 1e6:,.2f}",
            f"{row['weight']:.1%}",
            f"{row['epochs']:.2f}",
            f"{row['effective_bytes'] / 1e6:,.2f}",
        )
    return found


def _funnel(rows: Sequence[Mapping[str, Any]]) -> Table:
    found = table("step", "documents", "MB", "removed", "changed", "why")
    found.columns[5].justify = "left"
    for row in rows:
        reasons = sorted(row.get("reasons", {}).items(), key=lambda item: (-item[1], item[0]))
        removed = row.get("removed", {}).get("documents", 0)
        found.add_row(
            row["step"],
            f"{row['documents']:,}",
            f"{row['bytes'] / 1e6:,.2f}",
            f"{removed:,}" if removed else "",
            f"{row['changed']:,}" if row.get("changed") else "",
            ", ".join(f"{printable(name)} {count:,}" for name, count in reasons[:_REASONS])
            + (f" and {len(reasons) - _REASONS} more" if len(reasons) > _REASONS else ""),
        )
    return found


def _samples(rows: Sequence[Mapping[str, Any]]) -> list[Text]:
    """One sample of each step: what was taken out in red, what a text became in green."""
    lines = []
    for row in rows:
        for sample in row.get("samples", [])[:1]:
            head = f"  {row['step']}, {sample['reason']}: "
            lines.append(Text.assemble((head, "dim"), (printable(sample["id"]), "cyan")))
            lines.append(Text(f"    {short(sample['before'], 200)}", "red"))
            if sample.get("after") is not None:
                lines.append(Text(f"    {short(sample['after'], 200)}", "green"))
    return lines
