"""DeepSpeed's configuration from ours.

`engine_config` is where placement becomes a DeepSpeed config: ZeRO stage, offload, and the global batch split
into ranks × accumulation × micro-batch. It takes plain values, since this package knows no task or model. A user's
own settings go over it (`own`), but for those that would change what is computed: these are refused by name.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.errors import BadConfig

TOKENS_PER_MICRO_BATCH = 32_768
"""Where the stage may choose the micro-batch: as many sequences per forward as stay below this many tokens."""
NO_CLIPPING = 1e30
"""Clipping at this norm changes nothing, and DeepSpeed still reports the norm at every ZeRO stage."""

FREE_SECTIONS = (
    "aio",
    "checkpoint",
    "comms_logger",
    "csv_monitor",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "nebula",
    "prescale_gradients",
    "steps_per_print",
    "tensorboard",
    "wall_clock_breakdown",
    "wandb",
    "zero_optimization",
)
"""What a user may set: how DeepSpeed works and what it prints, never what comes out."""

BATCH = "it follows from loop.batch_size, placement.workers and placement.micro_batch"
PRECISION = "set loop.precision: it is part of what is computed"
OPTIMIZER = "set it in loop: it is part of what is computed"
FIXED = "it would change what is computed, so no placement has it"
OURS: Mapping[str, str] = {
    "train_batch_size": BATCH,
    "train_micro_batch_size_per_gpu": "set placement.micro_batch",
    "gradient_accumulation_steps": BATCH,
    "optimizer": OPTIMIZER,
    "scheduler": OPTIMIZER,
    "gradient_clipping": "set loop.clip_norm: it is part of what is computed",
    "fp16": PRECISION,
    "bf16": PRECISION,
    "bfloat16": PRECISION,
    "amp": PRECISION,
    "torch_autocast": PRECISION,
    "data_types": PRECISION,
    "communication_data_type": "gradients are reduced in fp32 at every placement",
    "activation_checkpointing": "set placement.activation_checkpointing",
    "zero_force_ds_cpu_optimizer": "the optimizer is the same on every device",
    "zero_allow_untested_optimizer": "the optimizer is the same on every device",
    "seed": "set loop.seed",
    "zero_optimization.stage": "set placement.zero_stage",
    "zero_optimization.offload_optimizer.device": "set placement.offload_optimizer",
    "zero_optimization.offload_optimizer.nvme_path": "set placement.nvme_path",
    "zero_optimization.offload_optimizer.super_offload": "it needs another optimizer than the loop's",
    "zero_optimization.offload_param.device": "set placement.offload_parameters",
    "zero_optimization.offload_param.nvme_path": "set placement.nvme_path",
    "zero_optimization.cpu_offload": "set placement.offload_optimizer",
    "zero_optimization.cpu_offload_params": "set placement.offload_parameters",
    "zero_optimization.overlap_comm": "set placement.overlap_comm",
    "zero_optimization.compute_grad_norm": "the loop records the norm and clips by it",
    "zero_optimization.zero_quantized_weights": FIXED,
    "zero_optimization.zero_quantized_nontrainable_weights": FIXED,
    "zero_optimization.zero_quantized_gradients": FIXED,
    "zero_optimization.zeropp_loco_param": FIXED,
    "zero_optimization.zenflow": FIXED,
    **dict.fromkeys(
        (
            "compression_training",
            "curriculum_learning",
            "data_efficiency",
            "eigenvalue",
            "gradient_predivide_factor",
            "progressive_layer_drop",
            "quantize_training",
            "sparse_attention",
            "sparse_gradients",
        ),
        FIXED,
    ),
    **dict.fromkeys(("autotuning", "elasticity", "pipeline", "tensor_parallel"), "the placement is decided here alone"),
}
"""{key: what to do instead} of settings that are ours, or that would change the mathematics."""


def read_own_settings(path: str) -> dict[str, Any]:
    """A user's DeepSpeed JSON. Raises BadConfig, naming the file, where it is not one."""
    if not path:
        return {}
    try:
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(
            f"placement.deepspeed: {path}: {error.strerror or error}", "give the path of a DeepSpeed JSON file"
        ) from None
    except ValueError as error:
        raise BadConfig(f"placement.deepspeed: {path} is not JSON: {error}", "correct it") from None
    if not isinstance(found, dict):
        raise BadConfig(f"placement.deepspeed: {path} holds a {type(found).__name__}, expected an object", "correct it")
    return found


