"""BART (Lewis et al. 2020): a text with spans masked and sentences shuffled, and the decoder writes it as it was.

`paper` has the published batch and steps (500,000 of 8,000 sequences) on BART-base; its learning rate was not
published: RoBERTa's stands in.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import dial, paper

OBJECTIVE: dict[str, Any] = {"kind": "infilling"}
SCALES: dict[str, dict[str, Any]] = {
    **{
        scale: {
            **dial(scale, architecture="encoder-decoder"),
            "tokenizer": {**dial(scale)["tokenizer"], "kind": "bpe"},
            "objective": OBJECTIVE,
        }
        for scale in ("cpu", "gpu", "base")
    },
    "paper": paper(
        {"preset": "bart-base"},
        tokenizer={"kind": "bpe", "vocab_size": 50_265},
        objective=OBJECTIVE,
        examples={"length_tokens": 512},
        pretrain={"steps": 500_000, "batch_size": 8000, "peak_lr": 6e-4, "warmup_steps": 24_000},
    ),
}


class BartConfig(PretrainingConfig):
    """Settings of the `bart` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def bart(c: BartConfig) -> Pipeline:
    """BART: text infilling and sentence permutation on an encoder-decoder."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-bart")
