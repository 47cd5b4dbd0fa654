"""What Pretrain and Finetune share: a worker group around `modeling.loop.fit`, its events in the stage's context.

`train` runs in the stage; `fit_on_rank` runs in each worker. Between them go events, plain dicts.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import BadConfig, Cancelled
from tasks.base import Artifact, Context, Runtime

if TYPE_CHECKING:
    from torch import nn

    from cluster.workers import RankContext, Work
    from modeling.architecture import ModelConfig
    from modeling.records import FitResult
    from modeling.schedule import LoopConfig
    from modeling.validation import HeldOut
    from tasks.samples import Sampler

TOKENIZER_FILES = ("tokenizer.json", "tokenizer-info.json")
TIMINGS = (
    "tokens_per_second",
    "mfu",
    "peak_rss_bytes",
    "resumed_from",
    "checkpoints",
    "checkpoint_seconds",
    "checkpoint_write_seconds",
    "validation_seconds",
)

MOST_RANKS = 16
"""Up to so many, each rank's memory is recorded beside the largest."""


def train(ctx: Context, work: Work, payload: Mapping[str, Any], *, steps: int) -> dict[str, Any]:
    """Run `work(payload, rank)` on the stage's workers and return what rank 0 returned.

    `steps` is what is known of the budget before it begins; 0: nothing.

    Progress, metrics, notes and checkpoints that `fit_on_rank` emits go to `ctx` while it runs. The
    result's `timings`, if any, go to `ctx.timing`.

    Raises:
        Cancelled: the run was asked to stop; the checkpoint is published.
    """
    from cluster.workers import run_group
    from modeling.errors import TrainingStopped

    planned = steps

    def on_event(event: dict[str, Any]) -> None:
        nonlocal planned
        kind = event["kind"]
        if kind == "log":
            planned = event["planned_steps"]
            values = {name: value for name, value in event["values"].items() if value is not None}
            ctx.metric(event["step"], values)
            ctx.progress(event["step"], planned, "steps", loss=values["loss"], rate=values["tokens_per_second"])
        elif kind == "measured":
            ctx.metric(event["step"], event["values"])
        elif kind == "file":
            ctx.file(event["name"], event["text"] if "text" in event else Path(event["path"]))
            if "path" in event:
                Path(event["path"]).unlink()
        elif kind == "placed":
            ctx.placed(event["facts"])
        elif kind == "history":
            for row in event["rows"]:  # those that are there already are dropped
                ctx.metric(row["step"], {name: x for name, x in row.items() if name != "step" and x is not None})
        elif kind == "checkpoint":
            ctx.publish_scratch()
        elif kind == "at-work":
            ctx.at_work(event["facts"])
        elif kind == "ranks":
            ctx.at_work({"ranks": event["ranks"]})
            places = ", ".join(f"{r['rank']}: process {r['pid']} on {r['host']}" for r in event["ranks"])
            ctx.log(f"ranks {places}")
        elif kind == "incident":
            ctx.publish_scratch()  # a later attempt, perhaps on another node, must know of it
            ctx.decided(event["error"], event["message"], event["decision"])
        elif kind == "note":
            ctx.log(event["message"])
        elif kind == "decision":
            ctx.log(f"{event['message']}: {event['decision']}")
            ctx.decided(event["error"], event["message"], event["decision"])

    runtime = ctx.runtime
    try:
        result = run_group(
            _on_rank,
            {"work": work, "payload": dict(payload)},
            workers=runtime.workers,
            cpus=runtime.cpus,
            gpus=runtime.gpus,
            resources=runtime.resources,
            on_event=on_event,
            should_stop=ctx.cancelled,
            storage=ctx.work / "ray-train",
            name=f"triptych-{uuid.uuid4().hex}",
            collective_timeout_seconds=runtime.collective_timeout_seconds,
            wait_for_room_seconds=runtime.wait_for_room_seconds,
        )
    except TrainingStopped as stopped:
        raise Cancelled(f"cancelled after step {stopped.step} of {planned or '?'}") from None
    for name, value in result.get("timings", {}).items():
        ctx.timing(name, value)
    return result


