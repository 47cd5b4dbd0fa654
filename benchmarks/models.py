"""A training step of our models beside Hugging Face's: `make bench-models`.

The same configuration, weights, batch, dtype, threads, optimizer (torch's fused AdamW) and clipping; forward,
backward and step. Each side is a process of its own, and they take turns: A B C A B C …; medians, with the
processor time beside the wall time, since others may use the machine. Before anything is timed their losses on
the first batch must be equal.

On a CPU there are three sides: ours as `modeling.loop` runs it, theirs as it comes, and theirs with the one setting
of the C library that our loop makes (`modeling.kernels.keep_freed_memory`), which is no property of the model.

On a GPU: `python -m benchmarks.models --device cuda --compile`, with the share of the peak (MFU). Needs torch and
transformers only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.hf_peers import PAIRS, Pair, Size
from benchmarks.measuring import RESULTS, Spent, circumstances, figure, record, say, versions
from modeling.flops import peak_flops, training_flops_per_token
from modeling.heads.base import IGNORE
from modeling.kernels import keep_freed_memory

CASES: dict[str, tuple[str, Size]] = {
    "bert-mini": ("mlm", Size(4, 256, 30522, rows=32, length=128)),
    "bert-mini, 8k vocabulary": ("mlm", Size(4, 256, 8192, rows=32, length=128)),
    "bert-small": ("mlm", Size(4, 512, 30522, rows=32, length=128)),
    "gpt2 4x256": ("causal", Size(4, 256, 50257, rows=8, length=512)),
    "gpt2 4x256, 8k vocabulary": ("causal", Size(4, 256, 8192, rows=8, length=512)),
    "gpt2 6x512": ("causal", Size(6, 512, 50257, rows=4, length=512)),
    "t5.1.1 4x256, 8k vocabulary": ("seq2seq", Size(4, 256, 8192, rows=16, length=256, targets=58)),
    "t5.1.1 4x256": ("seq2seq", Size(4, 256, 32128, rows=16, length=256, targets=58)),
    "t5.1.1 4x512": ("seq2seq", Size(4, 512, 32128, rows=16, length=256, targets=58)),
}
"""{name: (kind of model, sizes)}."""
TARGETS = {"mlm": 2.0, "causal": 1.2, "seq2seq": 1.2}
"""Their time / our time."""
SIDES = {"cpu": ("ours", "theirs", "theirs, memory kept"), "cuda": ("ours", "theirs")}
PRECISIONS = ("fp32", "bf16")
SAME_LOSS = 1e-5
"""Largest relative difference of the first losses: fp32 sums of some thousand terms in another order."""


class Worker:
    """One side of a case, which takes steps when told to."""

    def __init__(self, side: str, case: str, device: str, compiled: bool) -> None:
        torch.manual_seed(0)
        kind, size = CASES[case]
        pair: Pair = PAIRS[kind](size)
        ours = side == "ours"
        if device == "cpu" and side != "theirs":
            keep_freed_memory()
        self.device, self.size = device, size
        model: Any = (pair.ours if ours else pair.theirs).to(device).train()
        self.parameters = list(model.parameters())
        self.batch = {name: t.to(device) for name, t in (pair.our_batch if ours else pair.their_batch).items()}
        self.labels = int((pair.our_batch["labels"] != IGNORE).sum())
        self.config = pair.ours.config
        del pair
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self.model = torch.compile(model) if compiled else model
        self.precision = "fp32"
        self.loss: Callable[[], Any] = self._ours if ours else self._theirs

    def _ours(self) -> torch.Tensor:
        found = self.model(self.batch)
        return found.loss_sum / self.labels

    def _theirs(self) -> torch.Tensor:
        return self.model(**self.batch).loss

    def step(self) -> Spent:
        """One training step's time."""
        began, cpu = time.perf_counter(), time.process_time()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return Spent(time.perf_counter() - began, time.process_time() - cpu)

    def first_loss(self) -> float:
        with torch.no_grad():
            return float(self.loss())

    def flops(self) -> float | None:
        """Model FLOPs of a step; the same for both sides."""
        share = self.labels / self.size.tokens
        of_token = training_flops_per_token(self.config, self.size.length, share, target_length=self.size.targets)
        return None if of_token is None else of_token * self.size.tokens

    def peak(self) -> float | None:
        return peak_flops(torch.device(self.device), self.precision) if self.device == "cuda" else None

    def serve(self) -> None:
        """Answer commands, one JSON value a line: {"precision", "threads"} prepares, "step" takes a step."""
        answer({"loss": self.first_loss(), "parameters": sum(p.numel() for p in self.parameters)})
        for line in sys.stdin:
            command = json.loads(line)
            if command == "step":
                answer(list(self.step()))
                continue
            torch.set_num_threads(command["threads"])
            self.precision = command["precision"]
            for _ in range(2 if self.device == "cpu" else 5):
                self.step()
            answer({"flops": self.flops(), "peak": self.peak()})


