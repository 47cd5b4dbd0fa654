"""XLNet (Yang et al. 2019): permutation language modelling with two streams, relative positions.

`paper` is the published budget: 500,000 steps of 8,192 sequences of 512 tokens, lr 4e-4, warm-up 40,000; the shape is
XLNet-base's. Its post-norm block with Transformer-XL positions is XLNet's at every scale.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import dial, paper

BLOCK: dict[str, Any] = {
    "positions": "transformer-xl",
    "norm": "layernorm",
    "norm_placement": "post",
    "norm_eps": 1e-12,
    "embedding_norm": False,
    "bias": True,
    "qk_norm": False,
    "zero_init_residual": False,
    "token_types": 2,
}
OBJECTIVE: dict[str, Any] = {"kind": "permutation"}
SCALES: dict[str, dict[str, Any]] = {
    **{
        scale: {
            **dial(scale, **BLOCK),
            "tokenizer": {**dial(scale)["tokenizer"], "kind": "unigram-bert"},
            "objective": OBJECTIVE,
        }
        for scale in ("cpu", "gpu", "base")
    },
    "paper": paper(
        {"preset": "xlnet-base"},
        tokenizer={"kind": "unigram-bert", "vocab_size": 32_000, "lowercase": False},
        objective=OBJECTIVE,
        examples={"length_tokens": 512},
        pretrain={"steps": 500_000, "batch_size": 8192, "peak_lr": 4e-4, "warmup_steps": 40_000},
    ),
}


class XlnetConfig(PretrainingConfig):
    """Settings of the `xlnet` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def xlnet(c: XlnetConfig) -> Pipeline:
    """XLNet: tokens predicted in a random order from those before them in it, two streams, relative positions."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-xlnet")
