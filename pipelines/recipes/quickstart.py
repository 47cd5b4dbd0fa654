"""quickstart: the whole chain in minutes, without network or GPU.

The corpus is the documentation inside the installed libraries, the downstream tasks label it by
themselves with few labels, as in life: which library a passage is about, what type a parameter has,
whether a sentence's words are in order. The model is small and modern; two gloo workers train it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modeling.architecture import AnyModel, TransformerConfig
from modeling.schedule import LoopConfig
from pipelines.graph import Pipeline
from pipelines.recipes.corpora import AnyCorpus, CorpusConfig
from pipelines.recipes.downstream import DownstreamSettings, TaskSettings
from pipelines.recipes.pretraining import BaselineSettings, pretraining_pipeline
from pipelines.recipes.sections import settings_of
from tasks.base import Runtime
from tasks.downstream import DOWNSTREAM
from tasks.examples import MakeExamples
from tasks.finetune import FinetuneLoop
from tasks.ingest import Ingest
from tasks.objectives.settings import AnyObjective, Masked
from tasks.tokenizer import TrainTokenizer

IngestSettings = settings_of(Ingest, "source", validation_share=0.1)
TokenizerSettings = settings_of(TrainTokenizer, vocab_size=4096, sample_bytes=8 << 20)
ExamplesSettings = settings_of(MakeExamples, "objective", length_tokens=64, masking="dynamic")


class QuickstartConfig(CorpusConfig):
    """Settings of the `quickstart` recipe."""

    corpus: AnyCorpus = Field("installed-docs", description="installed-docs, or files of your own, or components")
    downstream: tuple[Annotated[str, DOWNSTREAM], ...] = ("docs-library", "docs-parameter-type", "docs-acceptability")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of the weights and the samples' order and masks")
    ingest: IngestSettings = IngestSettings()  # type: ignore[valid-type]
    tokenizer: TokenizerSettings = TokenizerSettings()  # type: ignore[valid-type]
    # A mask rate of 0.2 gives a third more labels a step than 0.15 and costs such a small model nothing.
    objective: AnyObjective = Masked(kind="mlm", mask_rate=0.2)
    examples: ExamplesSettings = ExamplesSettings()  # type: ignore[valid-type]
    baseline: BaselineSettings = BaselineSettings()
    model: AnyModel = TransformerConfig.model_validate({"preset": "modern-tiny", "max_length": 128})
    pretrain: LoopConfig = LoopConfig(steps=2500, batch_size=32, peak_lr=4e-3, warmup_share=0.04, precision="auto")
    finetune: DownstreamSettings = DownstreamSettings(
        validation_examples=800,
        loop=FinetuneLoop(epochs=5, batch_size=16, peak_lr=2e-3),
        of={
            "docs-library": TaskSettings(train_examples=300),
            "docs-parameter-type": TaskSettings(train_examples=400),
            "docs-acceptability": TaskSettings(train_examples=1500),
        },
    )
    placement: Runtime = Runtime(workers=2, zero_stage=2)
    finetune_placement: Runtime = Runtime()


def quickstart(c: QuickstartConfig) -> Pipeline:
    """The whole chain in minutes: the installed libraries' documentation, three tasks with few labels."""
    return pretraining_pipeline(c, directory="", register="triptych-quickstart")