def answer(value: Any) -> None:
    print(json.dumps(value), flush=True)


class Side:
    """A `Worker` in a process of its own."""

    def __init__(self, side: str, case: str, device: str, compiled: bool) -> None:
        words = [sys.executable, "-m", "benchmarks.models", "--side", side, "--case", case, "--device", device]
        self.process = subprocess.Popen(
            [*words, *(["--compile"] if compiled else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("BENCH_VERBOSE") else None,
            text=True,
        )
        self.first = self.hear()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a side of the benchmark ended early: run with BENCH_VERBOSE=1 to see why")
        return json.loads(line)

    def ask(self, command: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(
    case: str, device: str, compiled: bool, precisions: list[str], threads: list[int], rounds: int
) -> dict[str, Any]:
    """All figures of a case: {precision, threads: {side: figure, ratios}}."""
    kind, size = CASES[case]
    sides = {name: Side(name, case, device, compiled) for name in SIDES[device]}
    try:
        losses = {name: side.first["loss"] for name, side in sides.items()}
        if max(losses.values()) - min(losses.values()) > SAME_LOSS * min(losses.values()):
            raise RuntimeError(f"{case}: the sides do not compute the same loss: {losses}")
        out: dict[str, Any] = {
            "kind": kind,
            "size": size._asdict(),
            "first_loss": round(losses["ours"], 6),
            "parameters": {name: side.first["parameters"] for name, side in sides.items() if "," not in name},
            "steps": [],
        }
        for precision in precisions:
            for count in threads:
                out["steps"].append(_interleaved(case, sides, precision, count, size, rounds))
        return out
    finally:
        for side in sides.values():
            side.close()


def _interleaved(
    case: str, sides: dict[str, Side], precision: str, threads: int, size: Size, rounds: int
) -> dict[str, Any]:
    told = {name: side.ask({"precision": precision, "threads": threads}) for name, side in sides.items()}
    times: dict[str, list[Spent]] = {name: [] for name in sides}
    load = os.getloadavg()[0]
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(Spent(*side.ask("step")))
    row: dict[str, Any] = {"precision": precision, "threads": threads, "load": round(load, 1)}
    for name, measured in times.items():
        seconds = statistics.median(t.wall for t in measured)
        row[name] = {**figure(measured), "tokens_per_second": round(size.tokens / seconds)}
        if told[name]["peak"] and told[name]["flops"]:
            row[name]["mfu"] = round(told[name]["flops"] / seconds / told[name]["peak"], 4)
    for name in times:
        if name != "ours":
            row[f"ratio to {name}"] = _ratios(times[name], times["ours"])
    say(f"{case} {precision} threads {threads}: {_line(row)}")
    return row


def _ratios(theirs: list[Spent], ours: list[Spent]) -> dict[str, float]:
    """Their time / ours: of medians, of the best, and of medians of processor time."""
    pairs = {
        "median": (statistics.median(t.wall for t in theirs), statistics.median(t.wall for t in ours)),
        "best": (min(t.wall for t in theirs), min(t.wall for t in ours)),
        "cpu": (statistics.median(t.cpu for t in theirs), statistics.median(t.cpu for t in ours)),
    }
    return {name: round(their / our, 2) for name, (their, our) in pairs.items()}


def _line(row: dict[str, Any]) -> str:
    ratios = {name.removeprefix("ratio to "): value for name, value in row.items() if name.startswith("ratio")}
    return f"{1000 * row['ours']['seconds']:.0f} ms, ratios {ratios}, load {row['load']}"


def table(results: dict[str, Any]) -> str:
    """The comparison as Markdown, from the results file."""
    lines = ["| model | dtype | threads | ours, tokens/s | theirs | ratio | theirs, memory kept | ratio |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for case, found in results.items():
        for row in found["steps"]:
            cells = [case, row["precision"], str(row["threads"]), f"{row['ours']['tokens_per_second']:,}"]
            for side in ("theirs", "theirs, memory kept"):
                if side in row:
                    ratio = row[f"ratio to {side}"]
                    cells += [f"{row[side]['tokens_per_second']:,}", f"{ratio['median']:.2f} (cpu {ratio['cpu']:.2f})"]
                else:
                    cells += ["", ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(results: dict[str, Any]) -> list[str]:
    """One line for each figure's target; on one thread processor time decides, which others at work disturb less."""
    lines = []
    for case, found in results.items():
        target = TARGETS[found["kind"]]
        for row in found["steps"]:
            ratios = row["ratio to theirs"]
            on_gpu = "theirs, memory kept" not in row
            judged = ratios["cpu" if row["threads"] == 1 and not on_gpu else "median"]
            met = "met" if judged >= target else "MISSED"
            figures = f"{ratios['median']:.2f} (cpu {ratios['cpu']:.2f})"
            lines.append(f"{case}, {row['precision']}, {row['threads']} threads: {figures}, target {target:g}: {met}")
    return lines


def _with_others(found: dict[str, Any], recorded: dict[str, Any] | None, today: str, before: str) -> dict[str, Any]:
    """A case's new rows, each with its date, among those that were recorded and not measured again."""
    new = {(row["precision"], row["threads"]): {"date": today, **row} for row in found["steps"]}
    old = {}
    if recorded is not None and recorded["size"] == found["size"]:
        old = {(row["precision"], row["threads"]): {"date": before, **row} for row in recorded["steps"]}
    return {**found, "steps": list({**old, **new}.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", help=f"one of: {'; '.join(CASES)} (all)")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="(both)")
    parser.add_argument("--threads", action="append", type=int, help="(1 and 2)")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each side")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile, both sides")
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    parser.add_argument("--table", action="store_true", help="only print the table of what is recorded")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    call = parser.parse_args()
    if call.side:
        Worker(call.side, call.case[0], call.device, call.compile).serve()
        return
    section = call.device + (", compiled" if call.compile else "")
    file = RESULTS / "models.json"
    recorded = json.loads(file.read_text()) if file.exists() else {}
    values = recorded.get(section, {})
    if not call.table:
        before, cases = values.get("date", ""), dict(values.get("cases", {}))
        values = {**circumstances(), "versions": versions("torch", "transformers", "triptych")}
        if call.device == "cuda":
            values["gpu"] = torch.cuda.get_device_name()
        threads = call.threads or ([1, 2] if call.device == "cpu" else [torch.get_num_threads()])
        for case in call.case or CASES:
            found = measure(case, call.device, call.compile, call.precision or list(PRECISIONS), threads, call.rounds)
            cases[case] = _with_others(found, cases.get(case), values["date"], before)
        values["cases"] = {case: cases[case] for case in CASES if case in cases}
        if not call.dry:
            record(section, values, "models.json")
        print("\n".join(verdicts(values["cases"])) + "\n")
    print(table(values.get("cases", {})))


if __name__ == "__main__":
    main()
