"""DeepSpeed under the loop: process group, optimizer, engine, and a clean exit.

bf16 and fp16 are torch's autocast around the model's forward, so weights, gradients, their reduction and the
optimizer stay in fp32 at every ZeRO stage: DeepSpeed's own bf16 mode keeps a second, rounded copy of
the weights, and on CPU it fails at stage 3.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn

from modeling.errors import ConfigError
from modeling.optimizers.groups import make_optimizer
from modeling.optimizers.partitions import OfWholeTensors, pieces_of
from modeling.optimizers.settings import check_stage
from modeling.precision import autocast
from modeling.schedule import LoopConfig
from modeling.validation import scores


def import_deepspeed() -> ModuleType:
    """DeepSpeed, told which accelerator there is and to log errors only."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    # Its calls of torch's older collectives warn once a step.
    warnings.filterwarnings("ignore", message="`torch.distributed.*is deprecated", category=FutureWarning)
    # Its autotuner imports MLflow where it finds it, which takes longer than all the rest.
    hidden = {"mlflow": None} if "mlflow" not in sys.modules else {}
    sys.modules.update(hidden)  # type: ignore[arg-type]
    try:
        with redirect_stdout(io.StringIO()):
            import deepspeed
    finally:
        for name in hidden:
            del sys.modules[name]

    if os.environ["DS_ACCELERATOR"] == "cpu":
        with _eager_decorators():
            import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
        # Its one C++ op on CPU, an all-reduce in shared memory for inference, has no use in training, but
        # costs a compiler at first use, and probing for it runs the linker in every process.
        import deepspeed.ops

        vars(deepspeed.ops).setdefault("__compatible_ops__", {})
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


@contextmanager
def _eager_decorators() -> Iterator[None]:
    """`@torch.compile` as a no-op: DeepSpeed imports a Muon that is decorated with it, and with it the compiler."""
    compile_ = torch.compile
    torch.compile = lambda f=None, **_: f if f is not None else lambda g: g
    try:
        yield
    finally:
        torch.compile = compile_


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """(rank, world size) of the group this process is in; without one, a group of one for the time being.

    On leaving, DeepSpeed forgets the group, and torch has its own linear layer again, so that a reused process can
    train again in another, and to the same bytes as a new one.
    """
    own = not dist.is_initialized()
    if own:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed insists
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        import_deepspeed()
        from deepspeed.comm import comm
        from deepspeed.utils import groups

        if own:
            dist.destroy_process_group()
            del os.environ["LOCAL_RANK"]
        groups._release_process_group_references(group=None)
        comm.cdb = None
        _take_back_linear()


def _take_back_linear() -> None:
    """Undo what ZeRO 3 does to every model of the process: it replaces torch's linear function, and leaves it so."""
    patched = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    own = getattr(patched and patched.InsertPostInitMethodToModuleSubClasses, "linear_bk", None)
    if own is not None:
        nn.functional.linear = own


def device_of_rank() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


class ScaledLoss(nn.Module):
    """What DeepSpeed runs: the model under autocast, its summed losses times the normalising factors.

    Without factors it gives `modeling.validation.scores` instead.
    """

    def __init__(self, model: nn.Module, precision: str, device_type: str) -> None:
        super().__init__()
        self.model, self.precision, self.device_type = model, precision, device_type

    def forward(self, batch: dict[str, Tensor], scale_K: Tensor | None, label_bytes: Tensor | None = None) -> Any:
        """The loss to differentiate, and the plain sums of losses [K] (detached)."""
        with autocast(self.device_type, self.precision):
            if scale_K is None:
                return scores(self.model, batch, label_bytes)
            loss_sum_K = self.model(batch).loss_sum.reshape(-1)
        return (loss_sum_K * scale_K).sum(), loss_sum_K.detach()


def start_engine(model: nn.Module, loop: LoopConfig, engine_config: Mapping[str, Any], device: torch.device) -> Any:
    """A DeepSpeed engine over `model`, with the loop's optimizer; rank 0's weights go to all ranks.

    Raises ConfigError where the optimizer does not work at the ZeRO stage, DeepSpeed refuses a user's own settings, or
    nvme offload cannot work here.
    """
    stage = int(engine_config["zero_optimization"]["stage"])
    check_stage(loop.optimizer, stage)
    deepspeed = import_deepspeed()
    module = ScaledLoss(model, loop.precision, device.type).to(device)
    optimizer = make_optimizer(model, loop.optimizer, loop.peak_lr)
    _check_disk(engine_config)
    try:
        with redirect_stdout(io.StringIO()):  # it prints that its op is built
            engine, _, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=dict(engine_config))
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError(
            f"placement.deepspeed: DeepSpeed refuses {found}", "correct or leave out these keys"
        ) from None
    if stage and isinstance(optimizer, OfWholeTensors):
        optimizer.pieces = pieces_of(engine.optimizer, stage)
    engine.train()
    _share_patience()
    return engine


def _check_disk(engine_config: Mapping[str, Any]) -> None:
    """Raise ConfigError where something shall lie on a disk that DeepSpeed cannot read or write here."""
    zero = engine_config["zero_optimization"]
    places = [zero.get(part, {}).get("nvme_path") for part in ("offload_optimizer", "offload_param")]
    for place in filter(None, places):
        from deepspeed.accelerator import get_accelerator

        try:
            os.makedirs(place, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"placement.nvme_path {place}: {error.strerror}", "give a folder on a local disk"
            ) from None
        if not get_accelerator().create_op_builder("AsyncIOBuilder").is_compatible(verbose=False):
            raise ConfigError(
                "nvme offload needs DeepSpeed's async_io, which needs the library libaio with its headers",
                "install libaio-dev (or libaio-devel), g++ and ninja on every worker, or offload to cpu",
            )


def _share_patience() -> None:
    """Groups that DeepSpeed made wait for a silent rank as long as the one they are in, not torch's 30 minutes."""
    from torch.distributed import distributed_c10d

    for device in dist.group.WORLD._device_types:
        patience = dist.group.WORLD._get_backend(device).options._timeout
        for group in list(distributed_c10d._world.pg_map):
            if device in group._device_types:
                group._get_backend(device)._set_default_timeout(patience)


def full_weights(engine: Any, model: nn.Module) -> dict[str, Tensor]:
    """All weights of `model` on the CPU, on every rank; at ZeRO stage 3 they are gathered first."""
    if engine.zero_optimization_stage() < 3:
        return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    deepspeed = import_deepspeed()
    weights: dict[str, Tensor] = {}
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        weights.update({name: value.detach().cpu().clone() for name, value in model.state_dict().items()})
    return weights
