"""BERT: WordPiece, masked language modelling with 80/10/10, DeepSpeed ZeRO-2, full fine-tuning.

`scale` is one dial for size and budget together; every value of it can be overridden by name:

- `cpu`: two gloo workers and minutes to an hour. The modern shape (rotary, pre-RMSNorm, QK-norm), since
  BERT's own post-norm stack stays on the unigram plateau for so short a run.
- `gpu`: one card and a few hours, same shape, larger.
- `base`: BERT-base's shape with a budget of about a day on eight cards.
- `paper`: Devlin et al. 2018: 1 M steps of 256 sequences of 512 tokens, lr 1e-4, warm-up 10,000.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from modeling.architecture import TransformerConfig
from modeling.config import Config
from modeling.schedule import LoopConfig
from pipelines.graph import Pipeline, Registration
from pipelines.recipes.downstream import DownstreamSettings, finetune_all
from pipelines.recipes.sections import given, settings_of
from tasks.base import Runtime
from tasks.downstream import DOWNSTREAM
from tasks.examples import MakeExamples
from tasks.ingest import Ingest
from tasks.pretrain import Pretrain
from tasks.report import Report
from tasks.tokenizer import TrainTokenizer

IngestSettings = settings_of(Ingest, "source")
TokenizerSettings = settings_of(TrainTokenizer)
ExamplesSettings = settings_of(MakeExamples, "objective")

Scale = Literal["cpu", "gpu", "base", "paper"]

SCALES: dict[str, dict[str, Any]] = {
    "cpu": {
        "tokenizer": {"vocab_size": 8192},
        "examples": {"length_tokens": 128, "masking": "dynamic"},
        "model": {"preset": "modern-mini", "max_length": 128},
        "pretrain": {"steps": 1000, "batch_size": 32, "peak_lr": 2e-3, "warmup_share": 0.06, "precision": "bf16"},
        "finetune": {"seeds": 3, "loop": {"epochs": 2, "peak_lr": 5e-4, "most_steps": 400}, "length_tokens": 128},
        "placement": {"workers": 2, "zero_stage": 2},
    },
    "gpu": {
        "tokenizer": {"vocab_size": 30522},
        "examples": {"length_tokens": 128, "masking": "dynamic"},
        "model": {"preset": "modern-small", "max_length": 512},
        "pretrain": {"steps": 50_000, "batch_size": 256, "peak_lr": 1e-3, "warmup_share": 0.04, "precision": "bf16"},
        "finetune": {"seeds": 3, "loop": {"epochs": 3, "peak_lr": 1e-4, "precision": "bf16"}},
        "placement": {"workers": 1, "gpus": 1, "zero_stage": 2},
    },
    "base": {
        "tokenizer": {"vocab_size": 30522},
        "examples": {"length_tokens": 128, "masking": "static", "duplication": 10},
        "model": {"preset": "bert-base"},
        "pretrain": {"steps": 100_000, "batch_size": 1024, "peak_lr": 4e-4, "warmup_share": 0.06, "precision": "bf16"},
        "finetune": {"seeds": 5, "loop": {"epochs": 3, "peak_lr": 3e-5, "precision": "bf16"}},
        "placement": {"workers": 8, "gpus": 1, "cpus": 4, "zero_stage": 2},
    },
    "paper": {
        "tokenizer": {"vocab_size": 30522},
        "examples": {"length_tokens": 512, "masking": "static", "duplication": 10},
        "model": {"preset": "bert-base"},
        "pretrain": {
            "steps": 1_000_000,
            "batch_size": 256,
            "peak_lr": 1e-4,
            "warmup_steps": 10_000,
            "betas": (0.9, 0.999),
            "precision": "bf16",
        },
        "finetune": {"seeds": 5, "loop": {"epochs": 3, "peak_lr": 2e-5, "precision": "bf16"}},
        "placement": {"workers": 16, "gpus": 1, "cpus": 4, "zero_stage": 2},
    },
}


class BertConfig(Config):
    """Settings of the `bert` recipe."""

    corpus: str | tuple[str, ...] = Field(description="files: path, URL, glob or a list of these; or installed-docs")
    downstream: tuple[Annotated[str, DOWNSTREAM], ...] = Field((), description="tasks to fine-tune on")
    downstream_dir: str = Field("", description="folder with the tasks' files (GLUE's layouts)")
    scale: Scale = Field("cpu", description="size and budget together")
    seed: int = Field(0, ge=0, description="of the weights and the samples' order and masks")
    ingest: IngestSettings = IngestSettings()  # type: ignore[valid-type]
    tokenizer: TokenizerSettings = TokenizerSettings()  # type: ignore[valid-type]
    examples: ExamplesSettings = ExamplesSettings()  # type: ignore[valid-type]
    model: TransformerConfig = TransformerConfig()
    pretrain: LoopConfig = LoopConfig()
    finetune: DownstreamSettings = DownstreamSettings()
    placement: Runtime = Field(Runtime(), description="where pretraining runs")
    finetune_placement: Runtime = Field(Runtime(), description="where each fine-tuning runs")

    @classmethod
    def scaled(cls, scale: str) -> dict[str, Any]:
        """The values that a scale stands for."""
        return SCALES.get(scale, {})


def bert(c: BertConfig) -> Pipeline:
    """BERT on a corpus of yours: MLM pretraining, then fine-tuning on GLUE tasks against random initialisation."""
    return masked_lm_pipeline(c, directory=c.downstream_dir, register="triptych-bert")


def masked_lm_pipeline(c: Any, *, directory: str, register: str) -> Pipeline:
    """Corpus, tokenizer, masked examples, pretraining, fine-tuning, evaluation, report.

    Args:
        c: a config with the sections of `BertConfig`.
        directory: the downstream tasks' files.
        register: name of the registered encoder, and prefix of the best fine-tuned models.
    """
    corpus = Ingest(source=c.corpus, **given(c.ingest))
    tokenizer = TrainTokenizer(corpus=corpus, **given(c.tokenizer))
    examples = MakeExamples(corpus=corpus, tokenizer=tokenizer, objective="mlm", **given(c.examples))
    model = Pretrain(
        examples=examples, tokenizer=tokenizer, model=c.model, loop=c.pretrain, seed=c.seed, runtime=c.placement
    )
    scores, best = finetune_all(
        c.downstream,
        c.finetune,
        tokenizer=tokenizer,
        model=model,
        shape=c.model,
        corpus=corpus,
        directory=directory,
        runtime=c.finetune_placement,
        register=register,
    )
    encoder = Registration(register, ((model, None),))
    return Pipeline([model, *scores], report=Report(scores=scores) if scores else None, register=(encoder, *best))
