"""GPT (Radford et al. 2018): a causal language model with BPE of whole words, fine-tuned from its last token.

`paper` is the published run: 64 sequences of 512 tokens, lr 2.5e-4 with 2,000 steps of warm-up and a cosine to zero,
100 epochs of BooksCorpus, which is 3 M steps at a billion tokens; then 3 epochs a task at 6.25e-5, warm-up 0.2 %,
with half of the language model's loss beside the task's.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import dial, paper

OBJECTIVE: dict[str, Any] = {"kind": "causal"}
SCALES: dict[str, dict[str, Any]] = {
    **{
        scale: {
            **dial(scale, architecture="decoder", activation="swiglu", head_bias=False),
            "tokenizer": {**dial(scale)["tokenizer"], "kind": "bpe-words"},
            "objective": OBJECTIVE,
            "finetune": {**dial(scale)["finetune"], "pooling": "last", "both_orders": True},
        }
        for scale in ("cpu", "gpu", "base")
    },
    "paper": paper(
        {"preset": "gpt"},
        tokenizer={"kind": "bpe-words", "vocab_size": 40_478},
        objective={**OBJECTIVE, "documents_apart": False},
        examples={"length_tokens": 512},
        finetune={
            "seeds": 5,
            "pooling": "last",
            "both_orders": True,
            "head_dropout": 0.1,
            "lm_weight": 0.5,
            "loop": {"epochs": 3, "peak_lr": 6.25e-5, "warmup_share": 0.002, "precision": "bf16"},
        },
        pretrain={
            "steps": 3_000_000,
            "batch_size": 64,
            "peak_lr": 2.5e-4,
            "warmup_steps": 2000,
            "schedule": "cosine",
            "optimizer": {"kind": "adamw", "betas": (0.9, 0.999), "eps": 1e-8},
        },
    ),
}


class GptConfig(PretrainingConfig):
    """Settings of the `gpt` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def gpt(c: GptConfig) -> Pipeline:
    """GPT: a causal language model, fine-tuned from its last token."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-gpt")
