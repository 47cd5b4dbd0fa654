"""Pretraining without Ray: `torchrun --nproc-per-node N -m tasks.pretrain_job JOB [key=value …]`.

JOB is a folder that `triptych pack` wrote: the examples, the tokenizer and the stage's config. What runs is the stage
itself (`tasks.pretrain.pretrain_on_rank`), so JOB/model gets the files, and on as many workers the bytes, that a run
under Ray makes. A machine for it needs this code, torch, deepspeed, numpy, pyarrow, pydantic and safetensors; without
the package tokenizers there are no samples of text and no bits per byte.

torchrun says how many workers there are, on how many nodes; `key=value` sets other placement (`zero_stage=2`). The same
command again goes on from the last checkpoint in JOB/scratch. On several nodes JOB lies on a disk that all of them see.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from cluster.errors import BadConfig, UserError
from modeling.config import section
from modeling.errors import BadStep, ConfigError, TrainingStopped
from tasks.base import Artifact, Edge, Runtime
from tasks.pretrain import Pretrain, pretrain_on_rank

JOB_FILE = "job.json"
JOB_FORMAT = 1


def write_job(folder: Path, config: Mapping[str, Any], runtime: Runtime, inputs: Mapping[str, Any], stage: str) -> None:
    """Write JOB's file; the inputs' folders stand beside it, by the names of their fields.

    Args:
        config: the stage's canonical config.
        inputs: {field: {key, kind}}.
    """
    job = {
        "format": JOB_FORMAT,
        "stage": stage,
        "config": dict(config),
        "placement": runtime.model_dump(mode="json"),
        "inputs": dict(inputs),
    }
    (folder / JOB_FILE).write_text(json.dumps(job, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@dataclass
class JobContext:
    """What `Pretrain.payload` sees of a stage: the job's folders."""

    folder: Path
    out: Path
    runtime: Runtime

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def input(self, field: str) -> Artifact:
        return Artifact(key=field, kind=field, path=self.folder / field, config={}, metrics={}, inputs={})


def read_job(folder: Path, words: Iterable[str], world_size: int, gpus: bool) -> tuple[Pretrain, Runtime]:
    """The stage and its placement: the job's own, `words`, and as many workers as there are.

    Raises:
        BadConfig, ConfigError: no job, one of another version, or words that set nothing of placement.
    """
    path = folder / JOB_FILE
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadConfig(f"{path}: not readable ({error})", "give a folder that `triptych pack` wrote") from None
    if job.get("format") != JOB_FORMAT:
        raise BadConfig(f"{path}: format {job.get('format')}, expected {JOB_FORMAT}", "pack the job with this code")
    edges = {field: Edge(facts["key"], facts["kind"]) for field, facts in job["inputs"].items()}
    placement = {**job["placement"], "workers": world_size, "gpus": 1 if gpus else 0}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name in ("workers", "gpus"):
            raise BadConfig(f"{word!r}: expected placement as key=value", "the number of workers is torchrun's")
        try:
            placement[name] = json.loads(text)
        except ValueError:
            placement[name] = text
    return section(Pretrain, {**job["config"], **edges}), section(Runtime, placement)


def train_job(folder: Path, words: Iterable[str]) -> dict[str, Any]:
    """Every rank calls it; rank 0 gets the metrics."""
    import torch

    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    gpus = torch.cuda.is_available()
    stage, runtime = read_job(folder, words, world_size, gpus)
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpus else "cpu")
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if world_size > 1:
        patience = timedelta(seconds=runtime.collective_timeout_seconds)
        torch.distributed.init_process_group("nccl" if gpus else "gloo", timeout=patience)
    with tempfile.TemporaryDirectory() as unused:
        # Only rank 0 writes; the others look at the same inputs.
        context = JobContext(folder, folder / "model" if rank == 0 else Path(unused), runtime)
        for place in (context.out, context.scratch):
            place.mkdir(parents=True, exist_ok=True)
        try:
            return _train(stage, context, rank, world_size)
        finally:
            if world_size > 1:
                torch.distributed.destroy_process_group()


def _train(stage: Pretrain, context: JobContext, rank: int, world_size: int) -> dict[str, Any]:
    from cluster.workers import RankContext
    from modeling.loop import through_rollbacks

    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):  # torchrun passes a Ctrl-C on as SIGTERM
        signal.signal(number, lambda number, frame: asked.append(number))
    payload = stage.payload(context)
    context_of_rank = RankContext(rank, world_size, _show, lambda: bool(asked))
    return through_rollbacks(lambda: pretrain_on_rank(payload, context_of_rank))


def _show(event: Mapping[str, Any]) -> None:
    """Rank 0's events as lines."""
    if event["kind"] == "log":
        values = {name: x for name, x in event["values"].items() if isinstance(x, int | float) and "/" not in name}
        figures = "  ".join(f"{name} {value:.6g}" for name, value in values.items())
        print(f"step {event['step']}  {figures}", flush=True)
    elif event["kind"] == "note":
        print(event["message"], flush=True)
    elif event["kind"] == "decision":
        print(f"{event['message']}: {event['decision']}", flush=True)


def main(arguments: list[str]) -> int:
    """Exit codes: 0 done, 1 training failed, 2 the call is wrong, 130 stopped after a checkpoint."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    folder, *words = arguments
    try:
        result = train_job(Path(folder), words)
    except (UserError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BadStep as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except TrainingStopped as stopped:
        print(f"stopped after step {stopped.step}; the same command goes on", file=sys.stderr)
        return 130
    if result:
        print(json.dumps(result["metrics"], indent=2, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
