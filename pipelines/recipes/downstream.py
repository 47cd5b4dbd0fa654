"""Fine-tuning and evaluation as every recipe does it: each task and seed, pretrained and from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_serializer, model_validator

from modeling.config import Config, section
from modeling.errors import ConfigError
from pipelines.graph import Registration
from tasks.base import Runtime, Task
from tasks.datasets import LabelledData, asks_for_spans, needs_corpus
from tasks.downstream import DOWNSTREAM
from tasks.evaluate import Evaluate
from tasks.finetune import Finetune, FinetuneLoop


class TaskSettings(FinetuneLoop):
    """What is other for one task: of these fields the given ones count, over `finetune.loop` and its neighbours."""

    length_tokens: int = Field(128, ge=16, description="longest sequence")
    train_examples: int = Field(0, ge=0, description="labels to train on; 0: all")
    validation_examples: int = Field(0, ge=0, description="rows to measure on; 0: all")

    @model_validator(mode="after")
    def _possible(self) -> TaskSettings:
        return self  # whether it is, shows with the rest of the loop: DownstreamSettings

    @model_serializer
    def given(self) -> dict[str, Any]:
        """The given fields alone, of the sections among them, too."""
        values = {name: getattr(self, name) for name in sorted(self.model_fields_set)}
        return {n: v.model_dump(exclude_unset=True) if isinstance(v, Config) else v for n, v in values.items()}


class DownstreamSettings(Config):
    """How the downstream tasks are learnt; `of` changes single tasks: `finetune.of.cola.epochs=5`."""

    seeds: int = Field(3, ge=1, description="fine-tuning runs a task; the median counts")
    scratch: bool = Field(True, description="also train the same model from random initialisation")
    length_tokens: int = Field(128, ge=16, description="longest sequence")
    pooling: Literal["mean", "cls", "last"] = Field(
        "mean", description="how a sequence becomes one vector: of all tokens, of the first (no decoder's), of the last"
    )
    head_dropout: float = Field(0.0, ge=0, lt=1, description="before the classifier")
    lm_weight: float = Field(0.0, ge=0, description="of the loss on next tokens beside the label's; of a decoder")
    both_orders: bool = Field(False, description="read pairs of similarity tasks in both orders (GPT)")
    method: Literal["full", "probe"] = Field("full", description="train all weights, or the head's alone")
    train_examples: int = Field(0, ge=0, description="labels to train on; 0: all")
    validation_examples: int = Field(0, ge=0, description="rows to measure on; 0: all")
    loop: FinetuneLoop = FinetuneLoop()
    of: dict[Annotated[str, DOWNSTREAM, AfterValidator(DOWNSTREAM.check)], TaskSettings] = Field(
        {}, description="per task: any of the loop's settings, length_tokens, train_examples, validation_examples"
    )

    @model_validator(mode="after")
    def _each_possible(self) -> DownstreamSettings:
        for task in self.of:
            try:
                self.loop_of(task)
            except ConfigError as error:
                raise ConfigError(f"of.{task}: {error.message}", error.remedy) from None
        return self

    def value_of(self, task: str, name: str) -> Any:
        """A field that a task may have for itself."""
        own = self.of.get(task)
        return getattr(own if own is not None and name in own.model_fields_set else self, name)

    def loop_of(self, task: str) -> FinetuneLoop:
        """The loop of a task. Of an optimizer or guard that is not named anew the given fields alone change."""
        loop = self.loop.model_dump()
        for name, value in (self.of[task].given() if task in self.of else {}).items():
            part = isinstance(value, dict) and "kind" not in value
            if name in loop:
                loop[name] = {**loop[name], **value} if part else value
        made: FinetuneLoop = section(FinetuneLoop, loop)
        return made


ROWS = ("train_examples", "validation_examples")
"""Settings of a task's data rather than of its training."""


def labelled_data(
    task: str, settings: DownstreamSettings, *, corpus: Task | None = None, directory: str = ""
) -> LabelledData:
    """A downstream task's rows, from the corpus or from its files in `directory`, whichever it reads."""
    rows: dict[str, Any] = {name: settings.value_of(task, name) for name in ROWS}
    by_corpus = needs_corpus(task)
    return LabelledData(
        task=task,
        corpus=corpus if by_corpus else None,
        directory="" if by_corpus else directory,
        name=f"data-{task}",
        **rows,
    )


def evaluation_data(tasks: Sequence[str], settings: DownstreamSettings, directory: str) -> tuple[Task, ...]:
    """The rows of the tasks that read files: what a corpus can be kept clear of, since they do not come from it."""
    return tuple(labelled_data(task, settings, directory=directory) for task in tasks if not needs_corpus(task))


class Stages(NamedTuple):
    """What `finetune_all` made."""

    scores: tuple[Task, ...]
    best: tuple[Registration, ...]


def finetune_all(
    tasks: Sequence[str],
    settings: DownstreamSettings,
    *,
    tokenizer: Task,
    model: Task,
    shape: Any,
    corpus: Task | None = None,
    directory: str = "",
    runtime: Runtime | None = None,
    register: str = "",
) -> Stages:
    """Score stages for all tasks, seeds and initialisations; the best pretrained one a task to register.

    Args:
        model: the pretrained model's stage. shape: its config; None: what the stage makes, known when it has run.
        corpus: for tasks that label it by themselves. directory: for tasks that read files.
        register: prefix of registered models; empty registers none.
    """
    runtime = runtime or Runtime()
    scores: list[Task] = []
    best: list[Registration] = []
    for task in tasks:
        data = labelled_data(task, settings, corpus=corpus, directory=directory)
        candidates: list[tuple[Task, Task | None]] = []
        for start in ("pretrained", "scratch") if settings.scratch else ("pretrained",):
            for seed in range(settings.seeds):
                tuned = Finetune(
                    dataset=data,
                    tokenizer=tokenizer,
                    init=model if start == "pretrained" else None,
                    like=model if start == "scratch" and shape is None else None,
                    model=shape,
                    pooling=settings.pooling,
                    head_dropout=settings.head_dropout,
                    lm_weight=0.0 if asks_for_spans(task) else settings.lm_weight,
                    both_orders=settings.both_orders,
                    method=settings.method,
                    loop=settings.loop_of(task),
                    length_tokens=settings.value_of(task, "length_tokens"),
                    seed=seed,
                    name=f"{task}-{start}-{seed}",
                    runtime=runtime,
                )
                score = Evaluate(model=tuned, dataset=data, name=f"score-{task}-{start}-{seed}", runtime=runtime)
                scores.append(score)
                if start == "pretrained":
                    candidates.append((tuned, score))
        if register:
            best.append(Registration(f"{register}-{task}", tuple(candidates)))
    return Stages(tuple(scores), tuple(best))
