"""The presets' fields: published sizes, and a modern recipe for those who want the best one today.

A config that names a preset holds its fields in full, so these tables are no part of a stage's key.
"""

from __future__ import annotations

from typing import Any


def bert(layers: int, width: int) -> dict[str, Any]:
    """BERT (Devlin et al. 2018, section 3; the small ones: Turc et al. 2019): heads of 64, ff 4·width."""
    return {
        "layers": layers,
        "width": width,
        "heads": width // 64,
        "ff_width": 4 * width,
        "max_length": 512,
        "token_types": 2,
        "dropout": 0.1,
    }


def modern(layers: int, width: int, activation: str = "gelu") -> dict[str, Any]:
    """Pre-RMSNorm, rotary, QK-norm, output projections from zero, no biases: learns within minutes on a CPU.

    Weights start at 0.9/√width: 0.08 at width 128, where it was measured to leave the unigram plateau several
    times sooner than 0.02; at width 256 (0.056) it makes no difference (docs/log.md).

    A GLU has three matrices where GELU has two, so its ff_width is 8/3·width (Shazeer 2020), rounded up
    to a multiple of 64, for about the same parameters.
    """
    return {
        "layers": layers,
        "width": width,
        "heads": width // 64,
        "ff_width": -(-8 * width // 3 // 64) * 64 if activation.endswith("glu") else 4 * width,
        "max_length": 512,
        "norm": "rmsnorm",
        "norm_placement": "pre",
        "norm_eps": 1e-6,
        "positions": "rotary",
        "activation": activation,
        "bias": False,
        "qk_norm": True,
        "head_transform": False,
        "zero_init_residual": True,
        "init_std": round(0.9 / width**0.5, 4),
    }


BERT_TINY = bert(2, 128)
BERT_MINI = bert(4, 256)
BERT_SMALL = bert(4, 512)
BERT_MEDIUM = bert(8, 512)
BERT_BASE = bert(12, 768)
BERT_LARGE = bert(24, 1024)
MODERN_TINY = modern(2, 128)
MODERN_MINI = modern(4, 256)
MODERN_SMALL = modern(4, 512)
MODERN_BASE = modern(12, 768, "swiglu")
