"""What Pretrain and Finetune share: a worker group around `modeling.loop.fit`, its events in the stage's context.

`train` runs in the stage; `fit_on_rank` runs in each worker. Between them go events, plain dicts.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import BadConfig, Cancelled
from tasks.base import Artifact, Context, Runtime

if TYPE_CHECKING:
    from torch import nn

    from cluster.workers import RankContext, Work
    from modeling.records import FitResult
    from modeling.schedule import LoopConfig
    from modeling.validation import HeldOut

TIMINGS = (
    "tokens_per_second",
    "mfu",
    "peak_rss_bytes",
    "resumed_from",
    "checkpoints",
    "checkpoint_seconds",
    "validation_seconds",
)


def train(ctx: Context, work: Work, payload: Mapping[str, Any], *, steps: int) -> dict[str, Any]:
    """Run `work(payload, rank)` on the stage's workers and return what rank 0 returned.

    Progress, metrics, notes and checkpoints that `fit_on_rank` emits go to `ctx` while it runs. The
    result's `timings`, if any, go to `ctx.timing`.

    Raises:
        Cancelled: the run was asked to stop; the checkpoint is published.
    """
    from cluster.workers import run_group
    from modeling.errors import TrainingStopped

    def on_event(event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "log":
            values = {name: value for name, value in event["values"].items() if value is not None}
            ctx.metric(event["step"], values)
            ctx.progress(event["step"], steps, "steps", loss=values["loss"], rate=values["tokens_per_second"])
        elif kind == "checkpoint":
            ctx.publish_scratch()
        elif kind == "note":
            ctx.log(event["message"])

    runtime = ctx.runtime
    try:
        result = run_group(
            work,
            dict(payload),
            workers=runtime.workers,
            cpus=runtime.cpus,
            gpus=runtime.gpus,
            resources=runtime.resources,
            on_event=on_event,
            should_stop=ctx.cancelled,
            storage=ctx.work / "ray-train",
            name=f"triptych-{uuid.uuid4().hex}",
        )
    except TrainingStopped as stopped:
        raise Cancelled(f"cancelled after step {stopped.step} of {steps}") from None
    for name, value in result.get("timings", {}).items():
        ctx.timing(name, value)
    return result


def fit_on_rank(
    rank: RankContext,
    model: nn.Module,
    loop: LoopConfig,
    next_batch: Callable[[int], dict[str, Any]],
    *,
    runtime: Runtime,
    length_tokens: int,
    checkpoint_dir: Path | None = None,
    flops_per_token: float | None = None,
    held_out: HeldOut | None = None,
) -> FitResult:
    """`fit` as placed by `runtime`, with its events sent to the stage."""
    from modeling.loop import fit
    from modeling.records import Hooks

    def on_log(record: Any) -> None:
        shown = {**record.row(), "tokens_per_second": record.tokens_per_second, "mfu": record.mfu}
        rank.emit({"kind": "log", "step": shown.pop("step"), "values": shown})

    return fit(
        model,
        loop,
        next_batch,
        engine_config=placed_engine(
            runtime,
            batch_size=loop.batch_size,
            clip_norm=loop.clip_norm,
            world_size=rank.world_size,
            length_tokens=length_tokens,
        ),
        runtime=runtime,
        activation_checkpointing=runtime.activation_checkpointing,
        checkpoint_dir=checkpoint_dir,
        hooks=Hooks(
            on_log=on_log,
            should_stop=rank.should_stop,
            on_checkpoint=lambda step: rank.emit({"kind": "checkpoint", "step": step}),
            note=lambda message: rank.emit({"kind": "note", "message": message}),
        ),
        flops_per_token=flops_per_token,
        held_out=held_out,
    )


def placed_engine(
    runtime: Runtime, *, batch_size: int, clip_norm: float, world_size: int, length_tokens: int
) -> dict[str, Any]:
    """DeepSpeed's configuration of a run as placed by `runtime`; planning reads the same (`pipelines.capacity`)."""
    from cluster.deepspeed import engine_config

    return engine_config(
        batch_size=batch_size,
        world_size=world_size,
        length_tokens=length_tokens,
        zero_stage=runtime.zero_stage,
        micro_batch=runtime.micro_batch,
        clip_norm=clip_norm,
        offload_optimizer=runtime.offload_optimizer,
        offload_parameters=runtime.offload_parameters,
        nvme_path=runtime.nvme_path,
        overlap_comm=runtime.overlap_comm and runtime.gpus > 0,
        bucket_elements=runtime.bucket_elements,
        own=runtime.deepspeed,
    )


def timings(result: FitResult) -> dict[str, float]:
    """The measured figures of a fit, for the manifest's `timings`."""
    found = {name: getattr(result, name) for name in TIMINGS}
    found.update({f"step_{part}_seconds": seconds for part, seconds in result.step_seconds.items()})
    return {name: float(value) for name, value in found.items() if value is not None}


def same_tokenizer(stage: str, tokenizer: Artifact, init: Artifact) -> None:
    """Raise BadConfig where the model to begin from came with another tokenizer than the one given."""
    name = "tokenizer.json"
    own = init.path / name
    if own.is_file() and own.read_bytes() != (tokenizer.path / name).read_bytes():
        raise BadConfig(
            f"{stage}: tokenizer is not the one that init was pretrained with (tokenizer.json differs)",
            "pass the tokenizer stage that made the pretraining examples",
        )