def check_own_settings(own: Mapping[str, Any]) -> None:
    """Raise BadConfig, naming all of them, for keys that are not the user's to set here, or that nobody knows.

    What stands inside `zero_optimization` and the other sections DeepSpeed looks at itself, when training starts.
    """
    refused = [f"{key} ({OURS[key]})" for key in _paths(own) if key in OURS]
    if refused:
        raise BadConfig(
            f"placement.deepspeed may not set {'; '.join(refused)}",
            "take these keys out; the generated ones are in the stage's log",
        )
    for key in own:
        if key not in FREE_SECTIONS:
            near = difflib.get_close_matches(key, FREE_SECTIONS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise BadConfig(
                f"placement.deepspeed: unknown key {key!r}", f"{hint}what can be set: {', '.join(FREE_SECTIONS)}"
            )


def _paths(settings: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in settings.items():
        yield above + name
        if isinstance(value, Mapping):
            yield from _paths(value, f"{above}{name}.")


def engine_config(
    *,
    batch_size: int,
    world_size: int,
    length_tokens: int,
    zero_stage: int = 0,
    micro_batch: int = 0,
    clip_norm: float = 0.0,
    offload_optimizer: str = "none",
    offload_parameters: str = "none",
    nvme_path: str = "",
    overlap_comm: bool = False,
    bucket_elements: int = 50_000_000,
    own: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """DeepSpeed's JSON for one training run.

    Args:
        batch_size: sequences per optimizer step, over all ranks.
        world_size: data-parallel ranks.
        length_tokens: longest sequence, for the choice of micro-batch.
        zero_stage: 0 none, 1 optimizer state, 2 and gradients, 3 and weights partitioned over the ranks.
        micro_batch: most sequences per rank and forward; 0 chooses.
        clip_norm: largest global gradient norm; 0 does not clip.
        offload_optimizer, offload_parameters: none, cpu or nvme; parameters at stage 3 only.
        nvme_path: folder for nvme.
        overlap_comm: reduce while the backward pass goes on; needs CUDA's streams.
        bucket_elements: gradients or weights per collective.
        own: a user's settings, put over these key by key.

    The number of micro-batches is rounded up, and they may differ by a sequence: the loss is normalised
    by the global count of labels, so no split changes the mathematics. Precision is not here: fp16 and bf16 are
    autocast inside the model (`modeling.engine`).

    Raises:
        BadConfig: `own` sets what is not the user's to set here.
    """
    rows = -(-batch_size // world_size)
    micro = micro_batch or max(1, TOKENS_PER_MICRO_BATCH // max(1, length_tokens))
    accumulation = -(-rows // min(micro, rows))
    micro = -(-rows // accumulation)
    zero: dict[str, Any] = {"stage": zero_stage}
    if zero_stage:
        # Few collectives for small models: each bucket is one.
        zero |= {
            "overlap_comm": overlap_comm,
            "contiguous_gradients": zero_stage > 1,
            "reduce_bucket_size": bucket_elements,
            "allgather_bucket_size": bucket_elements,
        }
    if zero_stage == 3:
        # Small tensors (norms, biases) stay whole: gathering them costs more than keeping them.
        zero |= {"stage3_param_persistence_threshold": 10_000, "stage3_prefetch_bucket_size": bucket_elements}
    if zero_stage and offload_optimizer != "none":
        zero |= {"offload_optimizer": _offload(offload_optimizer, nvme_path)}
    if zero_stage == 3 and offload_parameters != "none":
        zero |= {"offload_param": _offload(offload_parameters, nvme_path)}
    generated = {
        "train_batch_size": micro * accumulation * world_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        # At stage 0 DeepSpeed clips without telling the norm: there the loop does it.
        "gradient_clipping": (clip_norm or NO_CLIPPING) if zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**12,
        "wall_clock_breakdown": False,
    }
    over: Mapping[str, Any] = own or {}
    check_own_settings(over)
    return _merged(generated, over)


def _offload(device: str, nvme_path: str) -> dict[str, Any]:
    place = {"nvme_path": nvme_path} if device == "nvme" else {}
    return {"device": device, "pin_memory": True, **place}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for name, value in over.items():
        below = found.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = _merged(below, value)
        found[name] = value
    return found


def warm_up() -> None:
    """Import torch and DeepSpeed once, so that their bytecode is compiled before a first run (`make env`).

    Nothing is built: `modeling.engine` keeps DeepSpeed's C++ op for CPUs, which is for inference, switched off.
    """
    import logging
    import os

    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    deepspeed.init_distributed  # noqa: B018 - the import is the point
