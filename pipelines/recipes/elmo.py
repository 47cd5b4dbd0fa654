"""ELMo (Peters et al. 2018): LSTMs that read a text in both directions; downstream a learned mix of their layers.

The weights stay as they are downstream, but for the mix. `paper` is the published run: ten epochs of the One Billion
Word Benchmark, here in steps of 128 rows of 128 tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import dial, features, paper

SCALES: dict[str, dict[str, Any]] = {
    **{
        scale: {
            **dial(scale),
            "objective": {"kind": "bidirectional"},
            # the published proportion: an LSTM's state is eight times what it passes on; two are enough for a small one
            "model": {
                "preset": "elmo",
                "width": dial(scale)["model"]["width"],
                "hidden": 2 * dial(scale)["model"]["width"],
                "dropout": 0.0,
            },
            "finetune": features(scale),
            "pretrain": {**dial(scale)["pretrain"], "precision": "fp32"},
        }
        for scale in ("cpu", "gpu", "base")
    },
    "paper": paper(
        {"preset": "elmo"},
        tokenizer={"kind": "wordpiece", "vocab_size": 30_522},
        objective={"kind": "bidirectional"},
        examples={"length_tokens": 128},
        pretrain={"steps": 600_000, "batch_size": 128, "peak_lr": 1e-3, "warmup_steps": 2000, "precision": "fp32"},
    ),
}


class ElmoConfig(PretrainingConfig):
    """Settings of the `elmo` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def elmo(c: ElmoConfig) -> Pipeline:
    """ELMo: a language model in both directions, its layers used downstream as features."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-elmo")
