"""Tokens per second end to end: our Pretrain stage beside Hugging Face's Trainer on DeepSpeed: `make bench-trainer`.

The same shape of model, ZeRO stage, dtype, batch, threads and token rows; one rank on the CPU. Ours is the stage as a
user runs it, from token shards on disk, with all that it does by default: the log every ten steps, samples' and layers'
figures, masks drawn anew. Theirs is `Trainer` with a DeepSpeed config, rows in memory as tensors, `DataCollatorFor-
LanguageModeling`, SDPA, no dropout, fused AdamW, and without logging, saving or progress bars; with the loader in the
process, and with a worker of its own: the faster one counts.

Each side is a process that stays and takes a few steps when it is its turn. Medians of wall time; processor time, with
that of loader workers, stands beside it, since it moves less where others use the machine.

`--start-up` measures how long a stage of one worker takes from its start to its first step, imports apart.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hf_peers import Size
from benchmarks.measuring import RESULTS, Spent, circumstances, figure, record, say, versions

CASES: dict[str, tuple[str, Size]] = {
    "bert-mini": ("mlm", Size(4, 256, 30522, rows=32, length=128)),
    "gpt2 4x256, 8k vocabulary": ("causal", Size(4, 256, 8192, rows=8, length=512)),
}
TARGETS = {"mlm": 2.0, "causal": 1.2}
"""Their time / our time."""
SIDES = {"ours": "ours", "theirs": "theirs 0", "theirs, loader worker": "theirs 1"}
PRECISIONS = ("fp32", "bf16")
ZERO_STAGE = 1
ROWS = 4096
"""Rows of tokens in the data set."""
STEPS = 2000
"""Length of the run that a side believes to be in: what happens so many times in a run happens as often as then."""
ROLES = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": 2, "eos": 3}
ACCELERATE = Path(".venv-trainer")
"""Where `make bench-trainer` puts what Trainer needs besides."""


# ---------------------------------------------------------------- data


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


# ---------------------------------------------------------------- sides


class Gate:
    """Holds a side before its steps until it is its turn. Commands are numbers of steps, a line each."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries print is no answer
        self.left, self.began = 0, Spent(0, 0)
        self.facts: dict[str, Any] = {}

    def step(self) -> None:
        """A step is about to begin."""
        if self.left:
            self.left -= 1
            return
        if self.began.wall:
            now = _spent()
            took = [now.wall - self.began.wall, now.cpu - self.began.cpu]
            self.answers.write(json.dumps({"spent": took, **self.facts}) + "\n")
        else:
            self.answers.write(json.dumps(self.facts) + "\n")
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.left, self.began = int(line) - 1, _spent()


def _spent() -> Spent:
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

    def placed(self, facts: Any) -> None: ...

    def dataset(self, name: str, **facts: Any) -> None: ...

    def file(self, name: str, content: Any) -> None: ...

    def publish_scratch(self) -> None: ...


def run_theirs(
    kind: str, size: Size, precision: str, threads: int, folder: Path, gate: Gate, loader_workers: int
) -> None:
    """Trainer, until nobody asks for more steps."""
    import torch

    from modeling.engine import import_deepspeed

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    one = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(one)
    torch.set_num_threads(threads)
    import_deepspeed()  # without its inference operator, which costs a compiler and is not used in training
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


