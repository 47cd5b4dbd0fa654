"""What checkpoints cost training: how long it stands still, written in the background or not.

A model of about 35 M parameters (12 bytes each of weights and AdamW's moments; on the disk 16, as a shard of ZeRO 1 has
its own fp32 weights) trains on random tokens with a checkpoint every `--every` seconds; both ways take turns, in one
process. The share is of training's wall time. `at_60_seconds` is one checkpoint's stop over the default interval.

    .venv/bin/python -m benchmarks.checkpoints                   # about ten minutes on two quiet cores
    .venv/bin/python -m benchmarks.checkpoints --tiny --dry      # does it run
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import circumstances, record, versions
from cluster.deepspeed import engine_config
from modeling.heads.language import LanguageModel
from modeling.loop import fit
from modeling.schedule import LoopConfig
from modeling.transformer import preset
from tasks.base import Runtime

LENGTH = 128


def train(shape: Any, background: bool, call: argparse.Namespace) -> dict[str, float]:
    """Figures of one run."""
    torch.manual_seed(0)
    model = LanguageModel(shape)
    rng = np.random.default_rng(0)
    ids = rng.integers(5, shape.vocab_size, (call.batch, LENGTH))
    labels = np.where(rng.random(ids.shape) < 0.15, ids, -100)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": np.ones_like(ids)}
    began: list[float] = []

    def next_batch(step: int) -> dict[str, np.ndarray]:
        began.append(time.monotonic())
        return batch

    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            model,
            LoopConfig(steps=call.steps, batch_size=call.batch, log_every_steps=10),
            next_batch,
            engine_config=engine_config(
                batch_size=call.batch, world_size=1, length_tokens=LENGTH, zero_stage=call.stage, clip_norm=1.0
            ),
            runtime=Runtime(
                cpus=call.threads,
                checkpoint_every_seconds=call.every,
                checkpoint_background=background,
                checkpoint_keep_last=1,
            ),
            checkpoint_dir=Path(folder),
        )
        written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    wall = began[-1] - began[0]
    return {
        "wall_seconds": wall,
        "checkpoints": result.checkpoints,
        "stall_seconds": result.checkpoint_seconds / max(1, result.checkpoints),
        "write_seconds": result.checkpoint_write_seconds / max(1, result.checkpoints),
        "stall_share": result.checkpoint_seconds / wall,
        "megabytes": written / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=float, default=20, help="seconds between checkpoints")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8, help="sequences of 128 tokens; does not change what is written")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stage", type=int, default=1, help="ZeRO stage")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    call = parser.parse_args()
    if call.tiny:
        shape = preset("modern-tiny", layers=2, width=64, heads=2, ff_width=128, vocab_size=1000)
    else:
        shape = preset("modern-tiny", layers=8, width=512, heads=8, ff_width=1536, vocab_size=16_000)
    shape = shape.model_copy(update={"max_length": LENGTH})
    values: dict[str, Any] = {**circumstances(), "versions": versions("torch", "deepspeed", "triptych")}
    values |= {"parameters": sum(p.numel() for p in LanguageModel(shape).parameters()), "every_seconds": call.every}
    values |= {"batch": call.batch, "steps": call.steps}
    rows: dict[str, list[dict[str, float]]] = {"background": [], "waiting": []}
    for _ in range(call.rounds):
        for name, found in rows.items():
            found.append(train(shape, name == "background", call))
            print(name, {key: round(value, 4) for key, value in found[-1].items()}, flush=True)
    for name, found in rows.items():
        middle = {key: round(statistics.median(row[key] for row in found), 4) for key in found[0]}
        stalls = [round(row["stall_seconds"], 4) for row in found]
        values[name] = {**middle, "at_60_seconds": round(middle["stall_seconds"] / 60, 5), "all_stall_seconds": stalls}
    print(values)
    if not call.dry:
        record("cpu", values, "checkpoints.json")


if __name__ == "__main__":
    main()
