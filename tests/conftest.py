"""What every test runs under: the same environment on every machine, quiet libraries, no network by accident.

Set at import, before any test module imports Ray, MLflow or torch, and in the environment, so that
the processes which tests start (the command line, Ray's workers, gloo ranks) inherit it.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from typing import Any

import pytest

# A developer's own settings must not decide what a test sees.
for name in list(os.environ):
    if name.startswith(("TRIPTYCH_", "MLFLOW_", "RAY_ADDRESS", "AWS_")):
        del os.environ[name]

os.environ.update(
    # Usage reports would leave the machine.
    RAY_USAGE_STATS_ENABLED="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    HF_HUB_DISABLE_TELEMETRY="1",
    DO_NOT_TRACK="1",
    # Two test processes, and Ray's workers within each, share the cores: one thread each is the fastest,
    # and the order of summation is the same everywhere.
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    # Output of a fixed width without colours, and no progress bars of libraries.
    COLUMNS="160",
    NO_COLOR="1",
    TERM="dumb",
    MPLBACKEND="Agg",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    # Ray ends a process that has not reached its cluster for a minute, without a word; a machine can stand still.
    RAY_gcs_rpc_server_reconnect_timeout_s="300",
    # Figures and messages that do not depend on where the machine stands.
    TZ="UTC",
    LC_ALL="C.UTF-8",
)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """How a test process ended that is gone in the middle of a test: -9 is a kill, -11 a crash, 1 Ray's own exit."""
    if error:
        with suppress(AttributeError, subprocess.TimeoutExpired):  # execnet's own: no reason to fail by
            code = node.gateway._io.popen.wait(30)
            print(f"\n{node.gateway.id} ended with exit code {code}", flush=True)
