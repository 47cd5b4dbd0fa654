"""How far an update moves each layer: ‖Δw‖ / ‖w‖, with the norms of weights and gradients.

A ratio near 1e-3 is usual with Adam; a layer far below the others does not learn, one far above is about to break.
From ZeRO stage 1 on a rank has only its own share of the fp32 weights: sums of squares over it, added over the ranks
in one all-reduce, give the norms. A measured step holds a second copy of that share. Padded rows of the vocabulary do
not count: their output bias of −10⁴ would hide what the others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modeling.heads.base import NEVER, OUTPUT_BIASES

FIGURES = ("update_ratio", "weight_norm", "layer_grad_norm")
Layers = dict[str, tuple[float, float, float]]
"""{layer: its FIGURES}."""


class LayerUpdates:
    """Measures steps on an engine; every rank calls it at the same steps.

    Attributes:
        last: of the last measured step; gradients before clipping.
    """

    def __init__(self, engine: Any, model: nn.Module) -> None:
        self.engine = engine
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.layers = list(dict.fromkeys(layer_of(name) for name, _ in named))
        place = {layer: index for index, layer in enumerate(self.layers)}
        self.parameters = [(place[layer_of(name)], p) for name, p in named]
        self.output_biases = {id(p) for name, p in named if name in OUTPUT_BIASES}
        self.last: Layers = {}

    @contextmanager
    def around_update(self, loss_scale: float = 1.0) -> Iterator[None]:
        """Entered with whole gradients, times fp16's `loss_scale`, left with new weights.

        Where the gradients overflowed, `last` stays as it was.
        """
        before = [(layer, weight.clone()) for layer, weight in self._each(own_weights)]
        squares = [self._squares(self._each(self._counted)), self._squares(self._each(own_gradient))]
        yield
        moved = [(n, old.sub_(new)) for (n, old), (_, new) in zip(before, self._each(own_weights), strict=True)]
        squares.append(self._squares(moved))
        total = torch.stack(squares)
        if self.engine.zero_optimization_stage() and dist.get_world_size() > 1:
            total = total.to(self.engine.device)
            dist.all_reduce(total)
        if not bool(torch.isfinite(total).all()):
            return
        norms = total.sqrt().tolist()
        self.last = {
            layer: (moved / weight if weight else 0.0, weight, grad / loss_scale)
            for layer, weight, grad, moved in zip(self.layers, *norms, strict=True)
        }

    def _counted(self, parameter: nn.Parameter) -> Tensor | None:
        """`own_weights`, with 0 where an output bias is of no token."""
        weights = own_weights(parameter)
        if weights is None or id(parameter) not in self.output_biases:
            return weights
        return torch.where(weights > NEVER / 2, weights, 0.0)

    def _each(self, what: Callable[[nn.Parameter], Tensor | None]) -> list[tuple[int, Tensor]]:
        """(layer, tensor) of the parameters that this rank has a share of."""
        found = ((layer, what(parameter)) for layer, parameter in self.parameters)
        return [(layer, tensor.detach()) for layer, tensor in found if tensor is not None]

    def _squares(self, tensors: list[tuple[int, Tensor]]) -> Tensor:
        """Σ of squares by layer, [layers] float64 on the CPU."""
        found = torch.zeros(len(self.layers), dtype=torch.float64)
        if tensors:
            norms = torch._foreach_norm([t for _, t in tensors], 2, torch.float32)
            places = torch.tensor([layer for layer, _ in tensors])
            found.index_add_(0, places, torch.stack(norms).double().cpu().square())
        return found


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to: `encoder.03` of a block, or what stands outside of blocks."""
    parts = [part for part in name.split(".") if part != "transformer"]
    for index, part in enumerate(parts):
        if part in ("blocks", "cross") and index + 1 < len(parts) and parts[index + 1].isdigit():
            return ".".join([*(parts[:index] or ["block"]), f"{int(parts[index + 1]):02d}"])
    return parts[0] if parts[0] in ("head", "pair", "boundary") else ".".join(parts[:-1][:2]) or parts[0]


def own_weights(parameter: nn.Parameter) -> Tensor | None:
    """This rank's share of a parameter's fp32 weights; at stage 0 all of it; None where another rank has it."""
    if hasattr(parameter, "ds_id"):
        return _at_stage_3(parameter)[1]
    if hasattr(parameter, "_hp_mapping"):
        return parameter._hp_mapping.get_hp_fragment() if parameter._hp_mapping is not None else None
    return parameter.data


def own_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The gradient of `own_weights`, between the backward pass and the update."""
    if hasattr(parameter, "ds_id"):
        gradient, _ = _at_stage_3(parameter)
        return parameter._z3_optimizer.get_local_fp32_grad_for_param(parameter) if gradient is None else gradient
    if hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        return mapping.get_lp_grad_fragment(parameter._index_in_param_group) if mapping is not None else None
    return parameter.grad


def _at_stage_3(parameter: nn.Parameter) -> tuple[Tensor | None, Tensor]:
    """This rank's share of the gradient, where it lies in host memory, and of the weights; as they are, not copied."""
    optimizer: Any = parameter._z3_optimizer  # type: ignore[attr-defined]
    group, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
    flat = optimizer.fp32_partitioned_groups_flat[group]
    gradient = flat.grad.narrow(0, offset, count) if optimizer.offload_optimizer and flat.grad is not None else None
    return gradient, flat.narrow(0, offset, count)
