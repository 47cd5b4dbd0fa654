"""Connecting to Ray: in this process, or to a cluster; and what the cluster can hold."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cluster.errors import Unreachable
from cluster.machines import Machine

QUIET = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_open_telemetry": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "GOMP_SPINCOUNT": "10000",  # threads that wait must not take the cores that others work on
}

PROBE_SECONDS = 5.0
"""How long a cluster may take to answer a first call."""

Code = Callable[[], dict[str, Any]]


def connect(address: str | None, *, import_paths: Iterable[str] = (), code: Code | None = None) -> bool:
    """Connect this process to Ray, unless it is connected already.

    Args:
        address: None starts Ray inside this process; `auto` or `HOST:PORT` joins a running cluster;
            `ray://HOST:PORT` goes through Ray Client.
        import_paths: folders that workers of an in-process Ray shall import from.
        code: gives a Ray runtime environment that brings the code to a cluster.

    Returns:
        Whether this call made the connection (then the caller shuts it down).

    Raises:
        Unreachable: nothing answers at `address`.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if address not in (None, "auto", "inline") and "ray" not in sys.modules:
        _probe(address)
        use_token(address)  # Ray reads it when it is imported
    import ray

    if ray.is_initialized():
        return False
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not joins(address):
        paths = [*import_paths, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
        _start_here(common)
        return True
    _probe(address)
    use_token(address or "auto")
    try:
        environment = code() if code is not None and not _in_job() else None
        ray.init(address=address or "auto", runtime_env=environment, **common)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Unreachable(
            f"Ray at {address!r} does not accept the connection: {reason}",
            "check the address, the token (RAY_AUTH_MODE=token and its file), and that Ray versions agree",
        ) from None
    return True


def joins(address: str | None) -> bool:
    """Whether stages run on a cluster that this process joins, or has joined, rather than on this machine."""
    if address is not None:
        return address != "inline"
    ray = sys.modules.get("ray")
    return _in_job() or (ray is not None and ray.is_initialized())


def _in_job() -> bool:
    """Whether this process is a job that was submitted to a cluster."""
    return bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))


def _start_here(common: Mapping[str, Any]) -> None:
    """Start Ray inside this process; again, where the machine was too busy for it to be up within Ray's 30 s."""
    import ray

    for attempt in (1, 2):
        try:
            ray.init(
                address="local",
                num_cpus=max(2, os.cpu_count() or 2),  # two gloo workers even on one core
                include_dashboard=False,
                object_store_memory=512 * 1024**2,
                **common,
            )
            return
        except Exception as error:  # Ray raises no class of its own for this
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if attempt == 2:
                load = f" (load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores)"
                raise Unreachable(
                    f"Ray did not start on this machine within its time{load}",
                    "run the same command again when less else is at work, or use --address inline for one process",
                ) from None


def use_token(address: str = "") -> None:
    """Ray protects the clusters it starts by a token: use it where its file is present, unless the mode is set.

    `address` is of the cluster that this process will be a driver of. Where that is known to run without tokens, the
    driver must not have one: it would ask it of all who call back, be taken for dead, and lose its actors.
    """
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    if "RAY_AUTH_MODE" in os.environ or not (os.environ.get("RAY_AUTH_TOKEN") or os.path.isfile(path)):
        return
    os.environ["RAY_AUTH_MODE"] = "disabled" if address and _answers_without_token(address) else "token"


def _answers_without_token(address: str) -> bool:
    import grpc

    try:
        found = _newest_cluster() if address == "auto" else address
        if not found or "://" in found:  # Ray Client's driver is on the cluster itself
            return False
        with grpc.insecure_channel(found) as channel:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=PROBE_SECONDS)
    except (grpc.RpcError, ConnectionError):  # it wants a token (UNAUTHENTICATED) or TLS, or Ray will say what else
        return False
    return True


def _newest_cluster() -> str | None:
    """The address that `auto` stands for."""
    from ray._private.services import canonicalize_bootstrap_address

    return canonicalize_bootstrap_address("auto")


def _probe(address: str | None) -> None:
    """Fail at once where nothing listens; Ray itself tries for most of a minute."""
    if not address or address in ("auto", "local"):
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        raise Unreachable(f"{address!r} is not the address of a Ray cluster", "use HOST:PORT, auto or ray://HOST:PORT")
    try:
        socket.create_connection((host or "127.0.0.1", int(port)), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise Unreachable(
            f"no Ray cluster answers at {address} ({error.strerror or error})",
            "start one (`ray start --head`), check the address, or leave --address out to run on this machine",
        ) from None


def see_own_gpus() -> None:
    """In a Ray task: a stage that was placed on no GPU sees none; Ray leaves such a process all of its node's.

    Ray gives processes that have been without GPUs to no task with some.
    """
    import ray

    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def resources() -> dict[str, float]:
    """Total resources of the cluster: {"CPU": …, "GPU": …, …}."""
    import ray

    return dict(ray.cluster_resources())


GPU_RESOURCE, GPU_LABEL = "accelerator_type:", "ray.io/accelerator-type"


def nodes() -> list[Machine]:
    """The cluster's nodes: what Ray counts, and what it calls their GPUs. The rest of a `Machine` is not known here."""
    import ray

    found = []
    for node in ray.nodes():
        counted, labels = node["Resources"], node.get("Labels") or {}
        kinds = (name.removeprefix(GPU_RESOURCE) for name in counted if name.startswith(GPU_RESOURCE))
        gpus, cpus = int(counted.get("GPU", 0)), int(counted.get("CPU", 0))
        gpu = labels.get(GPU_LABEL) or next(kinds, "")
        if node["Alive"]:
            found.append(Machine(node.get("NodeName") or node["NodeID"], gpu if gpus else "", gpus, cpus))
    return found


def shutdown() -> None:
    """Leave Ray; an in-process Ray ends with all its workers."""
    import ray

    with contextlib.suppress(Exception):
        ray.shutdown()
