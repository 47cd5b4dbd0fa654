"""What has to be written of a running engine, taken at a step boundary.

DeepSpeed decides what its shards hold and who writes them; a checkpoint engine of ours takes host copies of what it
would write, and reads them back. The weights go apart, whole and under the model's own names, so that a checkpoint
is a usable model at every ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from modeling.checkpoints import layout, shards
from modeling.checkpoints.snapshot import HostBuffers

PREFIX = "model."
"""What `modeling.engine.ScaledLoss` puts before the model's names."""


@dataclass
class Captured:
    """One rank's part of a checkpoint, on the host."""

    states: list[tuple[str, Any]] = field(default_factory=list)
    """DeepSpeed's shards: (file below the checkpoint's folder, nested state)."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """The model's, on rank 0."""


def capture(engine: Any, model: nn.Module, folder: Path, buffers: HostBuffers) -> Captured:
    """Host copies of all that a checkpoint in `folder` is to hold; every rank calls it, and nothing is written.

    (But for the swap files of an optimizer on NVMe, which DeepSpeed copies into `folder` itself.)
    """
    taken = Captured()
    buffers.restart()
    if engine.zero_optimization_partition_weights():
        taken.weights = _gathered(model, buffers)

    def save(state: dict[str, Any], path: Path) -> None:
        if state.get("module") and not engine.zero_optimization_partition_weights():
            weights = {name.removeprefix(PREFIX): value for name, value in state["module"].items()}
            taken.weights = buffers.copy(weights)
            state = {**state, "module": None}
        taken.states.append((str(path.relative_to(folder)), buffers.copy(state)))

    with _own_files(engine, save):
        engine.save_checkpoint(
            str(folder), tag=layout.STATE, client_state={"names": names_of_groups(engine)}, save_latest=False
        )
    buffers.wait()
    return taken


def restore(engine: Any, folder: Path) -> bool:
    """Load a checkpoint that was made with the same placement; every rank calls it."""
    with _own_files(engine, None):
        loaded, _ = engine.load_checkpoint(str(folder), tag=layout.STATE)
    return loaded is not None


def names_of_groups(engine: Any) -> list[list[str]]:
    """Names of the optimizer's parameters by group where it works on them as they are (ZeRO 0), in its order."""
    if engine.zero_optimization():
        return []
    names = engine.param_names
    return [[names.get(parameter, "") for parameter in group["params"]] for group in engine.optimizer.param_groups]


def _gathered(model: nn.Module, buffers: HostBuffers) -> dict[str, Tensor]:
    """All weights of a model that ZeRO 3 has partitioned, on rank 0; one at a time is whole on the others.

    A shared one is there under each of its names, as in a state dict.
    """
    from deepspeed.runtime.zero import GatheredParameters

    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    kept: dict[str, Tensor] = {}
    first = dist.get_rank() == 0
    for parameter, own in names.items():
        with GatheredParameters([parameter]):
            if first:
                kept |= dict.fromkeys(own, buffers.copy(parameter.data))
    if first:
        stored = model.state_dict().keys()
        kept |= {name: buffers.copy(value) for name, value in model.named_buffers() if name in stored}
    return kept


class _own_files:
    """DeepSpeed with our checkpoint engine for the time being."""

    def __init__(self, engine: Any, save: Callable[[dict[str, Any], Path], None] | None) -> None:
        self.engine, self.save = engine, save

    def __enter__(self) -> None:
        engine, self.before = self.engine, self.engine.checkpoint_engine
        engine.checkpoint_engine = _checkpoint_engine(self.save)
        engine._copy_recovery_script = lambda path: None  # it would write, on rank 0 alone

    def __exit__(self, *_: object) -> None:
        self.engine.checkpoint_engine = self.before
        del self.engine._copy_recovery_script


def _checkpoint_engine(take: Callable[[dict[str, Any], Path], None] | None) -> Any:
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

    class HostCopies(CheckpointEngine):
        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            pass

        def create(self, info: Any) -> None:
            pass

        def save(self, state_dict: dict[str, Any], path: str) -> None:
            assert take is not None
            take(state_dict, Path(path))

        def load(self, path: str, map_location: Any = None) -> Any:
            state = shards.read_state(Path(path))
            if "module" in state and state["module"] is None:
                weights = read_weights(Path(path).parents[1])
                state["module"] = {PREFIX + name: value for name, value in weights.items()}
            return state

        def commit(self, info: Any) -> bool:
            return True

    return HostCopies()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The model's weights of the checkpoint `folder`, by name."""
    from safetensors.torch import load_file

    return load_file(str(folder / layout.MODEL / "model.safetensors"))
