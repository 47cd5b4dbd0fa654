"""A pretraining that runs out of memory: smaller micro-batches, the same global batch, the same curve."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from modeling.architecture import preset
from modeling.schedule import LoopConfig
from pipelines import Pipeline, run
from tasks.examples import MakeExamples
from tasks.ingest import Ingest
from tasks.pretrain import Pretrain
from tasks.tokenizer import TrainTokenizer

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SHAPE = preset("modern-tiny", layers=1, width=32, heads=2, ff_width=64, max_length=32)


@pytest.fixture(scope="module")
def pretrain(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Pretrains on text that counts upwards, in this process; what it is made from is made once."""
    folder = tmp_path_factory.mktemp("memory")
    rng = random.Random(0)
    texts = [" ".join(NUMBERS[(k + n) % 10] for n in range(rng.randint(20, 60))) for k in range(200)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = Ingest(source=str(folder / "corpus.jsonl"), duplicates="keep")
    tokenizer = TrainTokenizer(corpus=corpus, vocab_size=120, min_frequency=1)
    examples = MakeExamples(corpus=corpus, tokenizer=tokenizer, length_tokens=24)

    def go(steps: int, **options: Any) -> Any:
        loop = LoopConfig(steps=steps, batch_size=20, peak_lr=1e-2, log_every_steps=1)
        stage = Pretrain(examples=examples, tokenizer=tokenizer, model=SHAPE, loop=loop, name="pretrain")
        made = run(Pipeline(stage), store=str(folder / "store"), tracking="off", address="inline", **options)
        return made.record.status["stages"]["pretrain"], made

    return go


@contextmanager
def memory_for(rows: int) -> Iterator[None]:
    """Forwards with more rows than that ask torch's allocator for 2^50 bytes, which no machine gives."""
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    from modeling.heads.language import LanguageModel

    def ask(module: Any, args: Any) -> None:
        if isinstance(module, LanguageModel) and module.training and len(args[0]["input_ids"]) > rows:
            torch.empty(1 << 50, dtype=torch.uint8)

    handle = register_module_forward_pre_hook(ask)
    try:
        yield
    finally:
        handle.remove()


def losses(made: Any) -> list[float]:
    lines = (made.path("pretrain") / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_the_micro_batch_that_was_in_use_is_halved_and_the_curve_stays(pretrain: Callable[..., Any]) -> None:
    _, plain = pretrain(12)
    expected = losses(plain)
    with memory_for(rows=6):
        entry, made = pretrain(12, force=["pretrain"])
    assert [(d["error"], d["decision"]) for d in entry["decisions"]] == [
        ("memory", "out of memory: micro-batch 20 → 10, accumulation 1 → 2, batch size 20 as before"),
        ("memory", "out of memory: micro-batch 10 → 5, accumulation 2 → 4, batch size 20 as before"),
    ]
    assert "allocate memory" in entry["decisions"][0]["message"]
    assert made.artifacts["pretrain"]["placement"]["micro_batch"] == 5
    assert entry["at_work"]["accumulation"] == 4
    # Sums in another order differ by 1e-7; twelve steps of Adam, which divides by small numbers, make 1e-4 of it.
    np.testing.assert_allclose(losses(made), expected, rtol=1e-4)


def test_with_one_sequence_it_stops_and_says_what_would_help(pretrain: Callable[..., Any]) -> None:
    with memory_for(rows=0):
        entry, made = pretrain(3)
    assert made.state == "failed"
    assert [d["decision"].partition(",")[0] for d in entry["decisions"]] == [
        "out of memory: micro-batch 20 → 10",
        "out of memory: micro-batch 10 → 5",
        "out of memory: micro-batch 5 → 2",
        "out of memory: micro-batch 2 → 1",
        "stop: out of memory with a micro-batch of 1",
    ]
    assert "placement.offload_optimizer" in entry["error"]["remedy"]
