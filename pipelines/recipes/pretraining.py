"""What the pretraining recipes share: corpus, tokenizer, examples, baseline, model, downstream tasks, report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from cluster.errors import BadConfig
from modeling.architecture import AnyModel, TransformerConfig
from modeling.config import Config
from modeling.schedule import LoopConfig
from pipelines.graph import Pipeline, Registration
from pipelines.recipes.corpora import CorpusConfig, corpus_parts, for_labels, mixed, unweighted
from pipelines.recipes.downstream import DownstreamSettings, evaluation_data, finetune_all
from pipelines.recipes.scale import Scale
from pipelines.recipes.sections import given, settings_of
from tasks.base import Runtime, Task
from tasks.downstream import DOWNSTREAM
from tasks.examples import MakeExamples
from tasks.imported import ImportModel, ImportTokenizer
from tasks.ngram import NGramBaseline
from tasks.objectives.settings import AnyObjective, Masked
from tasks.pretrain import Pretrain
from tasks.report import Report
from tasks.tokenizer import TrainTokenizer

if TYPE_CHECKING:  # a class made at run time is no type to a checker

    class TokenizerSettings(Config): ...

    class ImportSettings(Config):
        source: str = ""

    class ExamplesSettings(Config):
        masking: str = ""

    class BaselineSettings(Config): ...

else:
    TokenizerSettings = settings_of(TrainTokenizer)
    ImportSettings = settings_of(ImportTokenizer, source="")
    ExamplesSettings = settings_of(MakeExamples, "objective")
    BaselineSettings = settings_of(NGramBaseline)


def _from(value: Any) -> Any:
    """A source alone as the section that it stands for; `preset` is what it becomes when a field follows."""
    if isinstance(value, str):
        return {"source": value}
    if isinstance(value, Mapping) and isinstance(value.get("preset"), str):
        return {("source" if name == "preset" else name): item for name, item in value.items()}
    return value


class PretrainingConfig(CorpusConfig):
    """Settings of a pretraining recipe; a recipe's subclass gives the values of each scale."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = {}
    brought: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "init": ("model", "tokenizer"),
        "tokenizer_from": ("tokenizer",),
    }

    init: str = Field(
        "", description="go on from this model, shape and tokenizer: a folder in the Hub's layout, or an exported one"
    )
    downstream: tuple[Annotated[str, DOWNSTREAM], ...] = Field((), description="tasks to fine-tune on")
    downstream_dir: str = Field("", description="folder with the tasks' files (GLUE's layouts)")
    scale: Scale = Field("cpu", description="size and budget together")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of the weights and the samples' order and masks")
    tokenizer: TokenizerSettings = TokenizerSettings()
    tokenizer_from: Annotated[ImportSettings, BeforeValidator(_from)] = Field(
        ImportSettings(), description="use this tokenizer, trained elsewhere: tokenizer_from=folder"
    )
    objective: AnyObjective = Masked(kind="mlm")
    examples: ExamplesSettings = ExamplesSettings()
    baseline: BaselineSettings = BaselineSettings()
    model: AnyModel = TransformerConfig()
    pretrain: LoopConfig = LoopConfig()
    finetune: DownstreamSettings = DownstreamSettings()
    placement: Runtime = Field(Runtime(), description="where pretraining runs")
    finetune_placement: Runtime = Field(Runtime(), description="where each fine-tuning runs")

    @model_validator(mode="after")
    def _one_tokenizer(self) -> PretrainingConfig:
        if self.init and self.tokenizer_from.source:
            raise BadConfig(
                f"init={self.init} brings its own tokenizer, and tokenizer_from={self.tokenizer_from.source} another",
                "leave one out",
            )
        return self

    @classmethod
    def scaled(cls, scale: str) -> dict[str, Any]:
        """The values that a scale stands for."""
        return cls.SCALES.get(scale, {})


def pretraining_pipeline(c: Any, *, directory: str, register: str) -> Pipeline:
    """The whole chain, on a config with the sections of `PretrainingConfig`.

    With `init` tokenizer and shape are the given model's.

    Args:
        directory: the downstream tasks' files.
        register: name of the registered model, and prefix of the best fine-tuned ones.
    """
    init = getattr(c, "init", "")
    parts = corpus_parts(c, evaluation_data(c.downstream, c.finetune, directory))
    start: Task | None = None
    tokenizer: Task
    if init:
        start, tokenizer = ImportModel(source=init, name="init"), ImportTokenizer(source=init, name="tokenizer")
    elif (imported := getattr(c, "tokenizer_from", None)) and imported.source:
        tokenizer = ImportTokenizer(corpus=unweighted(c, parts), **given(imported))
    else:
        tokenizer = TrainTokenizer(corpus=unweighted(c, parts), **given(c.tokenizer))
    corpus = mixed(c, parts, tokenizer)
    examples = MakeExamples(corpus=corpus, tokenizer=tokenizer, objective=c.objective, **given(c.examples))
    shape = None if init else c.model
    model = Pretrain(
        examples=examples,
        tokenizer=tokenizer,
        init=start,
        model=shape,
        loop=c.pretrain if "seed" in c.pretrain.model_fields_set else c.pretrain.model_copy(update={"seed": c.seed}),
        seed=c.seed,
        runtime=c.placement,
    )
    scores, best = finetune_all(
        c.downstream,
        c.finetune,
        tokenizer=tokenizer,
        model=model,
        shape=shape,
        corpus=for_labels(parts, corpus),
        directory=directory,
        runtime=c.finetune_placement,
        register=register,
    )
    countable = c.objective.kind != "glove" and not (c.objective.paired and c.examples.masking == "static")
    countable = countable and any(part.read.validation_share for part in parts.each)  # measured on what is held out
    baselines = (NGramBaseline(examples=examples, **given(c.baseline)),) if countable else ()
    report = Report(scores=scores, models=(model,), baselines=baselines)
    pretrained = Registration(register, ((model, None),))
    return Pipeline([model, *baselines, *scores], report=report, register=(pretrained, *best))