class Side:
    """A side in a process of its own."""

    def __init__(self, name: str, case: str, precision: str, threads: int, folder: Path) -> None:
        words = [sys.executable, "-m", "benchmarks.trainer", "--side", SIDES[name], "--case", case]
        words += ["--precision", precision, "--threads", str(threads), "--folder", str(folder)]
        paths = [os.getcwd(), str(ACCELERATE.resolve()), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("BENCH_VERBOSE") else subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)},
            text=True,
        )
        self.facts = self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a side of the benchmark ended early: run with BENCH_VERBOSE=1 to see why")
        return dict(json.loads(line))

    def steps(self, count: int) -> Spent:
        """Time of so many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        self.facts = self._hear()
        return Spent(*self.facts["spent"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# ---------------------------------------------------------------- measuring


def measure(case: str, precision: str, threads: int, rounds: int, chunk: int) -> dict[str, Any]:
    """Figures of a case: of each side, ratios of the faster of theirs, and the parts of our step."""
    kind, size = CASES[case]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_data(folder, kind, size)
        sides: dict[str, Side] = {}
        try:
            for name in SIDES:
                sides[name] = Side(name, case, precision, threads, folder)
            for side in sides.values():
                side.steps(3)  # warm
            load = os.getloadavg()[0]
            times: dict[str, list[Spent]] = {name: [] for name in sides}
            for _ in range(rounds):
                for name, side in sides.items():
                    took = side.steps(chunk)
                    times[name].append(Spent(took.wall / chunk, took.cpu / chunk))
            facts = sides["ours"].facts
        finally:
            for side in sides.values():
                side.close()
    row: dict[str, Any] = {"precision": precision, "threads": threads, "load": round(load, 1), "steps": rounds * chunk}
    for name, measured in times.items():
        row[name] = {**figure(measured), "tokens_per_second": round(size.tokens / _wall(measured))}
    best = min((name for name in times if name != "ours"), key=lambda name: _wall(times[name]))
    row["ratio"] = {
        "to": best,
        "wall": round(_wall(times[best]) / _wall(times["ours"]), 2),
        "cpu": round(_cpu(times["theirs"]) / _cpu(times["ours"]), 2),
    }
    parts = facts.get("parts", {})
    row["our step"] = {name: round(seconds, 6) for name, seconds in parts.items()}
    row["data share"] = round(parts["data"] / sum(parts.values()), 5) if parts else None
    say(f"{case} {precision}, {threads} threads: {row['ratio']}, data {row['data share']}, load {row['load']}")
    return row


def _wall(times: list[Spent]) -> float:
    return statistics.median(t.wall for t in times)


def _cpu(times: list[Spent]) -> float:
    return statistics.median(t.cpu for t in times)


def start_up(case: str, threads: int, tries: int) -> dict[str, Any]:
    """Seconds from the start of our stage to its first step, after the imports that a reused worker has done."""
    kind, size = CASES[case]
    found = []
    for _ in range(tries):
        with tempfile.TemporaryDirectory() as place:
            write_data(Path(place), kind, size)
            side = Side("ours", case, "fp32", threads, Path(place))
            found.append(side.facts["start_up_seconds"])
            side.close()
    return {"seconds": round(statistics.median(found), 2), "all_seconds": [round(s, 2) for s in found]}


def import_what_a_worker_has() -> None:
    """What a worker process that has trained before has imported."""
    import torch  # noqa: F401
    import torch._dynamo  # noqa: F401

    import modeling.loop  # noqa: F401
    import tasks.example_reader  # noqa: F401
    import tasks.pretrain  # noqa: F401
    from modeling.engine import import_deepspeed

    import_deepspeed()


def table(recorded: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| model | dtype | threads | ours, tokens/s | Trainer, tokens/s | ratio, wall | ratio, cpu | target | data |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for case, found in recorded.get("cases", {}).items():
        for row in found["rows"]:
            best = row["ratio"]["to"]
            target = TARGETS[found["kind"]]
            cells = [case, row["precision"], str(row["threads"]), f"{row['ours']['tokens_per_second']:,}"]
            cells += [
                f"{row[best]['tokens_per_second']:,}",
                f"{row['ratio']['wall']:.2f}",
                f"{row['ratio']['cpu']:.2f}",
            ]
            met = "met" if row["ratio"]["wall"] >= target else "missed"
            share = "" if row["data share"] is None else f"{100 * row['data share']:.2f} %"
            lines.append(f"| {' | '.join([*cells, f'{target:g}: {met}', share])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="(all)")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="(both)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--chunk", type=int, default=4, help="steps in a turn")
    parser.add_argument("--start-up", action="store_true", help="only measure the start of our stage")
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    parser.add_argument("--table", action="store_true", help="only print the table of what is recorded")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    call = parser.parse_args()
    if call.side:
        gate, (kind, size) = Gate(), CASES[call.case[0]]
        if call.side == "ours":
            import_what_a_worker_has()
            run_ours(kind, size, call.precision[0], call.threads, call.folder, gate)
        else:
            workers = int(call.side.rpartition(" ")[2])
            run_theirs(kind, size, call.precision[0], call.threads, call.folder, gate, workers)
        return
    file = RESULTS / "trainer.json"
    recorded = json.loads(file.read_text()).get("cpu", {}) if file.exists() else {}
    if not call.table:
        values: dict[str, Any] = {
            **circumstances(),
            "versions": {**versions("torch", "transformers", "deepspeed"), "accelerate": _accelerate()},
            "zero_stage": ZERO_STAGE,
            "cases": dict(recorded.get("cases", {})),
            "start_up": recorded.get("start_up"),
        }
        for case in [] if call.start_up else call.case or list(CASES):
            kind, size = CASES[case]
            old = values["cases"].get(case, {}).get("rows", [])
            wanted = call.precision or list(PRECISIONS)
            rows = [measure(case, precision, call.threads, call.rounds, call.chunk) for precision in wanted]
            new = {(row["precision"], row["threads"]) for row in rows}
            kept = [row for row in old if (row["precision"], row["threads"]) not in new]
            values["cases"][case] = {"kind": kind, "size": size._asdict(), "rows": [*kept, *rows]}
            if not call.dry:
                record("cpu", values, "trainer.json")
        if call.start_up:
            values["start_up"] = {"load": round(os.getloadavg()[0], 1), **start_up("bert-mini", call.threads, 3)}
            say(f"from the start of a stage to its first step: {values['start_up']}")
        recorded = values
        if not call.dry:
            record("cpu", values, "trainer.json")
    print(table(recorded))


def _accelerate() -> str:
    found = sorted(ACCELERATE.glob("accelerate-*.dist-info"))
    return found[-1].name.split("-")[1].removesuffix(".dist") if found else "missing"


if __name__ == "__main__":
    main()
