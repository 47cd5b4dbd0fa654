"""Corpus artifacts to clean: real folders, written as stages write them, of texts that a test makes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.corpus_reader import read_batches
from tasks.corpus_writer import Shards

_WORDS_TEXT = """
the of and to that have be with river mountain city water people early school music found made long house name work
state year part small large between under over against during world family history number early later order
"""
_WORDS = _WORDS_TEXT.split()


def prose(seed: int, sentences: int = 12) -> str:
    """A text that every rule on quality keeps: sentences of different words, three to a line."""
    rng = random.Random(seed)
    made = []
    for _ in range(sentences):
        words = rng.choices(_WORDS, k=rng.randint(9, 16))
        words[rng.randrange(len(words))] = f"{rng.choice('bdfklmnprst')}{rng.choice('aeiou')}{rng.randrange(10**6):x}n"
        made.append(" ".join(words).capitalize() + ".")
    return "\n".join(" ".join(made[i : i + 3]) for i in range(0, sentences, 3))


def write_corpus(folder: Path, train: Sequence[str], validation: Sequence[str] = ()) -> Path:
    """A corpus of these texts, with ids t0, t1, … and v0, v1, …"""
    folder.mkdir(parents=True)
    shards = Shards(folder)
    rows = [(f"t{i}", text, False) for i, text in enumerate(train)]
    rows += [(f"v{i}", text, True) for i, text in enumerate(validation)]
    shards.write(
        pa.table(
            {
                "id": [row[0] for row in rows],
                "text": [row[1] for row in rows],
                "source": ["made.jsonl"] * len(rows),
                "meta": [json.dumps({"n": i}) for i in range(len(rows))],
                "validation": [row[2] for row in rows],
            }
        )
    )
    shards.close()
    facts = {
        "documents": len(rows),
        "bytes": sum(len(row[1].encode()) for row in rows),
        "splits": shards.splits,
        "sources": {"made.jsonl": {"documents": len(rows)}},
        "skipped": {"empty": 2},
        "repaired": {},
        "duplicates": 1,
    }
    (folder / "corpus.json").write_text(json.dumps(facts))
    return folder


def documents(folder: Path, splits: Iterable[str] = ("train", "validation")) -> list[dict[str, Any]]:
    """id, text, source, meta, split of every document, in order."""
    return [
        {**row, "split": split}
        for split in splits
        for batch in read_batches(folder, split, ("id", "text", "source", "meta"))
        for row in batch.to_pylist()
    ]


def facts(folder: Path) -> dict[str, Any]:
    """`corpus.json`."""
    return dict(json.loads((folder / "corpus.json").read_text()))
