"""Finetune: a pretrained model (or the same one from random weights) trained on a task's labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData, Cancelled
from modeling.architecture import TransformerConfig
from modeling.config import Config
from tasks.base import Artifact, Context, Model, Task, Tokenizer
from tasks.datasets import Dataset

if TYPE_CHECKING:
    from modeling.loop import FitResult
    from modeling.schedule import LoopConfig
    from tasks.downstream.encode import Encoder, Feature

MOST_ANSWER_TOKENS = 30


class FinetuneLoop(Config):
    """How long and how fast; shares instead of steps, since data sets differ in size by a thousand."""

    epochs: int = Field(3, ge=1, description="passes over the training rows")
    least_steps: int = Field(0, ge=0, description="a tiny data set is gone through more often, until so many steps")
    most_steps: int = Field(0, ge=0, description="a large one is cut off there; 0: never")
    batch_size: int = Field(32, ge=1, description="sequences per optimizer step")
    peak_lr: float = Field(1e-3, gt=0)
    warmup_share: float = Field(0.1, ge=0, le=1, description="of the steps, linear from 0 to peak_lr")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, ge=0, description="largest global gradient norm; 0: no clipping")
    precision: Literal["fp32", "bf16"] = "fp32"
    log_every_steps: int = Field(10, ge=1)

    def steps(self, examples: int) -> int:
        """Optimizer steps for so many sequences."""
        wanted = max(self.least_steps, self.epochs * -(-examples // self.batch_size))
        return min(wanted, self.most_steps) if self.most_steps else wanted

    def loop(self, examples: int, seed: int) -> LoopConfig:
        """The training loop's config for so many sequences."""
        from modeling.schedule import LoopConfig

        steps = self.steps(examples)
        return LoopConfig(
            steps=steps,
            batch_size=self.batch_size,
            peak_lr=self.peak_lr,
            warmup_steps=round(self.warmup_share * steps),
            schedule=self.schedule,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            precision=self.precision,
            log_every_steps=self.log_every_steps,
            seed=seed,
        )


