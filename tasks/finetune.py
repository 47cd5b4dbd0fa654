"""Finetune: a pretrained model, or the same one from random weights, trained on a task's labels.

Any trunk will do: an encoder, a decoder, the encoder of an encoder-decoder, or the features of word vectors and
ELMo, which stay as they are. The artifact is a model's folder, as Pretrain's, with `head.json` (how to read the
output). Which rows make a step, the order of rows and the head's first weights are functions of the seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData
from modeling.architecture import AnyModel
from modeling.config import Config
from modeling.guard import GuardConfig
from modeling.optimizers.settings import AdamW, AnyOptimizer, check_stage
from modeling.schedule import LoopConfig, Precision, Schedule
from modeling.trunks import check_language_model, check_pooling
from tasks.base import Context, Model, Task, Tokenizer
from tasks.datasets import Dataset, LabelledData, asks_for_spans
from tasks.pretrain import shape_of
from tasks.training import fit_on_rank, model_files, same_tokenizer, timings, train, write_history

if TYPE_CHECKING:
    from cluster.workers import RankContext
    from modeling.validation import HeldOut
    from tasks.downstream.encode import Encoder, Feature
    from tasks.downstream.spec import Row

MOST_ANSWER_TOKENS = 30
VALIDATION = "validation"
"""The split that is looked at on the way."""
CHUNK = 64
"""Validation sequences of a forward pass. Not placement: sums of other chunks would round otherwise."""


class FinetuneLoop(Config):
    """How long and how fast; shares instead of steps, since data sets differ in size by a thousand."""

    epochs: int = Field(3, ge=1, description="passes over the training rows")
    least_steps: int = Field(0, ge=0, description="a tiny data set is gone through more often, until so many steps")
    most_steps: int = Field(0, ge=0, description="a large one is cut off there; 0: never")
    batch_size: int = Field(32, ge=1, description="sequences per optimizer step")
    peak_lr: float = Field(1e-3, gt=0)
    warmup_share: float = Field(0.1, ge=0, le=1, description="of the steps, linear from 0 to peak_lr")
    schedule: Schedule = "linear"
    optimizer: AnyOptimizer = AdamW()
    clip_norm: float = Field(1.0, ge=0, description="largest global gradient norm; 0: no clipping")
    precision: Precision = "fp32"
    log_every_steps: int = Field(10, ge=1)
    validate_every_steps: int = Field(
        0, ge=0, description="loss on the validation rows on the way and at the end; 0: never"
    )
    patience: int = Field(0, ge=0, description="stop early after so many validations that are no better; 0: never")
    min_delta: float = Field(0.0, ge=0, description="what a validation loss must be lower by to be better")
    keep: Literal["last", "best"] = Field(
        "last", description="weights to keep; best: scores on the rows that chose them flatter a little"
    )
    guard: GuardConfig = GuardConfig()

    @model_validator(mode="after")
    def _possible(self) -> FinetuneLoop:
        """What the training loop would refuse."""
        self.loop(self.batch_size, 0)
        return self

    def steps(self, examples: int) -> int:
        """Optimizer steps for so many sequences."""
        wanted = max(self.least_steps, self.epochs * -(-examples // self.batch_size))
        return min(wanted, self.most_steps) if self.most_steps else wanted

    def loop(self, examples: int, seed: int) -> LoopConfig:
        """The training loop's config for so many sequences."""
        steps = self.steps(examples)
        return LoopConfig(
            steps=steps,
            batch_size=min(self.batch_size, examples),
            peak_lr=self.peak_lr,
            warmup_share=self.warmup_share,
            schedule=self.schedule,
            optimizer=self.optimizer,
            clip_norm=self.clip_norm,
            precision=self.precision,
            log_every_steps=self.log_every_steps,
            validate_every_steps=self.validate_every_steps,
            patience=self.patience,
            min_delta=self.min_delta,
            keep=self.keep,
            seed=seed,
            guard=self.guard,
        )


