"""RoBERTa (Liu et al. 2019): byte-level BPE, dynamic masks, whole sentences across documents, no sentence pairs.

`paper` is the published run on 160 GB: 500,000 steps of 8,192 sequences of 512 tokens, lr 6e-4 (base), warm-up 24,000.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import dial, paper

OBJECTIVE: dict[str, Any] = {"kind": "mlm"}
SCALES: dict[str, dict[str, Any]] = {
    **{
        scale: {
            **dial(scale),
            "tokenizer": {**dial(scale)["tokenizer"], "kind": "bpe"},
            "objective": OBJECTIVE,
            "examples": {**dial(scale)["examples"], "packing": "full-sentences"},
        }
        for scale in ("cpu", "gpu", "base")
    },
    "paper": paper(
        {"preset": "roberta-base"},
        tokenizer={"kind": "bpe", "vocab_size": 50_265},
        objective=OBJECTIVE,
        examples={"length_tokens": 512, "packing": "full-sentences"},
        pretrain={"steps": 500_000, "batch_size": 8192, "peak_lr": 6e-4, "warmup_steps": 24_000},
    ),
}


class RobertaConfig(PretrainingConfig):
    """Settings of the `roberta` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def roberta(c: RobertaConfig) -> Pipeline:
    """RoBERTa: byte-level BPE, masks drawn anew each epoch, rows of whole sentences, no sentence pairs."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-roberta")