def _on_rank(payload: Mapping[str, Any], rank: RankContext) -> Any:
    """The stage's work, begun again where training was rolled back."""
    from modeling.loop import through_rollbacks

    return through_rollbacks(lambda: payload["work"](payload["payload"], rank))


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
    sampler: Sampler | None = None,
    watch_layers: bool = False,
    model_files: Mapping[str, bytes] | None = None,
    stable_dir: Path | None = None,
) -> FitResult:
    """`fit` as placed by `runtime`, with its events sent to the stage."""
    from modeling.guard import in_words
    from modeling.loop import fit
    from modeling.records import Hooks, Watch

    def on_log(record: Any) -> None:
        shown = {**record.row(), "tokens_per_second": record.tokens_per_second, "mfu": record.mfu}
        shown |= {f"step_seconds/{part}": seconds for part, seconds in record.step_seconds.items()}
        rank.emit({"kind": "log", "step": shown.pop("step"), "planned_steps": record.planned_steps, "values": shown})

    def on_updates(step: int, layers: Mapping[str, Sequence[float]]) -> None:
        from modeling.layer_updates import FIGURES

        values = {f"{name}/{layer}": x for layer, row in layers.items() for name, x in zip(FIGURES, row, strict=True)}
        rank.emit({"kind": "measured", "step": step, "values": values})

    def on_samples(step: int, samples: list[Any]) -> None:
        from tasks.samples import as_html

        if samples:
            text = as_html(step, samples)
            rank.emit({"kind": "file", "name": f"samples/step-{step:08d}.html", "text": text})

    def on_decision(error: str, message: str, decision: str) -> None:
        rank.emit({"kind": "decision", "error": error, "message": message, "decision": decision})

    def on_incident(incident: Mapping[str, Any]) -> None:
        message = f"step {incident['step']}, batch {incident['batch']}: {incident['cause']}"
        rank.emit({"kind": "incident", "error": incident["kind"], "message": message, "decision": in_words(incident)})

    config = placed_engine(
        runtime,
        batch_size=loop.batch_size,
        clip_norm=loop.clip_norm,
        world_size=rank.world_size,
        length_tokens=length_tokens,
    )
    predicted = predicted_memory(model, config, loop)
    _show_engine(rank, config, predicted)

    def on_memory(ranks: Sequence[Mapping[str, int]]) -> None:
        beside = {f"memory/predicted/{part}": float(size) for part, size in predicted.items()}
        rank.emit({"kind": "measured", "step": 0, "values": {**memory_figures(ranks), **beside}})

    split = {
        "micro_batch": config["train_micro_batch_size_per_gpu"],
        "accumulation": config["gradient_accumulation_steps"],
        "workers": rank.world_size,
        "batch_size": loop.batch_size,
    }
    rank.emit({"kind": "at-work", "facts": split})
    return fit(
        model,
        loop,
        next_batch,
        engine_config=config,
        runtime=runtime,
        activation_checkpointing=runtime.activation_checkpointing,
        checkpoint_dir=checkpoint_dir,
        hooks=Hooks(
            on_log=on_log,
            should_stop=rank.should_stop,
            on_resume=lambda rows: rank.emit({"kind": "history", "rows": list(rows)}),
            on_checkpoint=lambda step: rank.emit({"kind": "checkpoint", "step": step}),
            note=lambda message: rank.emit({"kind": "note", "message": message}),
            on_decision=on_decision,
            on_updates=on_updates,
            on_memory=on_memory,
            on_samples=on_samples,
            on_trace=lambda path: rank.emit({"kind": "file", "name": f"profile/{path.name}", "path": str(path)}),
            on_incident=on_incident,
        ),
        flops_per_token=flops_per_token,
        held_out=held_out,
        watch=Watch(
            layer_updates=runtime.layer_updates if watch_layers else 0,
            samples=runtime.samples if sampler is not None else 0,
            sample=sampler or Watch.sample,
            profile=runtime.profiled,
            trace=checkpoint_dir / "trace.json.gz" if checkpoint_dir else None,
        ),
        model_files=model_files,
        stable_dir=stable_dir,
    )


