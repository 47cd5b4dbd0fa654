"""ELECTRA (Clark et al. 2020): a small generator fills masked places, the model tells which tokens were replaced.

`paper` is the published base run: 766,000 steps of 256 sequences of 512 tokens, lr 2e-4, warm-up 10,000;
fine-tuning at 1e-4, each layer at 0.8 of the rate of the one above.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import FINETUNE, dial, paper

OBJECTIVE: dict[str, Any] = {"kind": "rtd"}
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
        {"preset": "electra-base"},
        tokenizer={"kind": "wordpiece", "vocab_size": 30_522},
        objective=OBJECTIVE,
        examples={"length_tokens": 512},
        finetune={
            **FINETUNE["paper"],
            "loop": {**FINETUNE["paper"]["loop"], "peak_lr": 1e-4, "optimizer": {"layer_lr_decay": 0.8}},
        },
        pretrain={
            "steps": 766_000,
            "batch_size": 256,
            "peak_lr": 2e-4,
            "warmup_steps": 10_000,
            "optimizer": {"kind": "adamw", "betas": (0.9, 0.999), "bias_correction": False},
        },
    ),
}


class ElectraConfig(PretrainingConfig):
    """Settings of the `electra` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def electra(c: ElectraConfig) -> Pipeline:
    """ELECTRA: replaced-token detection; the generator is thrown away after pretraining."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-electra")
