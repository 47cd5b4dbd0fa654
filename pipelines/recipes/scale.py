"""`scale`: one dial, the number of layers, from which shape, budget, batch and learning rate follow.

    cpu     2 layers    minutes on two cores
    gpu     8 layers    an hour or so on one card
    base   12 layers    BERT-base's and GPT-2's size, a day on one card
    paper               the published shape and budget, recipe by recipe

The arithmetic of the first three, for any architecture:

- width = 64 · layers (the aspect ratio of BERT-base and GPT-2: 12 and 768), in heads of 64, feed-forward 4 · width
- N = 12 · layers · width², the parameters that are not embeddings (Kaplan et al. 2020, section 2.1)
- D = 20 · N training tokens (Hoffmann et al. 2022, table 3: what a budget is best spent on); `cpu` takes half
- batch = 4,096 tokens · √(D / 3.9 M), to the nearest power of two: the larger the run, the more its gradients
  agree (McCandlish et al. 2018); 4,096 is what two cores do well
- peak learning rate = 4e-3 · 128 / width: measured best at width 128 (docs/log.md), and falls as 1 / width
  (Yang et al. 2022, for AdamW)
- steps = D / batch, of which 6 % warm up (RoBERTa)

They use the modern block (pre-RMSNorm, rotary, QK-norm), since the published post-norm ones stay on the unigram
plateau for so short a run (docs/log.md); `paper` has the published one. Modern decoders are gated, as the Hub's Qwen3
is, and can be exported as one; for modern encoders the Hub has no class: `model=bert-mini` trains a published shape.
"""

from __future__ import annotations

import math
from typing import Any, Literal

Scale = Literal["cpu", "gpu", "base", "paper"]
LAYERS = {"cpu": 2, "gpu": 8, "base": 12}
TOKENS_PER_PARAMETER = {"cpu": 10, "gpu": 20, "base": 20}
VOCABULARY = {"cpu": 4096, "gpu": 16_384, "base": 32_768}
SAMPLE_BYTES = {"cpu": 8 << 20, "gpu": 32 << 20, "base": 128 << 20}  # of text for the tokenizer
LENGTH = {"cpu": 128, "gpu": 256, "base": 512}
PLACEMENT: dict[str, dict[str, Any]] = {
    "cpu": {"workers": 2, "zero_stage": 2},
    "gpu": {"workers": 1, "gpus": 1, "cpus": 4, "zero_stage": 2},
    "base": {"workers": 1, "gpus": 1, "cpus": 4, "zero_stage": 2},
    "paper": {"workers": 16, "gpus": 1, "cpus": 4, "zero_stage": 2},
}
FINETUNE_PLACEMENT: dict[str, dict[str, Any]] = {
    "cpu": {},
    **dict.fromkeys(("gpu", "base", "paper"), {"gpus": 1, "cpus": 2}),  # of each task and seed: a machine runs several
}
T5_PRETRAINING: dict[str, Any] = {
    "steps": 524_288,
    "batch_size": 128,
    "peak_lr": 1e-2,
    "warmup_steps": 10_000,
    "warmup_shape": "constant",
    "schedule": "inverse-sqrt",
    "optimizer": "adafactor",
    "clip_norm": 0.0,  # Adafactor limits each tensor's update by itself
}
"""The published run of T5 and of its prefix LM (Raffel et al. 2020, section 3.1.2): rate 1/√max(step, 10,000)."""
FINETUNE: dict[str, dict[str, Any]] = {
    "cpu": {"seeds": 3, "loop": {"epochs": 2, "peak_lr": 1e-3, "most_steps": 400}},
    "gpu": {"seeds": 3, "loop": {"epochs": 3, "peak_lr": 2e-4, "precision": "bf16"}},
    "base": {"seeds": 5, "loop": {"epochs": 3, "peak_lr": 5e-5, "precision": "bf16"}},
    "paper": {"seeds": 5, "loop": {"epochs": 3, "peak_lr": 2e-5, "precision": "bf16"}},
}


def dial(scale: str, **model: Any) -> dict[str, Any]:
    """The sections `tokenizer`, `examples`, `model`, `pretrain`, `finetune`, `placement` and `finetune_placement` of
    a scale but `paper`.

    Args:
        model: further fields of the model's section, over the modern preset's: its architecture, say.
    """
    layers = LAYERS[scale]
    width = 64 * layers
    N = 12 * layers * width**2
    D = TOKENS_PER_PARAMETER[scale] * N
    length = LENGTH[scale]
    batch_tokens = 2 ** round(math.log2(4096 * math.sqrt(D / 3.9e6)))
    return {
        "tokenizer": {"vocab_size": VOCABULARY[scale], "sample_bytes": SAMPLE_BYTES[scale]},
        "examples": {"length_tokens": length},
        "model": {
            "preset": "modern-tiny",
            **shape(layers, gated=model.get("activation", "").endswith("glu")),
            "max_length": length,
            **model,
        },
        "pretrain": {
            "steps": D // batch_tokens,
            "batch_size": batch_tokens // length,
            "peak_lr": round(4e-3 * 128 / width, 6),
            "warmup_share": 0.06,
            "precision": "auto" if scale == "cpu" else "bf16",
        },
        "finetune": {**FINETUNE[scale], "length_tokens": min(128, length)},
        "placement": PLACEMENT[scale],
        "finetune_placement": FINETUNE_PLACEMENT[scale],
    }


def shape(layers: int, gated: bool = False) -> dict[str, Any]:
    """Layers, width, heads and feed-forward of that depth, and the deviation of its first weights.

    A gated feed-forward has three matrices for two, so it is 8/3 · width, to a multiple of 64 (Shazeer 2020).
    """
    width = 64 * layers
    return {
        "layers": layers,
        "width": width,
        "heads": layers,
        "ff_width": -(-8 * width // 3 // 64) * 64 if gated else 4 * width,
        "init_std": round(0.9 / width**0.5, 4),
    }


def features(scale: str) -> dict[str, Any]:
    """The section `finetune` where the trunk stays as it is: a linear layer alone learns at a much higher rate."""
    section = dial(scale)["finetune"]
    return {**section, "loop": {**section["loop"], "peak_lr": 0.02, "most_steps": 1500}}


def paper(model: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """The sections of a published run: its model, and what else the recipe says."""
    return {
        "finetune": FINETUNE["paper"],
        "placement": PLACEMENT["paper"],
        "finetune_placement": FINETUNE_PLACEMENT["paper"],
        "model": model,
        **sections,
        "pretrain": {"precision": "bf16", **sections.get("pretrain", {})},
    }
