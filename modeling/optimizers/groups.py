"""Which weights decay, and how fast each layer learns: a model's parameters in groups, and the optimizer over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modeling.flops import parameter_group
from modeling.heads.base import OUTPUT_BIASES
from modeling.optimizers import OPTIMIZERS
from modeling.optimizers.settings import OptimizerSettings

EMBEDDINGS = ("embedding", "position", "token_type")
LAYERS = ("attention", "cross_attention", "feed_forward")


def make_optimizer(model: nn.Module, settings: OptimizerSettings, peak_lr: float) -> torch.optim.Optimizer:
    """The optimizer that `settings` describe, over the weights of `model` that train."""
    made: torch.optim.Optimizer = OPTIMIZERS.load(settings.kind)(parameter_groups(model, settings), settings, peak_lr)
    return made


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups for an optimizer: those that decay first.

    Each has params, weight_decay (0 for the weights that `no_decay` names), lr_scale (`layer_lr_decay` to the power of
    the layers above), decays, and matrices: whether they are of the layers, for Muon. The output layer's bias never
    decays: at the padded rows of the vocabulary it is −10⁴, and no gradient would keep it there.
    """
    found: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    top = 2 + max((layer for name, _ in named if (layer := _block(name)) is not None), default=-1)
    for name, p in named:
        group, ndim = parameter_group(name), len(getattr(p, "ds_shape", p.shape))
        kind = "vectors" if ndim < 2 else "embeddings" if group in EMBEDDINGS else group
        scale = settings.layer_lr_decay ** (top - _depth(name, group, top))
        matrix = settings.kind == "muon" and ndim == 2 and group in LAYERS
        decays = kind not in settings.no_decay and name not in OUTPUT_BIASES
        found.setdefault((decays, scale, matrix), []).append(p)
    return [
        {
            "params": params,
            "weight_decay": settings.weight_decay if decays else 0.0,
            "lr_scale": scale,
            "decays": decays,
            "matrices": matrix,
        }
        for (decays, scale, matrix), params in sorted(found.items(), key=lambda item: not item[0][0])
    ]


def _block(name: str) -> int | None:
    """The number of the layer that a parameter is in, from 0; None where it is in none."""
    parts = name.split(".")
    places = [i for i, part in enumerate(parts) if part in ("blocks", "cross")]
    return int(parts[places[0] + 1]) if places else None


def _depth(name: str, group: str, top: int) -> int:
    """0 for embeddings, 1 for the first layer of a stack, `top` for what stands on the last."""
    block = _block(name)
    if block is not None:
        return block + 1
    return 0 if group in EMBEDDINGS or "embedding_norm" in name else top
