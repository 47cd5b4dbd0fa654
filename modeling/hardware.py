"""GPUs as data: memory, peaks and bandwidths, by the names people use; what the processor here multiplies.

No torch: planning reads it, too.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modeling.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: how people ask for it.
        memory_gib: what CUDA reports as its capacity, a little below the data sheet's figure.
        tflops: {precision: dense peak of matrix products, without sparsity}; fp32 with TF32 off, bf16 and fp16 with
            sums in fp32. A precision that is missing has no tensor cores there.
        memory_gb_per_second: bandwidth of its own memory.
        link_gb_per_second: to the other GPUs of its machine, one direction: NVLink, or PCIe 16x.
        seen_as: parts that `torch.cuda.get_device_name` has, all of them.
    """

    name: str
    memory_gib: float
    tflops: Mapping[str, float]
    memory_gb_per_second: float
    link_gb_per_second: float
    seen_as: tuple[str, ...]


def _peaks(half: float, fp32: float) -> dict[str, float]:
    return {"bf16": half, "fp16": half, "fp32": fp32}


# Peaks and bandwidths as NVIDIA states them (dense, i.e. half of a figure "with sparsity"; NVLink and PCIe figures
# are of both directions together, here halved), rounded. None was measured here. A name that holds another stands
# before it.
GPUS = (
    Gpu("B200", 178.3, _peaks(2250, 75), 8000, 900, ("B200",)),  # HGX B200
    Gpu("H200", 139.8, _peaks(989, 67), 4800, 450, ("H200",)),  # SXM
    Gpu("H100-NVL", 93.1, _peaks(835, 60), 3900, 300, ("H100", "NVL")),
    Gpu("H100-PCIe", 79.1, _peaks(756, 51), 2000, 64, ("H100", "PCIe")),
    Gpu("H100", 79.1, _peaks(989, 67), 3350, 450, ("H100",)),  # SXM
    Gpu("A100-80GB", 79.1, _peaks(312, 19.5), 2039, 300, ("A100", "80GB")),  # SXM
    Gpu("A100-40GB", 39.4, _peaks(312, 19.5), 1555, 300, ("A100",)),  # SXM
    Gpu("A10G", 22.0, _peaks(70, 35), 600, 32, ("A10G",)),  # made for AWS
    Gpu("A10", 22.0, _peaks(125, 31.2), 600, 32, ("A10",)),
    Gpu("L40S", 44.4, _peaks(362, 91.6), 864, 32, ("L40S",)),
    Gpu("L4", 22.0, _peaks(121, 30.3), 300, 32, ("L4",)),
    Gpu("RTX-4090", 23.5, _peaks(165, 82.6), 1008, 32, ("RTX 4090",)),
    Gpu("RTX-3090", 23.6, _peaks(71, 35.6), 936, 32, ("RTX 3090",)),
    Gpu("T4", 14.6, {"fp16": 65, "fp32": 8.1}, 320, 16, ("T4",)),
    Gpu("V100-32GB", 31.7, {"fp16": 125, "fp32": 15.7}, 900, 150, ("V100", "32GB")),
    Gpu("V100-16GB", 15.7, {"fp16": 125, "fp32": 15.7}, 900, 150, ("V100",)),
)


def gpu(name: str) -> Gpu:
    """The GPU of that name, in any case; `a100` and `v100` are the larger ones.

    Raises ConfigError for one that is not in the table, with the nearest.
    """
    known = {_plain(each.name): each for each in reversed(GPUS)}
    known |= {"a100": known["a100-80gb"], "v100": known["v100-32gb"]}
    wanted = _plain(name)
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=1)
    hint = f"did you mean {known[near[0]].name!r}? " if near else ""
    raise ConfigError(f"unknown GPU {name!r}", f"{hint}known: {', '.join(each.name for each in GPUS)}")


def gpu_of_device(device_name: str) -> Gpu | None:
    """The GPU that calls itself so (`torch.cuda.get_device_name`); None for one that is not in the table."""
    found = (each for each in GPUS if all(part.lower() in device_name.lower() for part in each.seen_as))
    return next(found, None)


@functools.cache
def processor_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's processor multiplies bf16: AMX, AVX512-BF16, or Arm's; False where Linux does not say.

    Without such instructions a product in bf16 took 4 to 90 times as long as in fp32 (docs/log.md).
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags)


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "-").replace("_", "-").removeprefix("nvidia-")
