"""A look inside an artifact for `triptych show`: documents, tokens, examples, rows, predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCUMENTS = 2
EXAMPLES = 3
WIDTH = 600


def preview(kind: str, folder: Path) -> list[str]:
    """Lines of rich markup that show what an artifact of `kind` holds; empty for kinds without a view."""
    views = {
        "corpus": _corpus,
        "tokenizer": _tokenizer,
        "examples": _examples,
        "dataset": _dataset,
        "score": _score,
        "report": _report,
        "baseline": _baseline,
    }
    return views[kind](folder) if kind in views else []


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return _escape(text if len(text) <= WIDTH else text[:WIDTH] + " …")


def _rows(path: Path, count: int) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(count):
        return batch.to_pylist()
    return []


def _corpus(folder: Path) -> list[str]:
    lines = []
    for path in sorted(folder.glob("*-00000.parquet")):
        for row in _rows(path, DOCUMENTS):
            lines += [f"[bold]{_escape(row['id'])}[/]  [dim]{path.name}[/]", f"  {_short(row['text'])}"]
    return lines


def _tokenizer(folder: Path) -> list[str]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    lines = []
    # a common word, a variant of it, a misspelling, a novel word
    for word in ("hat", "tasty", "laern", "transformerify"):
        tokens = tokenizer.encode(word, add_special_tokens=False).tokens
        lines.append(f"  {word:<16}{_escape(' '.join(tokens))}")
    return lines


def _examples(folder: Path) -> list[str]:
    """Examples as the model sees them, in colour; see `tasks.preview_examples`."""
    from tasks.example_reader import ExampleReader
    from tasks.preview_examples import shown

    reader = ExampleReader(folder, "train", 0, "encoder-decoder")
    batch = reader.batch(reader.indices(0, min(EXAMPLES, len(reader))))
    return [line for row in range(len(batch["input_ids"])) for line in (*shown(reader, batch, row), "")]


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
    where = f"{facts['positions']:,} validation tokens ({facts['measured_at']})"
    return [
        f"  {facts['unigram_nats']:.3f} nats a token for unigrams",
        f"  {facts['ngram_nats']:.3f} nats a token for {facts['order']}-grams, Kneser-Ney",
        f"  counted on {facts['tokens']:,} training tokens, measured on {where}",
    ]