class Finetune(Task):
    """All weights trained on a data set's train split; `init=None` starts from random ones, for comparison.

    Writes a model artifact: the weights, `head.json` (how to read the output), `training.json`,
    `metrics.jsonl`, and the tokenizer's files.
    """

    produces: ClassVar[str] = "model"

    dataset: Dataset
    tokenizer: Tokenizer
    init: Model | None = Field(None, description="the pretrained model; none: random initialisation")
    model: TransformerConfig | None = Field(None, description="shape; with init it is init's, and must not differ")
    loop: FinetuneLoop = FinetuneLoop()
    length_tokens: int = Field(128, ge=16, description="longest sequence; longer ones are cut or slid over")
    pooling: Literal["mean", "cls"] = Field("mean", description="how a sequence becomes one vector")
    head_dropout: float = Field(0.0, ge=0, lt=1, description="before the classifier")
    method: Literal["full"] = Field("full", description="which weights train: all of them")
    seed: int = Field(0, ge=0, description="of the head's (or all) weights, the order of rows, and dropout")

    @model_validator(mode="after")
    def _possible(self) -> Finetune:
        if self.init is None and self.model is None:
            raise BadConfig(
                "finetune: neither init nor model is given", "name a pretrained model or a shape for random weights"
            )
        if self.model is not None and self.length_tokens > self.model.max_length:
            raise BadConfig(
                f"finetune: length_tokens is {self.length_tokens}, more than model.max_length {self.model.max_length}",
                "lower length_tokens or raise model.max_length",
            )
        if self.runtime.workers != 1:
            raise BadConfig(
                f"finetune: runtime.workers is {self.runtime.workers}, expected 1",
                "fine-tuning runs in one process; give it more cpus instead",
            )
        return self

    def run(self, ctx: Context) -> Mapping[str, Any]:
        import json

        from modeling.checkpoint import load_transformer, save_model
        from tasks.datasets import read_rows
        from tasks.downstream.encode import Encoder

        data = ctx.input("dataset")
        facts = json.loads((data.path / "dataset.json").read_text(encoding="utf-8"))
        init = ctx.input("init") if self.init is not None else None
        tokenizer = ctx.input("tokenizer")
        if init is not None:
            same_tokenizer(tokenizer, init)
        encoder = Encoder(tokenizer.path, self.length_tokens)
        config = self._shape(init, encoder.vocab_size)
        rows = read_rows(data.path / "train.parquet")
        kind = facts["kind"]
        head: dict[str, Any] = {
            "kind": kind,
            "labels": facts["labels"],
            "task": facts["task"],
            "length_tokens": self.length_tokens,
            "pooling": self.pooling,
        }
        if kind == "span":
            features = encoder.spans(rows, training=True)
            head["most_answer_tokens"] = MOST_ANSWER_TOKENS
        else:
            features = encoder.texts(rows)
            if kind == "regression":
                features, head["label_mean"], head["label_std"] = standardise(features)
        if not features:
            raise BadData(
                f"task {facts['task']!r}: none of the {len(rows)} training rows gives a sequence with a label",
                "raise length_tokens or train_examples",
            )
        model = build(config, head, self.seed, self.head_dropout)
        if init is not None:
            load_transformer(init.path, model.transformer)
        result = self._fit(ctx, model, features, encoder, kind, bool(config.token_types))
        save_model(ctx.out, model, config)
        _write(ctx.out / "head.json", head)
        for name in ("tokenizer.json", "tokenizer-info.json"):
            (ctx.out / name).write_bytes((tokenizer.path / name).read_bytes())
        with (ctx.out / "metrics.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in result.history)
        start = "random" if init is None else "pretrained"
        final_loss = result.history[-1]["loss"] if result.history else 0.0
        loop = self.loop.loop(len(features), self.seed)
        _write(
            ctx.out / "training.json",
            {
                "task": facts["task"],
                "init": start,
                "seed": self.seed,
                "method": self.method,
                "loop": loop.model_dump(mode="json"),
                "steps": result.step,
                "rows": len(rows),
                "sequences": len(features),
                "tokens": result.tokens,
                "final_loss": final_loss,
            },
        )
        ctx.timing("tokens_per_second", result.tokens_per_second)
        return {"final_loss": final_loss, "steps": result.step, "tokens": result.tokens, "sequences": len(features)}

    def _shape(self, init: Artifact | None, vocab_size: int) -> TransformerConfig:
        """The model's config: init's own, or `model` with the tokenizer's vocabulary."""
        from modeling.checkpoint import load_config

        if init is None:
            assert self.model is not None
            return self.model.with_vocabulary(vocab_size)
        config = load_config(init.path)
        if self.model is not None:
            own = self.model.with_vocabulary(vocab_size).model_dump()
            found = config.model_dump()
            changed = [
                f"{name} {own[name]!r} (pretrained: {found[name]!r})" for name in own if own[name] != found[name]
            ]
            if changed:
                raise BadConfig(
                    f"finetune: model differs from the pretrained one in {', '.join(changed)}",
                    "leave model out, or give finetune and pretrain the same section",
                )
        if self.length_tokens > config.max_length:
            raise BadConfig(
                f"finetune: length_tokens is {self.length_tokens}, the model's max_length {config.max_length}",
                "lower length_tokens",
            )
        return config

    def _fit(
        self, ctx: Context, model: Any, features: list[Feature], encoder: Encoder, kind: str, token_types: bool
    ) -> FitResult:
        from cluster.deepspeed import engine_config
        from modeling.errors import TrainingStopped
        from modeling.loop import fit
        from tasks.downstream.encode import Batches, collate

        loop = self.loop.loop(len(features), self.seed)
        batches = Batches(features, self.loop.batch_size, self.seed)

        def on_log(record: Any) -> None:
            ctx.progress(record.step, loop.steps, "steps", loss=record.loss, tokens_per_second=record.tokens_per_second)
            ctx.metric(record.step, {"loss": record.loss, "learning_rate": record.learning_rate})

        try:
            return fit(
                model,
                loop,
                lambda step: collate(batches.of_step(step), kind, encoder.pad, token_types),
                engine_config=engine_config(
                    batch_size=min(loop.batch_size, len(features)),
                    world_size=1,
                    length_tokens=self.length_tokens,
                    zero_stage=ctx.runtime.zero_stage,
                    micro_batch=ctx.runtime.micro_batch,
                    clip_norm=loop.clip_norm,
                    offload_optimizer=ctx.runtime.offload_optimizer,
                ),
                runtime=ctx.runtime,
                checkpoint_dir=ctx.scratch / "checkpoints",
                on_log=on_log,
                should_stop=ctx.cancelled,
                on_checkpoint=lambda step: ctx.publish_scratch(),
                log=ctx.log,
            )
        except TrainingStopped as stopped:
            raise Cancelled(f"finetune: {stopped}") from stopped


def build(config: TransformerConfig, head: Mapping[str, Any], seed: int = 0, dropout: float = 0.0) -> Any:
    """The network that `head` (head.json) describes, with weights drawn from `seed`."""
    import torch

    from modeling.heads import SequenceClassifier, SpanExtractor

    torch.manual_seed(seed)
    if head["kind"] == "span":
        return SpanExtractor(config, head["most_answer_tokens"])
    labels = 1 if head["kind"] == "regression" else len(head["labels"])
    return SequenceClassifier(config, labels, head["pooling"], dropout)


def standardise(features: list[Feature]) -> tuple[list[Feature], float, float]:
    """Scores with mean 0 and deviation 1, so that the loss does not begin with learning their scale."""
    from dataclasses import replace

    import numpy as np

    labels = np.array([f.label for f in features], np.float64)
    mean, std = float(labels.mean()) if len(labels) else 0.0, float(labels.std()) if len(labels) else 1.0
    std = std or 1.0
    return [replace(f, label=(f.label - mean) / std) for f in features], mean, std


def same_tokenizer(tokenizer: Artifact, init: Artifact) -> None:
    """Raise BadConfig where the pretrained model came with another tokenizer than the one given."""
    name = "tokenizer.json"
    own = init.path / name
    if own.is_file() and own.read_bytes() != (tokenizer.path / name).read_bytes():
        raise BadConfig(
            "finetune: tokenizer is not the one that init was pretrained with (tokenizer.json differs)",
            "pass the tokenizer stage that made the pretraining examples",
        )


def _write(path: Path, value: Mapping[str, Any]) -> None:
    import json

    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
