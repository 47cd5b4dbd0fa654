"""What `triptych show` prints of corpora, tokenizers, examples of every objective, and baselines: text as text, at any
width."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from tasks.examples import MakeExamples
from tasks.ingest import Ingest
from tasks.ngram import NGramBaseline
from tasks.preview import preview
from tasks.preview_examples import printable
from tasks.tokenizer import TrainTokenizer
from tests.tasks.stage import run_stage
from tests.tasks.test_example_shards import write_corpus

CORPUS = Ingest(source="corpus.jsonl")
TEXT = "A river [bold] runs by Rome in 1999. The [/] model of {} reads it twice. And the gradient goes down again. "


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    texts = [TEXT.format(n) * (1 + n % 4) for n in range(80)]
    made = {"corpus": write_corpus(folder / "c", {"train": texts[8:], "validation": texts[:8]})}
    for kind in ("wordpiece", "bpe", "gpt2", "unigram"):
        task = TrainTokenizer(corpus=CORPUS, kind=kind, vocab_size=500)
        made[kind] = run_stage(task, folder / kind, corpus=made["corpus"]).out
    return made


def printed(lines: list[Any], width: int = 120, colours: bool = False) -> str:
    """What a terminal of that width, or a pipe, gets."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colours, color_system="standard" if colours else None)
    if colours:
        console.no_color = False
    for line in lines:
        console.print(line, highlight=False)
    return file.getvalue()


CODES = {"red": "31", "green": "32", "yellow": "33", "magenta": "35", "cyan": "36", "dim": "2"}


def examples(inputs: dict[str, Path], out: Path, kind: str, **fields: Any) -> tuple[MakeExamples, Path]:
    tokenizer = TrainTokenizer(corpus=CORPUS, kind=kind)
    task = MakeExamples(corpus=CORPUS, tokenizer=tokenizer, **{"length_tokens": 48, **fields})
    return task, run_stage(task, out, corpus=inputs["corpus"], tokenizer=inputs[kind]).out


@pytest.mark.parametrize(
    ("objective", "kind", "colours"),
    [
        ("mlm", "wordpiece", {"red", "dim"}),
        ({"kind": "mlm", "unit": "span", "span_boundary": True}, "bpe", {"red", "dim"}),
        ({"kind": "mlm", "pairs": "nsp"}, "wordpiece", {"red", "cyan"}),
        ("rtd", "wordpiece", {"red", "green"}),
        ("permutation", "wordpiece", {"yellow"}),
        ("causal", "gpt2", {"magenta"}),
        ("prefix", "gpt2", {"green"}),
        ("span-corruption", "unigram", {"red", "green"}),
        ("iid-denoising", "unigram", {"green"}),
        ("infilling", "bpe", {"red", "green"}),
        ("mass", "bpe", {"red", "green"}),
        ("salient-spans", "unigram", {"red", "green"}),
        ("skip-gram", "wordpiece", {"yellow"}),
        ("cbow", "gpt2", {"yellow"}),
        ("glove", "wordpiece", {"dim"}),
        ("bidirectional", "gpt2", {"magenta"}),
    ],
)
def test_examples(inputs: dict[str, Path], tmp_path: Path, objective: Any, kind: str, colours: set[str]) -> None:
    _, folder = examples(inputs, tmp_path / "e", kind, objective=objective)
    lines = preview("examples", folder)
    found = {
        code for codes in re.findall(r"\x1b\[([\d;]+)m", printed(lines, colours=True)) for code in codes.split(";")
    }
    assert {CODES[colour] for colour in colours} <= found
    plain = printed(lines)
    assert len(plain) > 300 and "[PAD]" not in plain and "<pad>" not in plain and "<|pad|>" not in plain
    assert "\x1b" not in plain and plain.startswith(objective if isinstance(objective, str) else objective["kind"])
    for width in (20, 60):
        narrow = printed(preview("examples", folder, width=width), width).split("\n")
        assert max(map(cell_len, narrow)) <= width


@pytest.mark.parametrize("masking", ["static", "dynamic"])
def test_masked_tokens_show_what_they_were_below(inputs: dict[str, Path], tmp_path: Path, masking: str) -> None:
    _, folder = examples(inputs, tmp_path / "e", "wordpiece", masking=masking)
    lines = printed(preview("examples", folder)).split("\n")
    at = next(number for number, line in enumerate(lines) if "[MASK]" in line)
    place = lines[at].index("[MASK]")
    assert lines[at + 1][place] != " " and not lines[at + 1][place - 1].strip()


def test_documents_and_their_ends_show(inputs: dict[str, Path], tmp_path: Path) -> None:
    _, folder = examples(inputs, tmp_path / "e", "wordpiece", length_tokens=128)
    text = printed(preview("examples", folder))
    assert "row 0  from train-0, train-1" in text and "[SEP] │ " in text
    apart = {"kind": "mlm", "documents_apart": True}
    _, folder = examples(inputs, tmp_path / "a", "wordpiece", length_tokens=128, objective=apart)
    assert "[SEP] ┃ " in printed(preview("examples", folder))


