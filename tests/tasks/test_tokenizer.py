"""Tokenizers: the same bytes in every process, special tokens, figures, and texts that look like special tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer

from cluster.errors import BadData
from tasks.ingest import Ingest
from tasks.tokenizer import TrainTokenizer
from tests.tasks.stage import FolderContext, digests, run_stage

CORPUS = Ingest(source="corpus.txt")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Docstrings of a few standard modules: real words, some accents, the names of special tokens."""
    import argparse
    import decimal
    import statistics
    import typing

    docs = [
        doc
        for module in (argparse, decimal, statistics, typing, json, subprocess)
        for value in vars(module).values()
        for each in (value, *(vars(value).values() if isinstance(value, type) else ()))
        if isinstance(doc := getattr(each, "__doc__", None), str) and len(doc) > 80
    ]
    docs.append("Café naïve Zürich façade. A [MASK] or <mask> or [SEP] in a text is text.")
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in docs))
    task = Ingest(source=str(folder / "corpus.jsonl"), validation_share=0.1)
    return run_stage(task, folder / "out").out


def train(corpus: Path, out: Path, **fields: object) -> tuple[Tokenizer, dict, FolderContext]:
    context = run_stage(TrainTokenizer(corpus=CORPUS, **fields), out, corpus=corpus)
    info = json.loads((out / "tokenizer-info.json").read_text())
    return Tokenizer.from_file(str(out / "tokenizer.json")), info, context


def test_wordpiece(corpus: Path, tmp_path: Path) -> None:
    tokenizer, info, context = train(corpus, tmp_path / "t", vocab_size=1000)
    assert info["vocab_size"] == tokenizer.get_vocab_size() == 1000 and not context.logged
    assert info["special_tokens"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert info["kind"] == "wordpiece"
    assert 1 < info["fertility_tokens_per_word"] < 4 and 2 < info["bytes_per_token"] < 6
    assert 0 <= info["unk_rate"] < 0.01 and 0.3 < info["whole_word_share"] < 1
    encoded = tokenizer.encode("The value, returned", "of it")
    assert encoded.tokens[0] == "[CLS]" and encoded.tokens[-1] == "[SEP]" and encoded.type_ids[-1] == 1
    assert tokenizer.decode(encoded.ids) == "the value, returned of it"
    assert tokenizer.encode("[MASK]", add_special_tokens=False).ids == [4]
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    assert [i for _, i in vocabulary] == list(range(1000))
    added = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    assert added == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "continuations are ordinary tokens"


def test_case_can_be_kept(corpus: Path, tmp_path: Path) -> None:
    tokenizer, _, _ = train(corpus, tmp_path / "t", vocab_size=1000, lowercase=False)
    assert tokenizer.decode(tokenizer.encode("The Return").ids) == "The Return"


def test_byte_bpe_is_lossless(corpus: Path, tmp_path: Path) -> None:
    tokenizer, info, _ = train(corpus, tmp_path / "t", kind="bpe", vocab_size=600)
    assert info["special_tokens"] == {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}
    assert info["unk_rate"] == 0 and info["lowercase"] is False
    for text in ("A value, of  two spaces\n", "Zürich 東京 🙂\0"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_same_bytes_in_every_process_and_on_any_number_of_threads(corpus: Path, tmp_path: Path, kind: str) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.tasks.test_tokenizer import train\n"
        f"train(Path(sys.argv[1]), Path(sys.argv[2]), kind={kind!r}, vocab_size=700)"
    )
    found = []
    for threads in ("1", "2", "4"):
        out = tmp_path / threads
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        subprocess.run([sys.executable, "-c", code, str(corpus), str(out)], check=True, env=environment)
        found.append(digests(out))
    assert found[0] == found[1] == found[2]


def test_a_sample_is_drawn_by_hash(corpus: Path, tmp_path: Path) -> None:
    found = [digests(train(corpus, tmp_path / str(i), vocab_size=500, sample_bytes=20_000)[2].out) for i in range(2)]
    assert found[0] == found[1]


def test_more_vocabulary_than_the_text_can_give(corpus: Path, tmp_path: Path) -> None:
    tokenizer, info, context = train(corpus, tmp_path / "t", vocab_size=100_000)
    assert info["vocab_size"] == tokenizer.get_vocab_size() < 100_000 == info["requested_vocab_size"]
    assert any("not the 100,000 of vocab_size" in line for line in context.logged)


def test_bad_settings(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="at least 261"):
        train(corpus, tmp_path / "t", kind="bpe", vocab_size=100)
    with pytest.raises(ValidationError, match="did you mean 'wordpiece'"):
        TrainTokenizer(corpus=CORPUS, kind="wordpeice")
