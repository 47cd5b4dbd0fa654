"""Autocast around a forward pass: what is cast how often."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modeling.architecture import TransformerConfig
from modeling.heads.language import LanguageModel
from modeling.precision import autocast
from modeling.recompute import recomputing
from tests.modeling.test_recompute import SMALL, batch_of


class Casts(TorchDispatchMode):
    """Counts casts of a model's weights, by name."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.names = {p.data_ptr(): name for name, p in model.named_parameters()}
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.names:
            self.found[self.names[args[0].data_ptr()]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_shared_weight_is_cast_once_a_forward_pass(precision: str, checkpointing: bool) -> None:
    """Four layers share their weights; with checkpointing each of them is cast again for its backward pass."""
    torch.manual_seed(0)
    model = LanguageModel(TransformerConfig(**SMALL, share_layers=True))
    with Casts(model) as casts, recomputing(model, checkpointing):
        for _ in range(2):  # micro-batches
            with autocast("cpu", precision):
                loss = model(batch_of()).loss_sum
            loss.backward()
    layer = {name: count for name, count in casts.found.items() if "blocks" in name and name.endswith("weight")}
    if precision == "fp32":
        assert not casts.found
    else:
        assert len(layer) >= 4 and set(layer.values()) == {2 * (1 + 4 * checkpointing)}, casts.found
