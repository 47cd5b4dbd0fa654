"""MASS (Song et al. 2019): the encoder reads a text with one stretch masked, the decoder predicts the stretch.

`paper`: the published shape and learning rate, 1e-4; its batches were counted in tokens (3,000 a card).
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import dial, paper

OBJECTIVE: dict[str, Any] = {"kind": "mass"}
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
        {"preset": "mass-base", "max_length": 512},
        tokenizer={"kind": "bpe", "vocab_size": 32_000},
        objective=OBJECTIVE,
        examples={"length_tokens": 256},
        pretrain={"steps": 500_000, "batch_size": 96, "peak_lr": 1e-4, "warmup_steps": 4000},
    ),
}


class MassConfig(PretrainingConfig):
    """Settings of the `mass` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def mass(c: MassConfig) -> Pipeline:
    """MASS: a masked stretch of half the text, predicted by the decoder."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-mass")