class Finetune(Task):
    """A model trained on a data set's train split; `init=None` starts from random weights, for comparison.

    Writes a model artifact: the weights, `head.json` (how to read the output), `training.json`,
    `metrics.jsonl`, and the tokenizer's files.
    """

    produces: ClassVar[str] = "model"

    dataset: Dataset
    tokenizer: Tokenizer
    init: Model | None = Field(None, description="the pretrained model; none: random initialisation")
    like: Model | None = Field(None, description="without init: random weights in this model's shape")
    model: AnyModel | None = Field(None, description="shape; with init or like it is theirs, and must not differ")
    loop: FinetuneLoop = FinetuneLoop()
    length_tokens: int = Field(128, ge=16, description="longest sequence; longer ones are cut or slid over")
    pooling: Literal["mean", "cls", "last"] = Field(
        "mean",
        description="how a sequence becomes one vector: of all tokens, of the first (BERT; no decoder's), of the last "
        "(GPT)",
    )
    head_dropout: float = Field(0.0, ge=0, lt=1, description="before the classifier")
    lm_weight: float = Field(
        0.0,
        ge=0,
        description="of the loss on the sequence's own next tokens beside the task's, for a decoder (GPT: 0.5)",
    )
    both_orders: bool = Field(
        False, description="read a pair that says the same in either order in both, and add their vectors (GPT)"
    )
    method: Literal["full", "probe"] = Field("full", description="which weights train: all, or the head's alone")
    seed: int = Field(0, ge=0, description="of the head's (or all) weights, the order of rows, and dropout")

    @model_validator(mode="after")
    def _possible(self) -> Finetune:
        check_stage(self.loop.optimizer, self.runtime.zero_stage)
        if self.init is None and self.like is None and self.model is None:
            raise BadConfig(
                "finetune: neither init nor model is given", "name a pretrained model or a shape for random weights"
            )
        if self.init is not None and self.like is not None:
            raise BadConfig(
                "finetune: both init and like are given", "init begins from a model's weights, like does not"
            )
        spans = isinstance(self.dataset, LabelledData) and asks_for_spans(self.dataset.task)
        if self.model is not None and not spans:
            check_pooling(self.model, self.pooling)
            if self.lm_weight:
                check_language_model(self.model)
        if self.model is not None and self.length_tokens > self.model.max_length:
            raise BadConfig(
                f"finetune: length_tokens is {self.length_tokens}, more than model.max_length {self.model.max_length}",
                "lower length_tokens or raise model.max_length",
            )
        return self

    def run(self, ctx: Context) -> Mapping[str, Any]:
        import json

        data, tokenizer = ctx.input("dataset").path, ctx.input("tokenizer")
        init = ctx.input("init") if self.init is not None else None
        if init is not None:
            same_tokenizer("finetune", tokenizer, init)
        facts = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
        info = json.loads((tokenizer.path / "tokenizer-info.json").read_text(encoding="utf-8"))
        head: dict[str, Any] = {
            "kind": facts["kind"],
            "labels": facts["labels"],
            "task": facts["task"],
            "length_tokens": self.length_tokens,
            "pooling": self.pooling,
            "both_orders": self.both_orders and facts.get("symmetric", False),
        }
        if head["kind"] == "span":
            head["most_answer_tokens"] = MOST_ANSWER_TOKENS
        if self.loop.validate_every_steps and not facts["splits"].get(VALIDATION):
            raise BadConfig(
                f"finetune: loop.validate_every_steps is set, and task {facts['task']!r} has no {VALIDATION} rows",
                "set it to 0",
            )
        for name in ("tokenizer.json", "tokenizer-info.json"):
            (ctx.out / name).write_bytes((tokenizer.path / name).read_bytes())
        shaped = init if self.like is None else ctx.input("like")
        config = shape_of(self.model, shaped, int(info["vocab_size"]), "finetune")
        if self.length_tokens > config.max_length:
            raise BadConfig(
                f"finetune: length_tokens is {self.length_tokens}, the model's max_length {config.max_length}",
                "lower length_tokens",
            )
        payload = {
            "model": config,
            "loop": self.loop,
            "head": head,
            "head_dropout": self.head_dropout,
            "lm_weight": self.lm_weight,
            "method": self.method,
            "seed": self.seed,
            "data": str(data),
            "init": str(init.path) if init is not None else None,
            "out": str(ctx.out),
            "scratch": str(ctx.scratch),
            "runtime": ctx.runtime,
        }
        rows = int(facts["splits"]["train"])
        return train(ctx, finetune_on_rank, payload, steps=self.loop.steps(rows))["metrics"]


