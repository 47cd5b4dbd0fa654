"""T5 (Raffel et al. 2020): an encoder-decoder that spells out what sentinels stand for.

The block is T5 1.1's at every scale (pre-norm, relative positions, GEGLU, no biases, a head of its own): the Hub has a
class for it. `paper` is the paper's baseline: 2^19 steps of 128 sequences of 512 tokens, Adafactor at
1/√max(step, 10,000).
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import PLACEMENT, T5_PRETRAINING, dial, paper

BLOCK: dict[str, Any] = {
    "norm": "rmsnorm",
    "norm_eps": 1e-6,
    "positions": "relative",
    "activation": "geglu-tanh",
    "qk_norm": False,
    "attention_scale": False,
    "zero_init_residual": False,
    "init": "fan-in",
    "head_bias": False,
    "tie_embeddings": False,
}
OBJECTIVE: dict[str, Any] = {"kind": "span-corruption"}
SCALES: dict[str, dict[str, Any]] = {
    **{
        scale: {
            **dial(scale, architecture="encoder-decoder", **BLOCK),
            "tokenizer": {**dial(scale)["tokenizer"], "kind": "unigram"},
            "objective": OBJECTIVE,
        }
        for scale in ("cpu", "gpu", "base")
    },
    "paper": paper(
        {"preset": "t5-base"},
        tokenizer={"kind": "unigram", "vocab_size": 32_100},
        objective=OBJECTIVE,
        examples={"length_tokens": 512},
        pretrain=T5_PRETRAINING,
        placement={**PLACEMENT["paper"], "zero_stage": 0},  # Adafactor needs whole tensors
    ),
}


class T5Config(PretrainingConfig):
    """Settings of the `t5` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def t5(c: T5Config) -> Pipeline:
    """T5: span corruption on an encoder-decoder."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-t5")