def test_ids_on_request(inputs: dict[str, Path], tmp_path: Path) -> None:
    _, folder = examples(inputs, tmp_path / "e", "wordpiece", objective={"kind": "mlm", "mask_rate": 0.01})
    lines = printed(preview("examples", folder, ids=True)).split("\n")
    at = next(number for number, line in enumerate(lines) if "[CLS]" in line)
    numbers = next(line for line in lines[at + 1 :] if line.split() and line.split()[0] == "2")
    assert len(numbers.split()) == len(lines[at].split())


def test_pairs_show_their_label(inputs: dict[str, Path], tmp_path: Path) -> None:
    _, folder = examples(inputs, tmp_path / "e", "wordpiece", objective={"kind": "mlm", "pairs": "sop"})
    assert "pair label" in printed(preview("examples", folder))


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\u200bc\n") == "a\\x1b[31mb\ufffdc\\x0a"
    assert printable("ça va ▁ Ġ 漢") == "ça va ▁ Ġ 漢"


def test_corpus(inputs: dict[str, Path], tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "c", {"train": ["A [bold] text\x1b[2J."] * 5, "validation": ["another"]})
    text = printed(preview("corpus", folder))
    assert (
        "train  5 documents" in text
        and "A [bold] text\\x1b[2J." in text
        and "train-1" in text
        and "train-2" not in text
    )
    facts = json.loads((folder / "corpus.json").read_text())
    samples = [{"id": "x[7]", "reason": "short", "before": "a [b]", "after": None}]
    facts["funnel"] = [
        {"step": "input", "documents": 1000, "bytes": 5_000_000, "removed": {"documents": 0, "bytes": 0}},
        {
            "step": "length",
            "documents": 900,
            "bytes": 4_000_000,
            "removed": {"documents": 100, "bytes": 1_000_000},
            "changed": 3,
            "reasons": {"short": 60, "long": 30, "odd": 9, "other": 1},
            "samples": samples,
        },
    ]
    facts["components"] = [
        {
            "name": "books",
            "category": "prose",
            "documents": 10,
            "bytes": 2_000_000,
            "tokens": None,
            "weight": 0.25,
            "epochs": 1.5,
            "effective_bytes": 3_000_000,
            "effective_tokens": None,
        }
    ]
    (folder / "corpus.json").write_text(json.dumps(facts))
    text = printed(preview("corpus", folder))
    assert re.search(r"length +900 +4.00 +100 +3 +short 60, long 30, odd 9 and 1 more", text), text
    assert re.search(r"books +prose +10 +2.00 +25.0% +1.50 +3.00", text) and "length, short: x[7]" in text
    assert max(map(cell_len, printed(preview("corpus", folder), 40).split("\n"))) <= 40


def test_a_comparison_of_tokenizers(tmp_path: Path) -> None:
    rows = [
        {"kind": "bpe", "vocab_size": 300, "asked": 300, "bytes_per_token": 2.5, "fertility": 2.1, "unknown_rate": 0.0},
        {"kind": "wordpiece", "vocab_size": 280, "asked": 300, "bytes_per_token": 2.25, "fertility": 2.4},
    ]
    examples = [{"class": "novel", "word": "Transformerify", "pieces": {"bpe-300": ["Trans", "[form]"]}}]
    (tmp_path / "comparison.json").write_text(json.dumps({"rows": rows, "examples": examples}))
    text = printed(preview("tokenizer-comparison", tmp_path))
    assert re.search(r"bpe +300 +300 +2.500 +2.100 +0.00%", text) and re.search(r"bpe-300 +Trans·\[form\]", text)
    assert "Transformerify (novel)" in text


def test_baseline(inputs: dict[str, Path], tmp_path: Path) -> None:
    task, folder = examples(inputs, tmp_path / "e", "wordpiece")
    out = run_stage(NGramBaseline(examples=task), tmp_path / "b", examples=folder).out
    facts = json.loads((out / "baseline.json").read_text())
    assert f"{facts['ngram_nats']:.3f} nats a token for 3-grams, Kneser-Ney" in printed(preview("baseline", out))
    (out / "baseline.json").write_text(json.dumps(facts | {"ngram_nats": None, "unigram_nats": None}))
    assert "no example is held out to measure it on" in printed(preview("baseline", out))


@pytest.mark.parametrize("kind", ["wordpiece", "gpt2", "unigram"])
def test_tokenizer(inputs: dict[str, Path], kind: str) -> None:
    text = printed(preview("tokenizer", inputs[kind]))
    assert re.search(r"\nlaern +misspelt +\S+·\S+ +\d", text) and "pad" in text.split("\n")[0]


def test_a_kind_without_a_view() -> None:
    assert preview("something", Path()) == []