def finetune_on_rank(payload: dict[str, Any], rank: RankContext) -> dict[str, Any]:
    """What every worker runs. Rank 0 writes the model and returns {metrics, timings}."""
    from modeling.checkpoint import NO_HEAD, load_transformer, save_model
    from modeling.step import SAMPLE_IDS, rank_rows
    from tasks.datasets import read_rows
    from tasks.downstream.encode import Batches, Encoder, collate

    out, config, head, seed = Path(payload["out"]), payload["model"], dict(payload["head"]), payload["seed"]
    train_rows = read_rows(Path(payload["data"]) / "train.parquet")
    encoder = Encoder(out, head["length_tokens"])
    features = _features(train_rows, encoder, head)
    token_types = getattr(config, "token_types", 0) > 1
    model = build(config, head, seed, payload["head_dropout"], payload["lm_weight"])
    if payload["init"] is not None:
        load_transformer(Path(payload["init"]), model.transformer)
    else:
        model.transformer.requires_grad_(True)  # word vectors and ELMo are frozen features only once they have learnt
    if payload["method"] == "probe":
        model.transformer.requires_grad_(False)
    batches = Batches(features, payload["loop"].batch_size, seed)

    def next_batch(step: int) -> dict[str, Any]:
        found = batches.indices(step)
        rows = rank_rows(len(found), rank.rank, rank.world_size)
        own = found[rows.start : rows.stop]
        batch = collate([features[i] for i in own], head["kind"], encoder.pad, token_types)
        return {**batch, SAMPLE_IDS: own}

    loop = payload["loop"].loop(len(features), seed)
    validation = None
    if loop.validate_every_steps:
        rows = read_rows(Path(payload["data"]) / f"{VALIDATION}.parquet")
        validation = _held_out(rows, encoder, head, token_types)
    result = fit_on_rank(
        rank,
        model,
        loop,
        next_batch,
        runtime=payload["runtime"],
        length_tokens=head["length_tokens"],
        checkpoint_dir=Path(payload["scratch"]),
        held_out=validation,
        model_files=model_files(rank, config, NO_HEAD, out),
    )
    if rank.rank:
        return {}
    save_model(out, model, config)
    _write(out / "head.json", head)
    write_history(out, result)
    metrics = {
        "loss": result.history[-1]["loss"],
        "steps": result.step,
        "tokens": result.tokens,
        "rows": len(train_rows),
        "sequences": len(features),
    }
    if validation is not None:
        metrics |= {**result.validation, "best_step": result.best_step}
    note = {
        "task": head["task"],
        "init": "random" if payload["init"] is None else "pretrained",
        "seed": seed,
        "method": payload["method"],
        "loop": loop.model_dump(mode="json"),
        "precision": result.precision,
        "final": metrics,
    }
    if validation is not None:
        note["stopped_early"] = result.stopped_early
    _write(out / "training.json", note)
    return {"metrics": metrics, "timings": timings(result)}


def _features(rows: list[Row], encoder: Encoder, head: dict[str, Any]) -> list[Feature]:
    """The training sequences; for regression the labels' scale goes into `head`. BadData where there are none."""
    features = _sequences(rows, encoder, head, "training", "raise length_tokens or train_examples")
    if head["kind"] == "regression":
        features, head["label_mean"], head["label_std"] = standardise(features)
    return features


def _sequences(rows: list[Row], encoder: Encoder, head: Mapping[str, Any], split: str, remedy: str) -> list[Feature]:
    """The labelled sequences of `rows`. Raises BadData where there are none."""
    features = (
        encoder.spans(rows, training=True)
        if head["kind"] == "span"
        else encoder.texts(rows, head.get("both_orders", False))
    )
    if not features:
        raise BadData(
            f"task {head['task']!r}: none of the {len(rows)} {split} rows gives a sequence with a label", remedy
        )
    return features


def _held_out(rows: list[Row], encoder: Encoder, head: Mapping[str, Any], token_types: bool) -> HeldOut:
    """The labelled sequences of `rows` for the training loop, by length; scores on the training rows' scale."""
    from dataclasses import replace

    from modeling.validation import HeldOut
    from tasks.downstream.encode import collate

    remedy = "raise length_tokens or validation_examples, or set loop.validate_every_steps=0"
    features = _sequences(rows, encoder, head, "validation", remedy)
    if head["kind"] == "regression":
        features = [replace(f, label=(f.label - head["label_mean"]) / head["label_std"]) for f in features]
    features.sort(key=lambda feature: len(feature.ids))

    def chunk(number: int) -> dict[str, Any]:
        return collate(features[number * CHUNK : (number + 1) * CHUNK], head["kind"], encoder.pad, token_types)

    return HeldOut(-(-len(features) // CHUNK), chunk)


def build(config: Any, head: Mapping[str, Any], seed: int = 0, dropout: float = 0.0, lm_weight: float = 0.0) -> Any:
    """The network that `head` (head.json) describes, with weights drawn from `seed`."""
    import torch

    from modeling.heads.classification import SequenceClassifier, SpanExtractor

    torch.manual_seed(seed)
    if head["kind"] == "span":
        if lm_weight:
            raise BadConfig("finetune: lm_weight is for tasks with a label or a score, not for spans", "set it to 0")
        return SpanExtractor(config, head["most_answer_tokens"])
    labels = 1 if head["kind"] == "regression" else len(head["labels"])
    return SequenceClassifier(config, labels, head["pooling"], dropout, lm_weight)


def standardise(features: list[Feature]) -> tuple[list[Feature], float, float]:
    """Scores with mean 0 and deviation 1, so that the loss does not begin with learning their scale."""
    from dataclasses import replace

    import numpy as np

    labels = np.array([f.label for f in features], np.float64)
    mean, std = float(labels.mean()) if len(labels) else 0.0, float(labels.std()) if len(labels) else 1.0
    std = std or 1.0
    return [replace(f, label=(f.label - mean) / std) for f in features], mean, std


def _write(path: Path, value: Mapping[str, Any]) -> None:
    import json

    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