def predicted_memory(model: nn.Module, config: Mapping[str, Any], loop: LoopConfig) -> dict[str, int]:
    """Bytes of one worker by part of ZeRO, as the formulas have them (docs/placement.md), before anything is placed."""
    from modeling.memory import Placed, predicted_parts

    named = list(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in named}
    trained = {name: shapes[name] for name, parameter in named if parameter.requires_grad}
    return predicted_parts(shapes, trained, Placed.of(config), state_name(loop.optimizer))


def state_name(optimizer: Any) -> str:
    """An optimizer's settings as `modeling.memory.optimizer_bytes` calls what it keeps."""
    return str(optimizer.kind) + ("-mean" if getattr(optimizer, "beta1", 0.0) else "")


def _show_engine(rank: RankContext, config: Mapping[str, Any], predicted: Mapping[str, int]) -> None:
    """DeepSpeed's configuration, and the memory predicted for it, into the stage's log, manifest and tracker."""
    micro, accumulation = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    text = json.dumps(config, indent=2, sort_keys=True)
    workers = f"{rank.world_size} worker{'s' if rank.world_size > 1 else ''}"
    split = f"{workers}, {accumulation} × {micro} sequences each a step"
    rank.emit({"kind": "note", "message": f"{split}; DeepSpeed's configuration:\n{text}"})
    facts = {"micro_batch_used": micro, "gradient_accumulation_steps": accumulation, "deepspeed_config": dict(config)}
    facts["memory_predicted"] = dict(predicted)
    rank.emit({"kind": "placed", "facts": facts})
    rank.emit({"kind": "file", "name": "deepspeed.json", "text": text + "\n"})


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


def model_files(rank: RankContext, config: ModelConfig, head: Mapping[str, Any], out: Path) -> dict[str, bytes]:
    """What makes a usable model of a checkpoint's weights: its config, and the tokenizer's files that are in `out`."""
    from modeling.checkpoint import CONFIG, config_file

    if rank.rank:
        return {}
    tokenizer = [out / name for name in TOKENIZER_FILES]
    return {CONFIG: config_file(config, head), **{p.name: p.read_bytes() for p in tokenizer if p.is_file()}}


def write_history(out: Path, result: FitResult) -> None:
    """metrics.jsonl, a line per logged step; incidents.jsonl, one per step that went wrong, where there were any."""
    from modeling.guard import write_incidents

    lines = [json.dumps(row, sort_keys=True) for row in result.history]
    (out / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if result.incidents:
        write_incidents(out, result.incidents)


def timings(result: FitResult) -> dict[str, float]:
    """The measured figures of a fit, for the manifest's `timings`."""
    found = {name: getattr(result, name) for name in TIMINGS}
    found.update({f"step_{part}_seconds": seconds for part, seconds in result.step_seconds.items()})
    found.update(memory_figures(result.memory))
    return {name: float(value) for name, value in found.items() if value is not None}


def memory_figures(ranks: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """{memory/part: bytes} of the rank that has most, and memory/rank-n/part of each of several."""
    found = {f"memory/{part}": float(max(rank[part] for rank in ranks)) for part in (ranks[0] if ranks else ())}
    if 1 < len(ranks) <= MOST_RANKS:
        found |= {f"memory/rank-{n}/{part}": float(b) for n, rank in enumerate(ranks) for part, b in rank.items()}
    return found


def write_watched(out: Path, result: FitResult) -> None:
    """`updates.jsonl` and `samples.json`, where there are any: what was seen of layers and predictions on the way."""
    if result.updates:
        lines = (json.dumps(row, sort_keys=True) for row in result.updates)
        (out / "updates.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if any(row["samples"] for row in result.samples):
        text = json.dumps(result.samples, ensure_ascii=False, indent=1, sort_keys=True)
        (out / "samples.json").write_text(text + "\n", encoding="utf-8")


def same_tokenizer(stage: str, tokenizer: Artifact, init: Artifact) -> None:
    """Raise BadConfig where the model to begin from came with another tokenizer than the one given."""
    name = "tokenizer.json"
    own = init.path / name
    if own.is_file() and own.read_bytes() != (tokenizer.path / name).read_bytes():
        raise BadConfig(
            f"{stage}: tokenizer is not the one that init was pretrained with (tokenizer.json differs)",
            "pass the tokenizer stage that made the pretraining examples",
        )
