"""A look inside an artifact for `triptych show`: documents, tokens, masked examples, rows, predictions."""

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
    """Masked positions in colour: [MASK] red, another token yellow, kept green; the label behind it."""
    from tokenizers import Tokenizer

    from tasks.example_reader import ExampleReader

    reader = ExampleReader(folder, "train", 0)
    words = [_escape(word) for word in _vocabulary(reader, Tokenizer, folder)]
    mask = reader.info["special_tokens"]["mask"]
    pad = reader.info["special_tokens"]["pad"]
    batch = reader.batch(reader.indices(0, min(EXAMPLES, len(reader))))
    lines = []
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        shown = []
        for token, label in zip(ids, labels, strict=True):
            if token == pad:
                continue
            if label < 0:
                shown.append(words[token])
                continue
            colour = "red" if token == mask else "green" if token == label else "yellow"
            shown.append(f"[{colour}]{words[token]}[/][dim]←{words[label]}[/]")
        lines += ["  " + " ".join(shown), ""]
    return lines


def _vocabulary(reader: Any, tokenizer: Any, folder: Path) -> list[str]:
    vocabulary = reader.vocabulary
    tokens = vocabulary() if callable(vocabulary) else vocabulary
    if hasattr(tokens, "column"):
        tokens = tokens.column("token").to_pylist()
    elif hasattr(tokens, "tokens"):
        tokens = tokens.tokens
    return [str(token) for token in tokens]


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
