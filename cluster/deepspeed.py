"""DeepSpeed's configuration from ours.

`engine_config` is where placement becomes a DeepSpeed config: ZeRO stage, and the global batch split
into ranks × accumulation × micro-batch. It takes plain values, since this package knows no task or model.
"""

from __future__ import annotations

from typing import Any

TOKENS_PER_MICRO_BATCH = 32_768
"""Where the stage may choose the micro-batch: as many sequences per forward as stay below this many tokens."""
NO_CLIPPING = 1e30
"""Clipping at this norm changes nothing, and DeepSpeed still reports the norm at every ZeRO stage."""


def engine_config(
    *,
    batch_size: int,
    world_size: int,
    length_tokens: int,
    zero_stage: int = 0,
    micro_batch: int = 0,
    clip_norm: float = 0.0,
    offload_optimizer: bool = False,
) -> dict[str, Any]:
    """DeepSpeed's JSON for one training run.

    Args:
        batch_size: sequences per optimizer step, over all ranks.
        world_size: data-parallel ranks.
        length_tokens: longest sequence, for the choice of micro-batch.
        zero_stage: 0 none, 1 optimizer state, 2 and gradients, 3 and weights partitioned over the ranks.
        micro_batch: most sequences per rank and forward; 0 chooses.
        clip_norm: largest global gradient norm; 0 does not clip.
        offload_optimizer: optimizer state in host memory.

    The number of micro-batches is rounded up, and they may differ by a sequence: the loss is normalised
    by the global count of labels, so no split changes the mathematics. Precision is not here: bf16 is
    autocast inside the model (`modeling.engine`).
    """
    rows = -(-batch_size // world_size)
    micro = micro_batch or max(1, TOKENS_PER_MICRO_BATCH // max(1, length_tokens))
    accumulation = -(-rows // min(micro, rows))
    micro = -(-rows // accumulation)
    zero: dict[str, Any] = {"stage": zero_stage}
    if zero_stage:
        # One bucket for small models: each bucket is one collective. Overlap needs CUDA streams.
        zero |= {"overlap_comm": False, "contiguous_gradients": zero_stage > 1, "reduce_bucket_size": 50_000_000}
    if zero_stage == 3:
        # Small tensors (norms, biases) stay whole: gathering them costs more than keeping them.
        zero |= {"stage3_param_persistence_threshold": 10_000}
    if offload_optimizer and zero_stage:
        zero |= {"offload_optimizer": {"device": "cpu", "pin_memory": True}}
    return {
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
