"""A prefix language model (Raffel et al. 2020, section 3.2): one stack that sees the first part of a text whole.

`paper` is the run of that section's table: 2^19 steps of 128 sequences of 512 tokens, Adafactor at
1/√max(step, 10,000).
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import PLACEMENT, T5_PRETRAINING, dial, paper

OBJECTIVE: dict[str, Any] = {"kind": "prefix"}
SCALES: dict[str, dict[str, Any]] = {
    **{
        scale: {
            **dial(scale, architecture="prefix-lm"),
            "tokenizer": {**dial(scale)["tokenizer"], "kind": "unigram"},
            "objective": OBJECTIVE,
        }
        for scale in ("cpu", "gpu", "base")
    },
    "paper": paper(
        {"preset": "prefix-lm-base"},
        tokenizer={"kind": "unigram", "vocab_size": 32_100},
        objective=OBJECTIVE,
        examples={"length_tokens": 512},
        pretrain=T5_PRETRAINING,
        placement={**PLACEMENT["paper"], "zero_stage": 0},  # Adafactor needs whole tensors
    ),
}


class PrefixLmConfig(PretrainingConfig):
    """Settings of the `prefix-lm` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def prefix_lm(c: PrefixLmConfig) -> Pipeline:
    """Prefix LM: one stack, bidirectional over a prefix, predicting the rest."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-prefix-lm")
