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
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.hf_peers import Size
from benchmarks.measuring import RESULTS, Spent, circumstances, figure, record, say, versions
from benchmarks.trainer_sides import ZERO_STAGE, Gate, run_ours, run_theirs, write_data

CASES: dict[str, tuple[str, Size]] = {
    "bert-mini": ("mlm", Size(4, 256, 30522, rows=32, length=128)),
    "gpt2 4x256": ("causal", Size(4, 256, 50257, rows=8, length=512)),
    "gpt2 4x256, 8k vocabulary": ("causal", Size(4, 256, 8192, rows=8, length=512)),
}
TARGETS = {"mlm": 2.0, "causal": 1.2}
"""Their time / our time."""
SIDES = {"ours": 0, "theirs": 0, "theirs, loader worker": 1}
"""{side: processes that prepare its batches}."""
PRECISIONS = ("fp32", "bf16")
ACCELERATE = Path(".venv-trainer")
"""Where `make bench-trainer` puts what Trainer needs besides."""


def side_main(line: Any, name: str, case: str, precision: str, threads: int, folder: Path) -> None:
    """What a side's process runs."""
    if not os.environ.get("BENCH_VERBOSE"):
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # accelerate sets as many
    (kind, size), gate = CASES[case], Gate(line)
    if name == "ours":
        run_ours(kind, size, precision, threads, folder, gate)
    else:
        run_theirs(kind, size, precision, threads, folder, gate, SIDES[name])


class Side:
    """A side in a process of its own, forked from this one: imports are paid once."""

    def __init__(self, name: str, case: str, precision: str, threads: int, folder: Path) -> None:
        context = multiprocessing.get_context("fork")
        self.line, other = context.Pipe()
        self.process = context.Process(target=side_main, args=(other, name, case, precision, threads, folder))
        self.process.start()
        other.close()
        self.facts = self._hear()

    def _hear(self) -> dict[str, Any]:
        try:
            return dict(self.line.recv())
        except EOFError:
            raise RuntimeError("a side of the benchmark ended early: BENCH_VERBOSE=1 shows why") from None

    def steps(self, count: int) -> Spent:
        """Time of so many steps."""
        self.line.send(count)
        self.facts = self._hear()
        return Spent(*self.facts["spent"])

    def close(self) -> None:
        if self.process.is_alive():
            self.line.send(0)
        self.process.join(60)


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
    working = sum(seconds for part, seconds in parts.items() if part != "other")  # in which a side waits for its turn
    row["data share"] = round(parts["data"] / working, 5) if parts else None
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


def import_all() -> None:
    """What both sides import, before they are forked. Nothing is computed here: threads would not be forked."""
    import psutil  # noqa: F401
    import torch._dynamo  # noqa: F401

    import benchmarks.hf_peers  # noqa: F401
    import modeling.loop  # noqa: F401
    import tasks.held_out  # noqa: F401
    import tasks.pretrain  # noqa: F401
    import tasks.samples  # noqa: F401
    from modeling.engine import import_deepspeed

    import_deepspeed()  # without its inference operator, which costs a compiler and is not used in training
    sys.path.append(str(ACCELERATE.resolve()))
    from transformers import (  # noqa: F401
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
        Trainer,
    )


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
            share = "" if row.get("data share") is None else f"{100 * row['data share']:.2f} %"
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
    call = parser.parse_args()
    file = RESULTS / "trainer.json"
    recorded = json.loads(file.read_text()).get("cpu", {}) if file.exists() else {}
    if not call.table:
        import_all()
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
