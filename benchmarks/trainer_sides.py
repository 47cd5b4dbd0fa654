"""The two sides of `benchmarks.trainer`: their data, our Pretrain stage and Hugging Face's Trainer, step by step."""

from __future__ import annotations

import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hf_peers import Size
from benchmarks.measuring import Spent, say

ZERO_STAGE = 1
ROWS = 4096
"""Rows of tokens in the data set."""
STEPS = 2000
"""Length of the run that a side believes to be in: what happens so many times in a run happens as often as then."""
ROLES = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": 2, "eos": 3}


def write_data(folder: Path, kind: str, size: Size) -> None:
    """`examples` and `tokenizer` as our stages leave them, and `rows.npy` for the other side: random tokens."""
    from tokenizers import Tokenizer, models

    from tasks.example_files import ExampleWriter
    from tasks.objectives.base import Vocabulary
    from tasks.objectives.settings import parse
    from tasks.vocabulary import FILE, write_vocabulary

    V, examples, tokenizer = size.vocabulary, folder / "examples", folder / "tokenizer"
    examples.mkdir()
    tokenizer.mkdir()
    names = [*(f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")), *(f"t{i}" for i in range(5, V))]
    model = models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    Tokenizer(model).save(str(tokenizer / "tokenizer.json"))
    (tokenizer / "tokenizer-info.json").write_text(json.dumps({"vocab_size": V, "special_tokens": ROLES}))
    special = np.zeros(V, dtype=bool)
    special[:5] = True
    write_vocabulary(examples / FILE, Vocabulary(V, ROLES, special, ~special, tuple(names)))
    rows = np.random.default_rng(0).integers(5, V, (ROWS, size.length + (kind == "causal")), dtype=np.uint16)
    np.save(folder / "rows.npy", rows[:, : size.length])
    writer = ExampleWriter(examples, "train", 1024, V, np.uint16)
    writer.add({"tokens": rows})
    settings = parse({"kind": kind, "documents_apart": False})  # the other side does not keep them apart
    info = {
        "objective": settings.model_dump(mode="json"),
        "masking": "dynamic",
        "length_tokens": size.length,
        "vocab_size": V,
        "special_tokens": ROLES,
        "seed": 0,
        "copies": {"train": 1},
        "sequences": {"train": ROWS, "validation": 0},
        "shards": {"train": writer.close()._asdict()},
    }
    (examples / "examples.json").write_text(json.dumps(info))


class Gate:
    """Holds a side before its steps until it is its turn: commands are numbers of steps, answers what they took."""

    def __init__(self, line: Any) -> None:
        self.line = line
        self.left, self.began = 0, Spent(0, 0)
        self.facts: dict[str, Any] = {}

    def step(self) -> None:
        """A step is about to begin."""
        if self.left:
            self.left -= 1
            return
        if self.began.wall:
            now = spent_so_far()
            self.facts["spent"] = (now.wall - self.began.wall, now.cpu - self.began.cpu)
        self.line.send(self.facts)
        if not (steps := self.line.recv()):
            raise SystemExit
        self.left, self.began = steps - 1, spent_so_far()


def spent_so_far() -> Spent:
    """Wall time, and processor time of this process and its living children."""
    import psutil

    own = psutil.Process()
    times = [p.cpu_times() for p in (own, *own.children(recursive=True))]
    return Spent(time.perf_counter(), sum(t.user + t.system for t in times))


def our_shape(kind: str, size: Size) -> Any:
    """The configuration of `benchmarks.hf_peers`' models."""
    from benchmarks import hf_peers
    from modeling.architecture import TransformerConfig

    if kind == "mlm":
        return TransformerConfig(**hf_peers._shape(size), token_types=2, norm_eps=1e-12, ff_width=4 * size.width)
    causal = {"norm_placement": "pre", "norm_eps": 1e-5, "activation": "gelu-tanh"}
    plain = {"head_transform": False, "head_bias": False}
    return TransformerConfig(
        **hf_peers._shape(size), architecture="decoder", ff_width=4 * size.width, **causal, **plain
    )


def run_ours(kind: str, size: Size, precision: str, threads: int, folder: Path, gate: Gate) -> None:
    """The stage, until nobody asks for more steps."""
    from modeling.schedule import LoopConfig
    from tasks.base import Runtime
    from tasks.examples import MakeExamples
    from tasks.ingest import Ingest
    from tasks.pretrain import Pretrain
    from tasks.tokenizer import TrainTokenizer

    corpus = Ingest(source="rows.jsonl")
    tokenizer = TrainTokenizer(corpus=corpus)
    task = Pretrain(
        examples=MakeExamples(corpus=corpus, tokenizer=tokenizer, length_tokens=size.length, objective={"kind": kind}),
        tokenizer=tokenizer,
        model=our_shape(kind, size),
        loop=LoopConfig(steps=STEPS, batch_size=size.rows, peak_lr=1e-4, precision=precision),
        runtime=Runtime(cpus=threads, zero_stage=ZERO_STAGE),
    )
    context = BenchContext(folder, task.runtime, gate)
    context.began = time.perf_counter()
    task.run(context)


class BenchContext:
    """A stage's context (`tasks.base.Context`) whose steps go through a gate."""

    attempt = 0

    def __init__(self, folder: Path, runtime: Any, gate: Gate) -> None:
        base = Path(tempfile.mkdtemp(dir=folder))
        self.out, self.scratch, self.work = base / "out", base / "scratch", base / "work"
        for path in (self.out, self.scratch, self.work):
            path.mkdir()
        self.runtime, self.gate, self.folder = runtime, gate, folder
        self.began = 0.0
        self.parts: list[Mapping[str, float]] = []

    def input(self, field: str) -> Any:
        from tasks.base import Artifact

        return Artifact(key=field, kind=field, path=self.folder / field, config={}, metrics={}, inputs={})

    def metric(self, step: int, values: Mapping[str, float]) -> None:
        parts = {name: v for name, v in values.items() if name.startswith("step_seconds/")}
        if parts:
            self.parts.append(parts)
            self.gate.facts["parts"] = {
                name.partition("/")[2]: statistics.median(each[name] for each in self.parts) for name in parts
            }

    def cancelled(self) -> bool:
        """Asked once before every step."""
        self.gate.facts.setdefault("start_up_seconds", time.perf_counter() - self.began)
        self.gate.step()
        return False

    def log(self, message: str) -> None:
        say(message)

    def inputs(self, field: str) -> list[Any]:
        return [self.input(field)]

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None: ...

    def timing(self, name: str, value: float) -> None: ...

    def dataset(self, name: str, **facts: Any) -> None: ...

    def file(self, name: str, content: Any) -> None: ...

    def placed(self, facts: Any) -> None: ...

    def at_work(self, facts: Any) -> None: ...

    def decided(self, error: str, message: str, decision: str) -> None: ...

    def publish_scratch(self) -> None: ...


def run_theirs(
    kind: str, size: Size, precision: str, threads: int, folder: Path, gate: Gate, loader_workers: int
) -> None:
    """Trainer, until nobody asks for more steps."""
    import torch

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    one = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(one)
    torch.set_num_threads(threads)
    from transformers import (
        DataCollatorForLanguageModeling,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )

    from benchmarks.hf_peers import PAIRS

    torch.manual_seed(0)
    pair = PAIRS[kind](size._replace(rows=1))
    model, ids = pair.theirs, torch.from_numpy(np.load(folder / "rows.npy").astype(np.int64))
    del pair

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(ids)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": ids[index]} if kind == "mlm" else {"input_ids": ids[index], "labels": ids[index]}

    names = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer/tokenizer.json"), **names)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)

    class Turns(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            gate.step()

    settings = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=size.rows,
        max_steps=STEPS,
        learning_rate=1e-4,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=precision == "bf16",
        use_cpu=True,
        dataloader_num_workers=loader_workers,
        dataloader_pin_memory=False,
        dataloader_persistent_workers=loader_workers > 0,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        deepspeed={
            "zero_optimization": {"stage": ZERO_STAGE, "overlap_comm": False, "reduce_bucket_size": 50_000_000},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "bf16": {"enabled": "auto"},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    Trainer(
        model=model,
        args=settings,
        train_dataset=Rows(),
        data_collator=collator if kind == "mlm" else default_data_collator,
        callbacks=[Turns()],
    ).train()
