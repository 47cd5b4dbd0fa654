"""Resume on another number of workers or at another ZeRO stage, through DeepSpeed's universal layout.

In that layout every parameter has a folder with its fp32 weights and each tensor of the optimizer's state, whole:

    zero/<parameter>/fp32.pt exp_avg.pt exp_avg_sq.pt …   {"param": tensor of the parameter's shape}
    zero/<parameter>/step.pt                              what is not a tensor of elements: as it is

DeepSpeed's converter (`ds_to_universal`) writes Adam's two moments only and not from stage 0; its loader of stage 3
takes no others, and gives all parameters the weight decay of the first group. So the layout is written here from
any stage's shards, and read into what DeepSpeed's own `load_state_dict` of the stage takes: any state that has
an element per weight can be divided anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from modeling.checkpoints import layout, shards
from modeling.checkpoints.capture import PREFIX, read_weights
from modeling.errors import ConfigError
from modeling.step import Stepper

FP32 = "fp32"
State = dict[str, Any]
"""Of one parameter: {fp32, names of the optimizer's tensors: [elements]; others: plain values or 0-dim tensors}."""


def resume_elsewhere(stepper: Stepper, path: Path, fits: Mapping[str, Any]) -> None:
    """Load the checkpoint `path`, made as `fits` says, into an engine of another placement.

    Every rank calls it. Rank 0 writes the universal layout beside the checkpoint; it is removed afterwards.

    Raises:
        ConfigError: the optimizer keeps state that cannot be divided.
    """
    target = path.parent / f".partial-universal-{path.name}"
    problem: list[Any] = [None]
    if stepper.rank == 0:
        try:
            shutil.rmtree(target, ignore_errors=True)
            convert(path, fits, target)
        except ConfigError as error:
            problem = [(error.message, error.remedy)]
    if stepper.world_size > 1:
        dist.broadcast_object_list(problem, src=0, device=stepper.device)
    try:
        if problem[0] is not None:
            raise ConfigError(*problem[0])
        _load(stepper, path, fits, target)
    finally:
        if stepper.world_size > 1:
            dist.barrier()
        if stepper.rank == 0:
            shutil.rmtree(target, ignore_errors=True)


def convert(path: Path, fits: Mapping[str, Any], target: Path) -> None:
    """Write the universal layout of a checkpoint's shards. Raises ConfigError for state that cannot be divided."""
    stage = int(fits["zero_stage"])
    if any((path / layout.STATE).glob("offloaded_tensors/*")):
        raise ConfigError(
            f"{path.name} was made with the optimizer's state on NVMe, which only the same placement can read",
            "resume with the workers, the ZeRO stage and the offload that it was made with",
        )
    read = {0: _whole, 1: _flat, 2: _flat, 3: _partitioned}[stage]
    for name, state in read(path / layout.STATE, fits):
        folder = target / "zero" / name
        for key, value in state.items():
            # A slice of a mapped shard would be written with all of the shard.
            shards.write_state(
                folder / f"{key}.pt", {"param": value.clone()} if _elements(value) else value, lambda: False
            )


def _whole(folder: Path, fits: Mapping[str, Any]) -> Iterator[tuple[str, State]]:
    """Stage 0: torch's own state, by parameter."""
    saved = shards.read_state(folder / "mp_rank_00_model_states.pt", mapped=True)
    weights = read_weights(folder.parent)
    names = [name for group in saved["names"] for name in group]
    if "state" not in saved["optimizer"]:
        raise ConfigError(
            f"{folder.parent.name} was made in fp16 at ZeRO stage 0, whose state only the same placement can read",
            "resume with zero_stage=0 and as many workers as before",
        )
    for number, name in enumerate(names):
        yield name, {FP32: weights[name.removeprefix(PREFIX)], **saved["optimizer"]["state"].get(number, {})}


def _flat(folder: Path, fits: Mapping[str, Any]) -> Iterator[tuple[str, State]]:
    """Stages 1 and 2: each rank has a piece of each group's flat vector, and knows which parameters are in it."""
    from deepspeed.checkpoint.constants import (
        BASE_OPTIMIZER_STATE,
        GROUP_PADDINGS,
        PARAM_SLICE_MAPPINGS,
        SINGLE_PARTITION_OF_FP32_GROUPS,
    )

    ranks = [_shard(folder, rank)["optimizer_state_dict"] for rank in range(int(fits["world_size"]))]
    for group in range(len(ranks[0][SINGLE_PARTITION_OF_FP32_GROUPS])):
        pieces: dict[str, list[State]] = {}
        for saved in ranks:
            weights = saved[SINGLE_PARTITION_OF_FP32_GROUPS][group]
            state = _state_of_group(saved[BASE_OPTIMIZER_STATE], group)
            # What makes the partitions equal is at the end of the last: in the state, but not in the weights.
            padding = 0 if isinstance(saved[BASE_OPTIMIZER_STATE], list) else saved[GROUP_PADDINGS][group]
            _check_divisible(state, weights.numel() + padding, folder.parent.name, fits)
            for name, at in saved[PARAM_SLICE_MAPPINGS][group].items():
                pieces.setdefault(name, []).append(_sliced({FP32: weights, **state}, at.start, at.numel))
        for name, parts in pieces.items():
            yield name, _joined(parts)


def _state_of_group(saved: Any, group: int) -> State:
    return saved[group] if isinstance(saved, list) else saved["state"].get(group, {})


def _partitioned(folder: Path, fits: Mapping[str, Any]) -> Iterator[tuple[str, State]]:
    """Stage 3: each rank has an equal piece of each parameter, one after another in the vectors of sub-groups."""
    from deepspeed.checkpoint.constants import FP32_FLAT_GROUPS, OPTIMIZER_STATE_DICT

    world_size = int(fits["world_size"])
    ranks = [_shard(folder, rank)[OPTIMIZER_STATE_DICT] for rank in range(world_size)]
    shapes = shards.read_state(folder / "zero_pp_rank_0_mp_rank_00_model_states.pt", mapped=True)["param_shapes"]
    # The optimizer numbers its tensors group after group, which is the order of the sub-groups.
    for number, group in enumerate(shapes):
        offset = 0
        for name, shape in group.items():
            elements = shape.numel()
            size = -(-elements // world_size)
            parts = []
            for rank, saved in enumerate(ranks):
                weights = saved[FP32_FLAT_GROUPS][number]
                state = saved[OPTIMIZER_STATE_DICT]["state"].get(number, {})
                _check_divisible(state, weights.numel(), folder.parent.name, fits)
                length = max(0, min(size, elements - rank * size))
                parts.append(_sliced({FP32: weights, **state}, offset, length))
            yield name, _joined(parts)
            offset += size


def _shard(folder: Path, rank: int) -> dict[str, Any]:
    (path,) = folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return shards.read_state(path, mapped=True)


def _elements(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _check_divisible(state: State, elements: int, name: str, fits: Mapping[str, Any]) -> None:
    """Raise ConfigError, by name, for a tensor of the optimizer's that has not one element per weight."""
    for key, value in state.items():
        if _elements(value) and value.numel() != elements:
            raise ConfigError(
                f"{name}: {fits.get('optimizer')} keeps {key!r} with {value.numel()} elements for {elements} weights; "
                "such a state cannot be divided anew among workers",
                "resume with the workers and the ZeRO stage that the checkpoint was made with",
            )


def _sliced(flat: State, start: int, length: int) -> State:
    return {key: value.narrow(0, start, length) if _elements(value) else value for key, value in flat.items()}


def _joined(parts: list[State]) -> State:
    return {
        key: torch.cat([part[key] for part in parts]) if _elements(value) else value for key, value in parts[0].items()
    }


class _Universal:
    """Reads the layout, a slice of a file at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "zero"

    def state(self, name: str) -> State:
        """The parameter's state; its tensors are mapped files, to be read only."""
        found: State = {}
        for path in sorted((self.folder / name).glob("*.pt")):
            value = shards.read_state(path, mapped=True)
            found[path.stem] = value["param"] if isinstance(value, dict) else value
        return found


def _load(stepper: Stepper, path: Path, fits: Mapping[str, Any], target: Path) -> None:
    engine, universal = stepper.engine, _Universal(target)
    # The counters are in every rank's file of the model's state, or in rank 0's alone.
    counted = shards.read_state(min((path / layout.STATE).glob("*mp_rank_00_model_states.pt")), mapped=True)
    for name in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, name, counted[name])
    _load_weights(stepper, read_weights(path))
    if stepper.zero_stage == 0:
        _load_whole(engine, universal)
    elif stepper.zero_stage < 3:
        _load_flat(engine, universal, fits, path.name)
    else:
        _load_partitioned(engine, universal, fits, path.name)


def _load_weights(stepper: Stepper, weights: dict[str, Tensor]) -> None:
    model = stepper.model
    if stepper.zero_stage < 3:
        model.load_state_dict(weights)
        return
    from deepspeed.runtime.zero import GatheredParameters

    for name, parameter in model.named_parameters():
        with GatheredParameters([parameter], modifier_rank=0):
            if stepper.rank == 0:
                parameter.data.copy_(weights[name])
    for name, buffer in model.named_buffers():
        if name in weights:
            buffer.copy_(weights[name])


def _load_whole(engine: Any, universal: _Universal) -> None:
    """Stage 0: torch's optimizer, by parameter."""
    optimizer = engine.optimizer
    saved = optimizer.state_dict()
    saved["state"] = {}
    for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        state = universal.state(engine.param_names[parameter])
        del state[FP32]
        saved["state"][number] = {
            key: value.clone().view(parameter.shape) if _elements(value) else _scalar(value, optimizer)
            for key, value in state.items()
        }
    optimizer.load_state_dict(saved)


def _load_flat(engine: Any, universal: _Universal, fits: Mapping[str, Any], name: str) -> None:
    """Stages 1 and 2: this rank's piece of each group's flat vector."""
    from deepspeed.checkpoint.constants import (
        BASE_OPTIMIZER_STATE,
        PARAM_SLICE_MAPPINGS,
        SINGLE_PARTITION_OF_FP32_GROUPS,
    )

    optimizer = engine.optimizer
    saved = optimizer.state_dict()
    by_name = {engine.param_names[p]: p for group in optimizer.bit16_groups for p in group}
    weights, states = [], {}
    for number, flat in enumerate(optimizer.single_partition_of_fp32_groups):
        filled = _Filled(flat.numel())
        for parameter, at in saved[PARAM_SLICE_MAPPINGS][number].items():
            own = by_name[parameter]
            state = universal.state(parameter)
            _check_divisible(state, own.numel(), name, fits)
            filled.take(state, own._hp_mapping.lp_fragment_address.start, at.numel, at.start)
        weights.append(filled.weights())
        states[number] = filled.state(optimizer)
    saved[BASE_OPTIMIZER_STATE] = {**saved[BASE_OPTIMIZER_STATE], "state": states}
    saved[SINGLE_PARTITION_OF_FP32_GROUPS] = weights
    _load_native(optimizer, saved)


def _load_partitioned(engine: Any, universal: _Universal, fits: Mapping[str, Any], name: str) -> None:
    """Stage 3: this rank's piece of each parameter."""
    from deepspeed.checkpoint.constants import FP32_FLAT_GROUPS, OPTIMIZER_STATE_DICT

    optimizer = engine.optimizer
    optimizer.checkpoint_event_prologue()
    saved = optimizer.state_dict()
    rank, world_size = dist.get_rank(optimizer.dp_process_group), dist.get_world_size(optimizer.dp_process_group)
    weights, states = [], {}
    for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
        filled, offset = _Filled(flat.numel()), 0
        for parameter in optimizer.fp16_groups[number]:
            size = -(-parameter.ds_numel // world_size)
            state = universal.state(engine.param_names[parameter])
            _check_divisible(state, parameter.ds_numel, name, fits)
            filled.take(state, rank * size, max(0, min(size, parameter.ds_numel - rank * size)), offset)
            offset += size
        weights.append(filled.weights())
        states[number] = filled.state(optimizer)
    saved[OPTIMIZER_STATE_DICT] = {**saved[OPTIMIZER_STATE_DICT], "state": states}
    saved[FP32_FLAT_GROUPS] = weights
    _load_native(optimizer, saved)
    optimizer.checkpoint_event_epilogue()


class _Filled:
    """A flat vector of weights and its optimizer's tensors, filled parameter by parameter; zeros elsewhere."""

    def __init__(self, elements: int) -> None:
        self._elements, self._found = elements, State()

    def take(self, state: State, start: int, length: int, to: int) -> None:
        """Put `length` elements of a parameter's state, from `start` on, at `to`."""
        for key, value in state.items():
            if not _elements(value):
                self._found[key] = value
            elif length:
                flat = self._found.setdefault(key, torch.zeros(self._elements, dtype=value.dtype))
                flat.narrow(0, to, length).copy_(value.reshape(-1).narrow(0, start, length))

    def weights(self) -> Tensor:
        return self._found.get(FP32, torch.zeros(self._elements))

    def state(self, optimizer: Any) -> State:
        return {key: v if _elements(v) else _scalar(v, optimizer) for key, v in self._found.items() if key != FP32}


def _load_native(optimizer: Any, saved: dict[str, Any]) -> None:
    """DeepSpeed's own loading of the same placement's state."""
    group = optimizer.dp_process_group
    everyone: list[Any] = [None] * dist.get_world_size(group)
    everyone[dist.get_rank(group)] = saved
    optimizer.load_state_dict(everyone, load_optimizer_states=True, load_from_fp32_weights=True)


def _scalar(value: Any, optimizer: Any) -> Any:
    """A plain number or 0-dim tensor as the optimizer keeps it: torch's count steps in tensors, others in ints."""
    base = getattr(optimizer, "optimizer", optimizer)
    if isinstance(value, Tensor):
        number = value.item()
        plain = int(number) if float(number).is_integer() else number
        return value.clone() if type(base).__module__.startswith("torch.") else plain
    return value
