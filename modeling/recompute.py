"""Activation checkpointing: of a block only the inputs are kept, the rest is computed again in the backward pass.

Memory of L blocks goes from all their intermediate values to L inputs, for one forward pass more (Chen et al. 2016,
arXiv:1604.06174, section 3.2). Dropout draws the same masks the second time, so gradients have the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from modeling.config import Registry

BLOCKS = Registry(
    "block",
    {
        "transformer": "modeling.blocks:Block",
        "transformer-xl": "modeling.transformer_xl:RelativeBlock",
        "lstm": "modeling.elmo:ProjectedLSTM",
    },
)
"""Modules that are computed again whole."""


@contextmanager
def recomputing(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """While it lasts, `model`'s blocks keep only their inputs when they are trained; it comes back as it was."""
    kinds = tuple(BLOCKS.load(name) for name in BLOCKS) if enabled else ()
    blocks = [module for module in model.modules() if isinstance(module, kinds)]
    for block in blocks:
        vars(block)["forward"] = _recomputed(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # At ZeRO stage 3 a weight has no elements between its uses, which the check would take for a difference.
        return checkpoint(forward, *args, use_reentrant=False, determinism_check="none", **kwargs)

    return run
