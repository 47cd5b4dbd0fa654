"""Machines of a cluster: what `ray_config.yaml` says of its node types, and what is known of clouds' instance types.

Planning reads it: how much memory a worker has, how fast machines talk, what an hour costs. A node type may say it
itself, in labels, which Ray's launcher allows and passes on to the nodes:

    gpu_worker:
      labels:
        ray.io/accelerator-type: L4           # Ray's own; the GPU's name in modeling/hardware.py
        triptych/usd-per-hour: "2.10"         # what you pay for the machine
        triptych/memory-gib: "192"            # of the host
        triptych/network-gbit: "40"
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.errors import BadConfig


@dataclass(frozen=True)
class Machine:
    """One node type.

    Attributes:
        gpu: name of its GPUs; empty: none, or not known.
        usd_per_hour: 0: not known.
        network_gbit: per second, one direction; 0: not known.
        most: how many of it a cluster may have at once.
    """

    name: str
    gpu: str = ""
    gpus: int = 0
    cpus: int = 0
    memory_gib: float = 0.0
    network_gbit: float = 0.0
    usd_per_hour: float = 0.0
    most: int = 1


def _aws(gpu: str, gpus: int, cpus: int, memory_gib: float, network_gbit: float, usd_per_hour: float) -> dict[str, Any]:
    return {
        "gpu": gpu,
        "gpus": gpus,
        "cpus": cpus,
        "memory_gib": memory_gib,
        "network_gbit": network_gbit,
        "usd_per_hour": usd_per_hour,
    }


INSTANCES: dict[str, dict[str, Any]] = {
    # Sizes of AWS's families, and US list prices on demand about 2025, not looked up since: a first guess. Prices
    # move, and spot is cheaper: a label of the node type says what you pay. "Up to" networks are their baseline.
    "m7i.xlarge": _aws("", 0, 4, 16, 1.56, 0.2016),
    "m7i.4xlarge": _aws("", 0, 16, 64, 6.25, 0.8064),
    "m7i.8xlarge": _aws("", 0, 32, 128, 12.5, 1.6128),
    "m7i.16xlarge": _aws("", 0, 64, 256, 25, 3.2256),
    "g4dn.12xlarge": _aws("T4", 4, 48, 192, 50, 3.912),
    "g5.xlarge": _aws("A10G", 1, 4, 16, 2.5, 1.006),
    "g5.12xlarge": _aws("A10G", 4, 48, 192, 40, 5.672),
    "g5.48xlarge": _aws("A10G", 8, 192, 768, 100, 16.288),
    "g6.xlarge": _aws("L4", 1, 4, 16, 2.5, 0.8048),
    "g6.12xlarge": _aws("L4", 4, 48, 192, 40, 4.6016),
    "g6.48xlarge": _aws("L4", 8, 192, 768, 100, 13.3504),
    "g6e.xlarge": _aws("L40S", 1, 4, 32, 2.5, 1.861),
    "g6e.12xlarge": _aws("L40S", 4, 48, 384, 100, 10.4926),
    "g6e.48xlarge": _aws("L40S", 8, 192, 1536, 400, 30.1312),
    "p3.16xlarge": _aws("V100-16GB", 8, 64, 488, 25, 24.48),
    "p4d.24xlarge": _aws("A100-40GB", 8, 96, 1152, 400, 21.96),
    "p4de.24xlarge": _aws("A100-80GB", 8, 96, 1152, 400, 27.45),
    "p5.48xlarge": _aws("H100", 8, 192, 2048, 3200, 55.04),
    "p5en.48xlarge": _aws("H200", 8, 192, 2048, 3200, 63.30),
    "p6-b200.48xlarge": _aws("B200", 8, 192, 2048, 3200, 113.93),
}

RESOURCES = {"CPU": "cpus", "GPU": "gpus"}
LABELS = {
    "triptych/usd-per-hour": "usd_per_hour",
    "triptych/memory-gib": "memory_gib",
    "triptych/network-gbit": "network_gbit",
}
ACCELERATOR = "ray.io/accelerator-type"


def read_cluster(path: Path) -> list[Machine]:
    """The node types of a cluster launcher's file that can have workers, in its order.

    Raises BadConfig, naming the file and the field, where it is missing, is no such file, or a field has no such value.
    """
    import yaml

    remedy = "give a file for Ray's cluster launcher"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"--cluster {path}: {error.strerror or error}", remedy) from None
    except UnicodeDecodeError as error:
        raise BadConfig(f"--cluster {path} is not UTF-8 at byte {error.start}", remedy) from None
    except yaml.YAMLError as error:
        raise BadConfig(f"--cluster {path} is not YAML: {str(error).splitlines()[0]}", "correct it") from None
    types = found.get("available_node_types") if isinstance(found, Mapping) else None
    if not isinstance(types, Mapping) or not types:
        raise BadConfig(f"--cluster {path}: no available_node_types", remedy)
    ceiling = int(_number(path, "max_workers", found.get("max_workers", 1 << 30)))
    return [
        _machine(path, str(name), kind, ceiling) for name, kind in types.items() if name != found.get("head_node_type")
    ]


def _machine(path: Path, name: str, kind: Any, ceiling: int) -> Machine:
    where = f"available_node_types.{name}"
    kind = _section(path, where, kind)
    resources, labels = (_section(path, f"{where}.{part}", kind.get(part)) for part in ("resources", "labels"))
    node = _section(path, f"{where}.node_config", kind.get("node_config"))
    known = INSTANCES.get(str(node.get("InstanceType", "")), {})
    most = int(_number(path, f"{where}.max_workers", kind.get("max_workers", ceiling)))
    machine = Machine(name, most=min(ceiling, most), **known)
    changed: dict[str, Any] = {}
    for resource, field in RESOURCES.items():
        if resource in resources:
            changed[field] = int(_number(path, f"{where}.resources.{resource}", resources[resource]))
    if "memory" in resources:  # Ray's unit is the byte
        changed["memory_gib"] = _number(path, f"{where}.resources.memory", resources["memory"]) / (1 << 30)
    if ACCELERATOR in labels:
        changed["gpu"] = str(labels[ACCELERATOR])
    for label, field in LABELS.items():
        if label in labels:
            changed[field] = _number(path, f"{where}.labels.{label}", labels[label], 'in quotes, such as "2.10"')
    return replace(machine, **changed)


def _section(path: Path, where: str, value: Any) -> Mapping[str, Any]:
    """A part of the file that has keys; what is left empty has none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadConfig(f"--cluster {path}: {where} is {value!r}, expected keys and values", "correct it")
    return value


def _number(path: Path, where: str, value: Any, how: str = "such as 4") -> float:
    """A number of the file, not negative."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        found = "empty" if value is None else repr(value)
        raise BadConfig(f"--cluster {path}: {where} is {found}, expected a number, 0 or more", f"write it {how}")
    return number


def host_memory_bytes() -> int:
    """Memory that processes of this machine may have: what there is, or the control group's limit if that is less.

    0 where neither can be read (no Linux).
    """
    total = 0
    try:
        line = next(each for each in Path("/proc/meminfo").read_text().splitlines() if each.startswith("MemTotal"))
        total = int(line.split()[1]) * 1024
        for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
            limit = Path(name)
            if limit.is_file() and (text := limit.read_text().strip()).isdigit():
                total = min(total, int(text))
    except (OSError, StopIteration, ValueError):
        pass
    return total


def local_gpus() -> list[str]:
    """What NVIDIA's driver calls this machine's GPUs, without asking CUDA, which takes seconds; empty: none."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            text = path.read_text()
        except OSError:
            continue
        names += [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Model:")]
    return names
