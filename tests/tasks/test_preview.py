"""What `triptych show` prints of tokenizers, examples of every objective, and baselines: valid markup, text as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from tasks.examples import MakeExamples
from tasks.ingest import Ingest
from tasks.ngram import NGramBaseline
from tasks.preview import preview
from tasks.tokenizer import TrainTokenizer
from tests.tasks.stage import run_stage

CORPUS = Ingest(source="corpus.jsonl")
TEXT = "A river [bold] runs by Rome in 1999. The [/] model of {} reads it twice. And the gradient goes down again. "


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    texts = [TEXT.format(n) * (1 + n % 4) for n in range(80)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    made = {"corpus": run_stage(Ingest(source=str(folder / "corpus.jsonl"), validation_share=0.1), folder / "c").out}
    for kind in ("wordpiece", "bpe", "gpt2", "unigram"):
        task = TrainTokenizer(corpus=CORPUS, kind=kind, vocab_size=500)
        made[kind] = run_stage(task, folder / kind, corpus=made["corpus"]).out
    return made


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
        ("causal", "gpt2", {"bold magenta"}),
        ("prefix", "gpt2", {"green"}),
        ("span-corruption", "unigram", {"red", "green"}),
        ("iid-denoising", "unigram", {"green"}),
        ("infilling", "bpe", {"red", "green"}),
        ("mass", "bpe", {"red", "green"}),
        ("salient-spans", "unigram", {"red", "green"}),
        ("skip-gram", "wordpiece", {"yellow"}),
        ("cbow", "gpt2", {"yellow"}),
        ("glove", "wordpiece", {"dim"}),
        ("bidirectional", "gpt2", {"dim"}),
    ],
)
def test_examples(inputs: dict[str, Path], tmp_path: Path, objective: Any, kind: str, colours: set[str]) -> None:
    _, folder = examples(inputs, tmp_path / "e", kind, objective=objective)
    lines = [Text.from_markup(line) for line in preview("examples", folder)]
    assert colours <= {str(span.style) for line in lines for span in line.spans}
    plain = " ".join(line.plain for line in lines)
    assert len(plain) > 100 and "[PAD]" not in plain and "<pad>" not in plain and "<|pad|>" not in plain


def test_masked_tokens_show_what_they_were(inputs: dict[str, Path], tmp_path: Path) -> None:
    _, folder = examples(inputs, tmp_path / "e", "wordpiece", masking="static")
    lines = [Text.from_markup(line) for line in preview("examples", folder)]
    assert any("[MASK]←" in line.plain for line in lines)


def test_pairs_show_their_label(inputs: dict[str, Path], tmp_path: Path) -> None:
    _, folder = examples(inputs, tmp_path / "e", "wordpiece", objective={"kind": "mlm", "pairs": "sop"})
    assert any("pair label" in line for line in preview("examples", folder))


def test_baseline(inputs: dict[str, Path], tmp_path: Path) -> None:
    task, folder = examples(inputs, tmp_path / "e", "wordpiece")
    out = run_stage(NGramBaseline(examples=task), tmp_path / "b", examples=folder).out
    facts = json.loads((out / "baseline.json").read_text())
    lines = [Text.from_markup(line).plain for line in preview("baseline", out)]
    assert f"{facts['ngram_nats']:.3f} nats a token for 3-grams, Kneser-Ney" in lines[1]


@pytest.mark.parametrize("kind", ["wordpiece", "gpt2", "unigram"])
def test_tokenizer(inputs: dict[str, Path], kind: str) -> None:
    lines = [Text.from_markup(line).plain for line in preview("tokenizer", inputs[kind])]
    assert len(lines) == 4 and lines[0].strip().startswith("hat")


def test_a_kind_without_a_view() -> None:
    assert preview("something", Path()) == []
