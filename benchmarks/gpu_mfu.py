"""MFU of our training loop on one GPU, without Ray: `python -m benchmarks.gpu_mfu`.

bert-base at length 512 (15 % of the tokens masked) and gpt2 (124M) at length 1,024, in bf16 with ZeRO-1, through
`modeling.loop.fit` and DeepSpeed as a stage would. Batches are random tokens, made before; the rest is as in a run.

    MFU = model FLOPs per token · tokens/s / the GPU's peak (data sheet, dense)

Model FLOPs are three times the matrix products of a forward pass (PaLM, appendix B), the output layer at labelled
places only; recomputation does not count. The median over the log intervals after the first.

`--tiny` runs the same with small shapes, on a CPU, too: to see that it works.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.measuring import circumstances, record, say, versions
from cluster.deepspeed import engine_config
from modeling.flops import peak_flops, training_flops_per_token
from modeling.heads.base import IGNORE
from modeling.heads.language import LanguageModel
from modeling.loop import fit
from modeling.records import Hooks, LogRecord, Watch
from modeling.schedule import LoopConfig
from modeling.step import count_tokens
from modeling.transformer import preset
from tasks.base import Runtime

TARGET = 0.5


class Case(NamedTuple):
    """A model's preset, and its batches."""

    preset: str
    length: int
    micro_batch: int
    label_share: float


CASES = {"bert-base": Case("bert-base", 512, 64, 0.15), "gpt2-124M": Case("gpt2-124M", 1024, 32, 1.0)}


def batches(case: Case, vocabulary: int, rows: int, count: int) -> list[dict[str, np.ndarray]]:
    """So many batches of random tokens; masked ones have labels where a token is hidden, causal ones everywhere."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        ids = rng.integers(5, vocabulary, (rows, case.length))
        if case.label_share == 1.0:
            labels = np.concatenate([ids[:, 1:], np.full((rows, 1), IGNORE)], axis=1)
            found.append({"input_ids": ids, "labels": labels})
            continue
        masked = rng.random(ids.shape).argsort(1) < round(case.label_share * case.length)
        batch = {"input_ids": np.where(masked, 4, ids), "labels": np.where(masked, ids, IGNORE)}
        found.append({**batch, "attention_mask": np.ones(ids.shape, dtype=bool)})
    return found


def measure(name: str, call: argparse.Namespace) -> dict[str, Any]:
    """Figures of one case."""
    case, small = CASES[name], {}
    if call.tiny:
        small = {"layers": 2, "width": 64, "heads": 2, "ff_width": 128, "vocab_size": 500}
        case = case._replace(length=32, micro_batch=4)
    micro = call.micro_batch or case.micro_batch
    rows = micro * call.accumulation
    config = preset(case.preset, **small)
    torch.manual_seed(0)
    model = LanguageModel(config)
    ready = batches(case, config.vocab_size, rows, 4)
    loop = LoopConfig(steps=call.steps, batch_size=rows, peak_lr=1e-4, precision=call.precision, log_every_steps=5)
    flops = training_flops_per_token(config, case.length, case.label_share)
    records: list[LogRecord] = []
    result = fit(
        model,
        loop,
        lambda step: ready[step % len(ready)],
        engine_config=engine_config(
            batch_size=rows,
            world_size=1,
            length_tokens=case.length,
            zero_stage=call.zero_stage,
            micro_batch=micro,
            clip_norm=1.0,
        ),
        runtime=Runtime(cpus=call.threads, checkpoint_every_seconds=1e9),
        hooks=Hooks(on_log=records.append),
        flops_per_token=flops,
        watch=Watch(),
    )
    rate = statistics.median(r.tokens_per_second for r in records[1:] or records)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    peak = peak_flops(device, call.precision)
    tokens = count_tokens({k: torch.from_numpy(v) for k, v in ready[0].items()})
    row = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "length": case.length,
        "micro_batch": micro,
        "accumulation": call.accumulation,
        "precision": call.precision,
        "zero_stage": call.zero_stage,
        "tokens_per_second": round(rate),
        "mfu": round(rate * flops / peak, 4) if flops and peak else None,
        "flops_per_token": flops,
        "peak_tflops": round(peak / 1e12, 1) if peak else None,
        "step_milliseconds": round(1000 * tokens / rate, 1),
        "step_parts_milliseconds": {part: round(1000 * s, 2) for part, s in result.step_seconds.items()},
        "memory": result.memory[0],
    }
    met = "not known" if row["mfu"] is None else "met" if row["mfu"] >= TARGET else "MISSED"
    say(f"{name}: {row['tokens_per_second']:,} tokens/s, MFU {row['mfu']}, target {TARGET}: {met}")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="(both)")
    parser.add_argument("--micro-batch", type=int, default=0, help="sequences per forward; 0: the case's own")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per step")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--zero-stage", type=int, default=1, choices=range(4))
    parser.add_argument("--threads", type=int, default=4, help="of the process; on a CPU also of the products")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to see that it runs; nothing is recorded")
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    call = parser.parse_args()
    values: dict[str, Any] = {**circumstances(), "versions": versions("torch", "deepspeed")}
    if torch.cuda.is_available():
        values["gpu"] = torch.cuda.get_device_name()
    values["cases"] = {name: measure(name, call) for name in call.case or CASES}
    print(json.dumps(values["cases"], indent=1))
    if torch.cuda.is_available() and not (call.tiny or call.dry):
        record("cuda", values, "trainer.json")


if __name__ == "__main__":
    main()
