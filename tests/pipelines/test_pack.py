"""`triptych pack`: the two commands of the documentation, up to a job that can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.pretrain_job import read_job

WORDS = (
    "corpus=corpus.jsonl",
    "clean=none",
    "tokenizer.vocab_size=120",
    "pretrain.steps=3",
    "examples.length_tokens=32",
)


def test_a_stage_becomes_a_job_once_its_inputs_are_made(command: Any, tmp_path: Path) -> None:
    text = " ".join(f"word{n % 37} and{n % 11}" for n in range(60))
    rows = (json.dumps({"text": f"{n} {text[n:]} {n * n}"}) + "\n" for n in range(80))
    (tmp_path / "corpus.jsonl").write_text("".join(rows))
    early = command("pack", "bert", *WORDS, "--store", "store", "--to", "job")
    assert early.returncode == 2
    assert "examples, tokenizer: not made yet" in early.stderr and "--only examples --only tokenizer" in early.stderr
    made = command(
        "run", "bert", *WORDS, "tracking=off", "--store", "store", "--address", "inline", "--only", "examples",
        "--only", "tokenizer",
    )  # fmt: skip
    assert made.returncode == 0, made.stdout
    packed = command("pack", "bert", *WORDS, "--store", "store", "--to", "job")
    assert packed.returncode == 0, packed.stderr
    assert packed.stdout.strip() == "torchrun --nproc-per-node 2 -m tasks.pretrain_job job"
    stage, runtime = read_job(tmp_path / "job", [], 2, gpus=False)
    assert (stage.loop.steps, runtime.workers, runtime.zero_stage) == (3, 2, 2)
    assert (tmp_path / "job/examples/examples.json").is_file() and (tmp_path / "job/tokenizer/tokenizer.json").is_file()
    assert "is not empty" in command("pack", "bert", *WORDS, "--store", "store", "--to", "job").stderr
    for to, said in (("corpus.jsonl", "--to corpus.jsonl is a file"), ("corpus.jsonl/job", "cannot be made")):
        wrong = command("pack", "bert", *WORDS, "--store", "store", "--to", to)
        assert wrong.returncode == 2 and said in wrong.stderr, wrong.stderr
    wrong = command("pack", "bert", *WORDS, "--store", "store", "--to", "other", "--stage", "examples")
    assert "expected one pretraining stage" in wrong.stderr and "pretrain" in wrong.stderr
