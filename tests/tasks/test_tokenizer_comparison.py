"""CompareTokenizers, and the figures that it and the training write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from cluster.errors import BadConfig
from tasks.ingest import Ingest
from tasks.tokenizer import TrainTokenizer
from tasks.tokenizer_comparison import CompareTokenizers
from tasks.tokenizer_figures import _whole, examples, measure
from tests.tasks.stage import digests, run_stage

CORPUS = Ingest(source="corpus.txt")
KINDS = ("wordpiece", "unigram", "characters", "bytes")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import argparse
    import statistics
    import typing

    folder = tmp_path_factory.mktemp("corpus")
    docs = [v.__doc__ for m in (argparse, statistics, typing) for v in vars(m).values() if isinstance(v.__doc__, str)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in docs if len(d) > 60))
    return run_stage(Ingest(source=str(folder / "corpus.jsonl"), validation_share=0.2), folder / "out").out


def test_kinds_and_sizes_side_by_side(corpus: Path, tmp_path: Path) -> None:
    task = CompareTokenizers(corpus=CORPUS, kinds=KINDS, vocab_sizes=(800, 400))
    context = run_stage(task, tmp_path / "out", corpus=corpus)
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    names = [(row["kind"], row["asked"]) for row in found["rows"]]
    learnt = [(kind, size) for kind in KINDS[:2] for size in (400, 800)]
    # a text has so many characters and no more: asked for 800, there is nothing new
    assert names == [*learnt, ("characters", 400), ("bytes", 800)]
    rows = {(row["kind"], row["asked"]): row for row in found["rows"]}
    assert rows["bytes", 800]["vocab_size"] == 262 and rows["bytes", 800]["bytes_per_token"] == 1.0
    assert rows["unigram", 800]["bytes_per_token"] > rows["unigram", 400]["bytes_per_token"] > 1
    assert rows["wordpiece", 800]["fertility"] < rows["wordpiece", 400]["fertility"]
    assert rows["wordpiece", 800]["whole_words"] > rows["wordpiece", 400]["whole_words"]
    assert rows["characters", 400]["vocab_size"] < 400 and 0 < rows["characters", 400]["unknown_rate"] < 0.001
    assert [(e["class"], e["word"]) for e in found["examples"]][1:3] == [("common", "learn"), ("variant", "taaaaasty")]
    hat = found["examples"][0]["pieces"]
    assert set(hat) == {f"{kind}-{size}" for kind, size in learnt} | {"characters-400", "bytes-262"}
    assert hat["bytes-262"] == ["Ġ", "h", "a", "t"] and hat["characters-400"] == ["▁", "h", "a", "t"]
    assert context.metrics["tokenizers"] == 6
    # a row is what training the tokenizer by itself says
    alone = TrainTokenizer(corpus=CORPUS, kind="unigram", vocab_size=400, sentinels=0, sample_bytes=task.sample_bytes)
    own = run_stage(alone, tmp_path / "alone", corpus=corpus).metrics
    assert own["fertility_tokens_per_word"] == rows["unigram", 400]["fertility"]
    # a run that was cut off goes on, with the same bytes
    again = run_stage(task, tmp_path / "again", corpus=corpus)
    done = sorted((again.scratch / "train").glob("*.arrow"))
    for path in done[3:]:
        path.unlink()
    (again.out / "comparison.json").unlink()
    kept = [path.stat().st_mtime_ns for path in done[:3]]
    task.run(again)
    assert digests(again.out) == digests(context.out)
    assert [path.stat().st_mtime_ns for path in done[:3]] == kept


def test_bad_settings() -> None:
    with pytest.raises(BadConfig, match="vocab_size is 200, a bpe tokenizer has at least 261"):
        CompareTokenizers(corpus=CORPUS, kinds=("bpe",), vocab_sizes=(1000, 200))
    with pytest.raises(BadConfig, match="kinds: bpe stands there twice"):
        CompareTokenizers(corpus=CORPUS, kinds=("bpe", "bpe"))
    with pytest.raises(Exception, match="did you mean 'unigram'"):
        CompareTokenizers(corpus=CORPUS, kinds=("unigrams",))


def test_figures_by_hand(tmp_path: Path) -> None:
    """Four words of letters, of which `cat` and `the` are one token; `zebra` is one token, too, but the unknown one."""
    text = "the cats, cat zebra"
    (tmp_path / "corpus.txt").write_text("\n".join([text] * 3))
    task = Ingest(source=str(tmp_path / "corpus.txt"), documents="line", validation_share=0, duplicates="keep")
    folder = run_stage(task, tmp_path / "corpus").out
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "cat": 2, "##s": 3, ",": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found = measure(tokenizer, folder, {"unk": 0})
    assert found == {
        "fertility_tokens_per_word": 1.5,  # the cat ##s , cat [UNK]: six for the, cats,, cat, zebra
        "bytes_per_token": round(len(text) / 6, 4),
        "unk_rate": round(1 / 6, 6),
        "whole_word_share": 0.5,
        "measured_on": "train",
        "measured_bytes": 3 * len(text),
    }
    assert examples(tokenizer)[0] == {"class": "common", "word": "hat", "pieces": ["[UNK]"]}


def test_whole_words_of_tokens_that_overlap() -> None:
    """Bytes of one character have the same place; a token may reach over a space; empty ones count for nothing."""
    spans = np.array([[0, 2], [3, 4], [5, 8]])
    cases = {
        ((0, 2), (2, 4), (4, 8)): 3,  # "ab", " c", " def"
        ((0, 4), (4, 8)): 3,  # "ab c", " def": two words in one token
        ((0, 1), (1, 2), (3, 4), (3, 4), (5, 5), (5, 8)): 1,  # a, b, two bytes of c, nothing, def
        ((0, 2),): 1,
    }
    for offsets, whole in cases.items():
        assert _whole(spans, np.array(offsets), np.zeros(len(offsets), dtype=bool)) == whole, offsets
    assert _whole(spans, np.array([[0, 2], [3, 4], [5, 8]]), np.array([False, True, False])) == 2
    assert _whole(spans, np.empty((0, 2), dtype=int), np.empty(0, dtype=bool)) == 0
