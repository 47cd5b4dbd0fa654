"""GPT-2 (Radford et al. 2019): a causal language model on bytes, pre-norm.

`paper`: the shape of 124 M parameters and the published batch of 512 sequences of 1,024 tokens. Learning rate and steps
were not published; these are GPT-3's for that size (Brown et al. 2020, table 2.1): 6e-4 and 300 B tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import FINETUNE, dial, paper

OBJECTIVE: dict[str, Any] = {"kind": "causal"}
SCALES: dict[str, dict[str, Any]] = {
    **{
        scale: {
            **dial(scale, architecture="decoder", activation="swiglu", head_bias=False),
            "tokenizer": {**dial(scale)["tokenizer"], "kind": "gpt2"},
            "objective": OBJECTIVE,
            "finetune": {**dial(scale)["finetune"], "pooling": "last"},
        }
        for scale in ("cpu", "gpu", "base")
    },
    "paper": paper(
        {"preset": "gpt2-124M"},
        tokenizer={"kind": "gpt2", "vocab_size": 50_258},  # the published 50,257 and padding
        objective={**OBJECTIVE, "documents_apart": False},
        examples={"length_tokens": 1024},
        finetune={**FINETUNE["paper"], "pooling": "last"},
        pretrain={
            "steps": 572_000,
            "batch_size": 512,
            "peak_lr": 6e-4,
            "warmup_steps": 715,
            "schedule": "cosine",
            "final_lr_fraction": 0.1,
            "optimizer": {"kind": "adamw", "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1},
        },
    ),
}


class Gpt2Config(PretrainingConfig):
    """Settings of the `gpt2` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def gpt2(c: Gpt2Config) -> Pipeline:
    """GPT-2: a causal language model on byte-level BPE."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-gpt2")
