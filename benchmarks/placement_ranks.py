"""One rank of `benchmarks.placement`: real runs of `modeling.loop.fit`, looked into while they train."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

LM = {"name": "language-model", "settings": {}}
MODELS: dict[str, dict[str, Any]] = {
    "small": {"preset": "modern-tiny", "batch": 16, "length": 64},
    "mid": {"preset": "modern-mini", "batch": 16, "length": 128},
}
VOCABULARY, MASKED, STEPS, SKIPPED = 4096, 0.15, 12, 3


def engine(case: Mapping[str, Any]) -> dict[str, Any]:
    from cluster.deepspeed import engine_config

    return engine_config(
        batch_size=case["batch"],
        world_size=case["workers"],
        length_tokens=MODELS[case["model"]]["length"],
        zero_stage=case["stage"],
        micro_batch=case["micro"],
        clip_norm=1.0,
    )


def rank_main(folder: Path) -> None:
    """What each process runs: all cases of its number of workers, one after another, or the network's measurement."""
    import torch.distributed as dist

    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")
    found = []
    for case in json.loads((folder / "cases.json").read_text()):
        found.append(network() if case["model"] == "network" else one_run(case))
    if os.environ["RANK"] == "0":
        (folder / "found.json").write_text(json.dumps(found))


def network() -> dict[str, Any]:
    """{collective: {bytes of the whole: seconds, and processor seconds, of one rank}} of fp32 tensors."""
    import torch
    import torch.distributed as dist

    found: dict[str, Any] = {"all_reduce": {}, "all_gather": {}, "reduce_scatter": {}}
    for size in (1024, 1 << 20, 4 << 20, 16 << 20):
        whole = torch.ones(size // 4)
        part = torch.ones(size // 4 // dist.get_world_size())
        calls: dict[str, Callable[[], object]] = {
            "all_reduce": partial(dist.all_reduce, whole),
            "all_gather": partial(dist.all_gather_into_tensor, whole, part),
            "reduce_scatter": partial(dist.reduce_scatter_tensor, part, whole),
        }
        times = 50 if size < 1 << 20 else 12
        for name, call in calls.items():
            call()
            began, cpu = time.perf_counter(), time.process_time()
            for _ in range(times):
                call()
            wall = time.perf_counter() - began
            found[name][str(size)] = {"step": wall / times, "processor": (time.process_time() - cpu) / times}
    return found


class Collectives:
    """Counts the calls of torch's collectives, and their bytes; DeepSpeed calls them by these names."""

    NAMES = {
        "all_reduce": "all_reduce",
        "all_gather": "all_gather",
        "all_gather_into_tensor": "all_gather",
        "_all_gather_base": "all_gather",
        "reduce_scatter_tensor": "reduce_scatter",
        "_reduce_scatter_base": "reduce_scatter",
        "reduce_scatter": "reduce_scatter",
        "broadcast": "broadcast",
        "reduce": "reduce",
    }

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self._inside = False

    def __enter__(self) -> Collectives:
        import torch.distributed as dist

        self._before = {name: getattr(dist, name) for name in self.NAMES if hasattr(dist, name)}
        for name, function in self._before.items():
            setattr(dist, name, self._counting(name, function))
        return self

    def __exit__(self, *_: object) -> None:
        import torch.distributed as dist

        for name, function in self._before.items():
            setattr(dist, name, function)

    def _counting(self, name: str, function: Any) -> Any:
        import torch

        def size(value: Any) -> int:
            if isinstance(value, torch.Tensor):
                return value.numel() * value.element_size()
            return sum(map(size, value)) if isinstance(value, list | tuple) else 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            whole = max((size(value) for value in (*args, *kwargs.values())), default=0)  # of both sides the larger
            kind = self.NAMES[name]
            self.bytes[kind] = self.bytes.get(kind, 0) + whole
            self.calls[kind] = self.calls.get(kind, 0) + 1
            self._inside = True
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False

        return counted


def one_run(case: Mapping[str, Any]) -> dict[str, Any]:
    """A real run of a case: seconds, bytes by part, bytes sent, growth of the process."""
    import numpy as np
    import torch
    import torch.distributed as dist

    from modeling import loop as loops
    from modeling.architecture import model_config
    from modeling.checkpoint import build_model
    from modeling.loop import LoopConfig, fit
    from modeling.memory_use import largest, memory_use
    from modeling.records import Hooks
    from modeling.step import rank_rows
    from tasks.base import Runtime

    size, rank = MODELS[case["model"]], dist.get_rank() if dist.is_initialized() else 0
    config = model_config({"preset": size["preset"], "vocab_size": VOCABULARY})
    torch.manual_seed(0)
    model = build_model(config, LM)
    rows = rank_rows(case["batch"], rank, case["workers"])
    random = np.random.default_rng(0)
    ids = random.integers(5, VOCABULARY, (case["batch"], size["length"]))
    labels = np.where(random.random(ids.shape) < MASKED, ids, -100)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": np.ones(ids.shape, bool)}
    own = {name: array[rows.start : rows.stop] for name, array in batch.items()}
    counted, engines, moments, marks, held = Collectives(), [], [], [], []
    gc.collect()
    before = allocated() - sum(p.numel() * p.element_size() for p in model.parameters())
    start = loops.start_engine

    def started(*args: Any, **kwargs: Any) -> Any:
        """The engine itself, to look into; gradients are there right before its last `step`."""
        engines.append((start(*args, **kwargs), args[0]))
        made = engines[-1][0]
        step = made.step

        def looked(*a: Any, **k: Any) -> Any:
            if len(marks) == 3:
                moments.append(memory_use(made, args[0]))
                held.append(allocated())
            return step(*a, **k)

        made.step = looked
        made.module.register_forward_hook(lambda *_: held.append(allocated()) if len(marks) == 3 else None)
        return made

    def next_batch(step: int) -> dict[str, Any]:
        marks.append((time.perf_counter(), dict(counted.bytes), time.process_time(), dict(counted.calls)))
        if len(marks) == 4:
            moments.append(memory_use(*engines[0]))
        return own

    loops.start_engine = started
    try:
        with counted:
            result = fit(
                model,
                LoopConfig(steps=STEPS, batch_size=case["batch"], log_every_steps=1),
                next_batch,
                engine_config=engine(case),
                runtime=Runtime(checkpoint_every_seconds=1e9),
                hooks=Hooks(),
            )
    finally:
        loops.start_engine = start
    times = [b[0] - a[0] for a, b in zip(marks[SKIPPED:], marks[SKIPPED + 1 :], strict=False)]
    busy = (marks[-1][2] - marks[SKIPPED][2]) / (len(marks) - 1 - SKIPPED)
    every = [busy]
    if dist.is_initialized():
        every = [0.0] * case["workers"]
        dist.all_gather_object(every, busy)
    sent = {k: v - marks[-2][1].get(k, 0) for k, v in marks[-1][1].items()}
    return {
        "step_seconds": statistics.median(times),
        "fastest_seconds": min(times),
        "processor_seconds": sum(every),
        "parts_seconds": result.step_seconds,
        "bytes": largest(*moments),
        "calls": {kind: number - marks[-2][3].get(kind, 0) for kind, number in marks[-1][3].items()},
        "sent_bytes": {kind: size for kind, size in sent.items() if size > 4096},  # without counts and flags
        "held_bytes": max(held) - before,
    }


class MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def allocated() -> int:
    """Bytes that this process has from malloc and not given back: all tensors on a CPU, also those of autograd.

    The resident size would not do: what is freed stays with the process for the next tensor.
    """
    call = ctypes.CDLL(None).mallinfo2
    call.restype = MallocInfo
    found = call()
    return found.uordblks + found.hblkhd


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))
