"""What the pretraining recipes share: corpus, tokenizer, examples, baseline, model, downstream tasks, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from modeling.architecture import AnyModel, TransformerConfig
from modeling.config import Config
from modeling.schedule import LoopConfig
from pipelines.graph import Pipeline, Registration
from pipelines.recipes.downstream import DownstreamSettings, finetune_all
from pipelines.recipes.scale import Scale
from pipelines.recipes.sections import given, settings_of
from tasks.base import Runtime, Task
from tasks.downstream import DOWNSTREAM
from tasks.examples import MakeExamples
from tasks.imported import ImportModel, ImportTokenizer
from tasks.ingest import Ingest
from tasks.ngram import NGramBaseline
from tasks.objectives.settings import AnyObjective, Masked
from tasks.pretrain import Pretrain
from tasks.report import Report
from tasks.tokenizer import TrainTokenizer

if TYPE_CHECKING:  # a class made at run time is no type to a checker

    class IngestSettings(Config): ...

    class TokenizerSettings(Config): ...

    class ExamplesSettings(Config):
        masking: str = ""

    class BaselineSettings(Config): ...

else:
    IngestSettings = settings_of(Ingest, "source")
    TokenizerSettings = settings_of(TrainTokenizer)
    ExamplesSettings = settings_of(MakeExamples, "objective")
    BaselineSettings = settings_of(NGramBaseline)


class PretrainingConfig(Config):
    """Settings of a pretraining recipe; a recipe's subclass gives the values of each scale."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = {}

    corpus: str | tuple[str, ...] = Field(description="files: path, URL, glob or a list of these; or installed-docs")
    init: str = Field("", description="go on from this model: a folder in the Hub's layout, or an exported one")
    downstream: tuple[Annotated[str, DOWNSTREAM], ...] = Field((), description="tasks to fine-tune on")
    downstream_dir: str = Field("", description="folder with the tasks' files (GLUE's layouts)")
    scale: Scale = Field("cpu", description="size and budget together")
    seed: int = Field(0, ge=0, description="of the weights and the samples' order and masks")
    ingest: IngestSettings = IngestSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    objective: AnyObjective = Masked(kind="mlm")
    examples: ExamplesSettings = ExamplesSettings()
    baseline: BaselineSettings = BaselineSettings()
    model: AnyModel = TransformerConfig()
    pretrain: LoopConfig = LoopConfig()
    finetune: DownstreamSettings = DownstreamSettings()
    placement: Runtime = Field(Runtime(), description="where pretraining runs")
    finetune_placement: Runtime = Field(Runtime(), description="where each fine-tuning runs")

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
    corpus = Ingest(source=c.corpus, **given(c.ingest))
    start: Task | None = None
    tokenizer: Task
    if init:
        start, tokenizer = ImportModel(source=init, name="init"), ImportTokenizer(source=init, name="tokenizer")
    else:
        tokenizer = TrainTokenizer(corpus=corpus, **given(c.tokenizer))
    examples = MakeExamples(corpus=corpus, tokenizer=tokenizer, objective=c.objective, **given(c.examples))
    shape = None if init else c.model
    model = Pretrain(
        examples=examples,
        tokenizer=tokenizer,
        init=start,
        model=shape,
        loop=c.pretrain,
        seed=c.seed,
        runtime=c.placement,
    )
    scores, best = finetune_all(
        c.downstream,
        c.finetune,
        tokenizer=tokenizer,
        model=model,
        shape=shape,
        corpus=corpus,
        directory=directory,
        runtime=c.finetune_placement,
        register=register,
    )
    countable = c.objective.kind != "glove" and not (c.objective.paired and c.examples.masking == "static")
    baselines = (NGramBaseline(examples=examples, **given(c.baseline)),) if countable else ()
    report = Report(scores=scores, models=(model,), baselines=baselines)
    pretrained = Registration(register, ((model, None),))
    return Pipeline([model, *baselines, *scores], report=report, register=(pretrained, *best))
