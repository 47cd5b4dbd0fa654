"""Which precision `auto` is; autocast around a forward pass: what is cast how often."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modeling.architecture import TransformerConfig
from modeling.engine import process_group
from modeling.hardware import processor_has_bf16
from modeling.heads.language import LanguageModel
from modeling.precision import autocast, chosen
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


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx512f amx_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("model name\t: bf16\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("Features\t: fp asimd\n", False),
        ("", False),
        (None, False),  # no such file
    ],
)
def test_a_processor_says_whether_it_multiplies_bf16(cpuinfo: str | None, has: bool, tmp_path: Path) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert processor_has_bf16(tmp_path / "cpuinfo") is has


@pytest.mark.parametrize(("has", "computed"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_the_processor_multiplies_it(
    has: bool, computed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modeling.precision.processor_has_bf16", lambda: has)
    with process_group():
        assert chosen("auto", torch.device("cpu")) == computed
        assert chosen("fp16", torch.device("cpu")) == "fp16"
