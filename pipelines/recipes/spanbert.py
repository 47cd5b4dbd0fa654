"""SpanBERT (Joshi et al. 2020): whole-word spans of geometric length, and the span-boundary objective.

`paper` is the published run: BERT-large, 2.4 M steps of 256 sequences of 512 tokens, lr 1e-4, warm-up 10,000.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import dial, paper

OBJECTIVE: dict[str, Any] = {"kind": "mlm", "unit": "span", "span_boundary": True}
SCALES: dict[str, dict[str, Any]] = {
    **{
        scale: {
            **dial(scale),
            "tokenizer": {**dial(scale)["tokenizer"], "kind": "wordpiece"},
            "objective": OBJECTIVE,
        }
        for scale in ("cpu", "gpu", "base")
    },
    "paper": paper(
        {"preset": "bert-large", "token_types": 0},
        tokenizer={"kind": "wordpiece", "vocab_size": 28_996, "lowercase": False},
        objective=OBJECTIVE,
        examples={"length_tokens": 512},
        pretrain={
            "steps": 2_400_000,
            "batch_size": 256,
            "peak_lr": 1e-4,
            "warmup_steps": 10_000,
            "optimizer": {"kind": "adamw", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1},
        },
    ),
}


class SpanBertConfig(PretrainingConfig):
    """Settings of the `spanbert` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def spanbert(c: SpanBertConfig) -> Pipeline:
    """SpanBERT: spans of whole words masked, each also predicted from the tokens at its boundary."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-spanbert")
