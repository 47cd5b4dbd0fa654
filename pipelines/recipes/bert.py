"""BERT (Devlin et al. 2018): WordPiece, masked language modelling with 80/10/10, next-sentence prediction.

`paper` is the published run: 1 M steps of 256 sequences of 512 tokens, lr 1e-4, warm-up 10,000, Adam without bias
correction, static masks with ten copies. (The authors trained nine tenths of the steps on sequences of 128.)
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import dial, paper

OBJECTIVE: dict[str, Any] = {"kind": "mlm", "pairs": "nsp"}
SCALES: dict[str, dict[str, Any]] = {
    **{
        scale: {
            **dial(scale, token_types=2),
            "tokenizer": {**dial(scale)["tokenizer"], "kind": "wordpiece"},
            "objective": OBJECTIVE,
        }
        for scale in ("cpu", "gpu", "base")
    },
    "paper": paper(
        {"preset": "bert-base"},
        tokenizer={"kind": "wordpiece", "vocab_size": 30_522},
        objective={**OBJECTIVE, "max_predictions": 77, "random_token": "any"},
        examples={"length_tokens": 512, "masking": "static", "duplication": 10},
        pretrain={
            "steps": 1_000_000,
            "batch_size": 256,
            "peak_lr": 1e-4,
            "warmup_steps": 10_000,
            "optimizer": {"kind": "adamw", "betas": (0.9, 0.999), "bias_correction": False},
        },
    ),
}


class BertConfig(PretrainingConfig):
    """Settings of the `bert` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def bert(c: BertConfig) -> Pipeline:
    """BERT on a corpus of yours: MLM and next sentences, fine-tuning on GLUE against random initialisation."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-bert")
