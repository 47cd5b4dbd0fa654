"""A look inside an artifact for `triptych show`: documents, tokens, examples, rows, predictions.

A view is a list of what rich prints: markup, texts and tables. What comes from data is escaped, and control characters
are shown as such, so that a text cannot take hold of the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLES = 3
WIDTH = 600


def preview(kind: str, folder: Path, width: int = 120, ids: bool = False) -> list[Any]:
    """What rich prints to show what an artifact of `kind` holds; empty for kinds without a view.

    Args:
        width: of the terminal, in columns. ids: show the tokens' numbers in examples.
    """
    from tasks.preview_corpus import corpus

    views: dict[str, Callable[[Path], list[Any]]] = {
        "corpus": corpus,
        "tokenizer": _tokenizer,
        "tokenizer-comparison": _comparison,
        "examples": lambda folder: _examples(folder, width, ids),
        "dataset": _dataset,
        "score": _score,
        "report": _report,
        "baseline": _baseline,
    }
    return views[kind](folder) if kind in views else []


def _escape(text: str) -> str:
    from rich.markup import escape

    from tasks.preview_examples import printable

    return escape(printable(text))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return _escape(text if len(text) <= WIDTH else text[:WIDTH] + " …")


def _rows(path: Path, count: int) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(count):
        return batch.to_pylist()
    return []


def _tokenizer(folder: Path) -> list[Any]:
    """A common word, a variant of one, a misspelling and a novel word in pieces."""
    from tasks.preview_corpus import table

    info = json.loads((folder / "tokenizer-info.json").read_text(encoding="utf-8"))
    found = table("word", "class", "pieces", "tokens")
    found.columns[1].justify = found.columns[2].justify = "left"
    for example in info.get("examples", []):
        pieces = [_escape(piece) for piece in example["pieces"]]
        found.add_row(
            _escape(example["word"]), f"[dim]{example['class']}[/]", "[dim]·[/]".join(pieces), str(len(pieces))
        )
    special = ", ".join(f"{role} {number}" for role, number in info["special_tokens"].items())
    return [f"  {info['vocab_size']:,} tokens; {_escape(special)}", *([found] if found.rows else [])]


_FIGURES = {
    "bytes_per_token": "bytes per token",
    "fertility": "tokens per word",
    "whole_words": "whole words",
    "unknown_rate": "unknown",
}


def _comparison(folder: Path) -> list[Any]:
    """The tokenizers side by side, and how each cuts the example words."""
    from tasks.preview_corpus import table

    facts = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    figures = [name for name in _FIGURES if any(row.get(name) is not None for row in facts["rows"])]
    rows = table("tokenizer", "tokens", "asked for", *(_FIGURES[name] for name in figures))
    for row in facts["rows"]:
        values = [row.get(name) for name in figures]
        shown = [
            "" if value is None else f"{value:.2%}" if name in ("whole_words", "unknown_rate") else f"{value:.3f}"
            for name, value in zip(figures, values, strict=True)
        ]
        asked = row.get("asked")
        rows.add_row(_escape(row["kind"]), f"{row['vocab_size']:,}", f"{asked:,}" if asked else "", *shown)
    if not facts.get("examples"):
        return [rows]
    words = table("tokenizer", *(f"{_escape(example['word'])} ({example['class']})" for example in facts["examples"]))
    for name in dict.fromkeys(name for example in facts["examples"] for name in example["pieces"]):
        cuts = [example["pieces"].get(name, []) for example in facts["examples"]]
        words.add_row(_escape(name), *("[dim]·[/]".join(map(_escape, cut)) for cut in cuts))
    for column in words.columns:
        column.justify = "left"
    return [rows, "", words]


def _examples(folder: Path, width: int, ids: bool) -> list[Any]:
    """Examples as the model sees them, in colour; see `tasks.preview_examples`."""
    import numpy as np

    from tasks.example_reader import ExampleReader
    from tasks.preview_examples import heading, origin, shown

    reader = ExampleReader(folder, "train", 0, "encoder-decoder")
    near = reader.file.index.rows_of(0)  # of the first shard: with a remote store no other is fetched
    rows = [number * near // min(EXAMPLES, near) for number in range(min(EXAMPLES, near))]
    batch = reader.batch(np.array([[0, row] for row in rows]))
    lines: list[Any] = heading(reader)
    for number, row in enumerate(rows):
        lines += ["", origin(reader, row), *shown(reader, batch, number, width, ids)]
    return lines


def _dataset(folder: Path) -> list[str]:
    facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    lines = [f"  {_escape(facts['description'])}"]
    for row in _rows(folder / "train.parquet", 4):
        label = row["label"]
        if row["answers"]:
            shown = " | ".join(row["answers"])
        elif facts["labels"] and label is not None:
            shown = facts["labels"][int(label)]
        else:
            shown = str(label)
        second = f" ‖ {_short(row['text_b'])}" if row["text_b"] else ""
        lines.append(f"  [green]{_escape(shown)}[/]  {_short(row['text_a'])}{second}")
    return lines


def _score(folder: Path) -> list[str]:
    lines = []
    for row in _rows(folder / "predictions.parquet", 5):
        lines.append("  " + _escape(json.dumps(row, ensure_ascii=False)[:WIDTH]))
    return lines


def _report(folder: Path) -> list[str]:
    return [_escape(line) for line in (folder / "results.md").read_text(encoding="utf-8").splitlines()]


def _baseline(folder: Path) -> list[str]:
    facts = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))
    if facts["ngram_nats"] is None:
        return [f"  counted on {facts['tokens']:,} training tokens; no example is held out to measure it on"]
    where = f"{facts['positions']:,} validation tokens ({facts['measured_at']})"
    return [
        f"  {facts['unigram_nats']:.3f} nats a token for unigrams",
        f"  {facts['ngram_nats']:.3f} nats a token for {facts['order']}-grams, Kneser-Ney",
        f"  counted on {facts['tokens']:,} training tokens, measured on {where}",
    ]
