"""ALBERT (Lan et al. 2020): one layer's weights for all, factorised embeddings, n-gram masks, sentence order.

`paper` is the published run: 125,000 steps of 4,096 sequences of 512 tokens with LAMB at 1.76e-3, warm-up 3,125.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import LAYERS, dial, paper

OBJECTIVE: dict[str, Any] = {"kind": "mlm", "unit": "ngram", "pairs": "sop"}
SCALES: dict[str, dict[str, Any]] = {
    **{
        scale: {
            **dial(
                scale,
                share_layers=True,
                embedding_width=min(128, 32 * LAYERS[scale]),
                head_transform=True,
                token_types=2,
            ),
            "tokenizer": {**dial(scale)["tokenizer"], "kind": "unigram-bert"},
            "objective": OBJECTIVE,
        }
        for scale in ("cpu", "gpu", "base")
    },
    "paper": paper(
        {"preset": "albert-base"},
        tokenizer={"kind": "unigram-bert", "vocab_size": 30_000},
        objective=OBJECTIVE,
        examples={"length_tokens": 512, "masking": "static", "duplication": 10},
        pretrain={
            "steps": 125_000,
            "batch_size": 4096,
            "peak_lr": 1.76e-3,
            "warmup_steps": 3125,
            "optimizer": {"kind": "lamb", "bias_correction": False},
        },
    ),
}


class AlbertConfig(PretrainingConfig):
    """Settings of the `albert` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def albert(c: AlbertConfig) -> Pipeline:
    """ALBERT: shared layers, factorised embeddings, n-gram masks and sentence-order prediction."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-albert")
