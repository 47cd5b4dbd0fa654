"""Sending a run to a Ray cluster through Ray Jobs: the code travels, the client may go away."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.connect import use_token
from cluster.errors import BadConfig, Unreachable
from pipelines.code import PACKAGES, ROOT

CONFIG_FILE = "triptych-config.yaml"
"""The run's whole config, in the job's folder."""
RESOLVED = "TRIPTYCH_RESOLVED"
"""Variable of a job: the --config file of this name is the whole config, which no scale or default goes under."""
MOST_BYTES = 50 * 1024**2
SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def stage_code(import_paths: Iterable[Path | str] = (), recipe_file: Path | None = None) -> Path:
    """A temporary folder with Triptych's packages and the user's own modules, to be sent to a cluster.

    Of a user's folder the Python files travel (packages included), nothing else.

    Raises:
        BadConfig: the code is over 50 MB.
    """
    folder = Path(tempfile.mkdtemp(prefix="triptych-code-"))
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=SKIPPED)
    for place in import_paths:
        for file in Path(place).glob("*.py"):
            if file.stem not in PACKAGES:
                shutil.copy2(file, folder / file.name)
        for init in Path(place).glob("*/__init__.py"):
            own = init.parent
            if own.name not in (*PACKAGES, "tests") and not (folder / own.name).exists():
                shutil.copytree(own, folder / own.name, ignore=SKIPPED)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if size > MOST_BYTES:
        shutil.rmtree(folder)
        raise BadConfig(
            f"the code beside {recipe_file or 'the recipe'} is {size / 1e6:.0f} MB; at most 50 MB travel",
            "move the recipe into a folder with its own modules only",
        )
    return folder


def client(address: str) -> Any:
    """A client of Ray's job server.

    Raises:
        Unreachable: nothing answers, or it refuses the token.
    """
    import socket
    from urllib.parse import urlparse

    parts = urlparse(address if "://" in address else f"http://{address}")
    try:
        port = parts.port or 8265
    except ValueError as error:
        raise Unreachable(
            f"--address {address} is no URL: {error}", "give http://HOST:PORT of Ray's job server"
        ) from None
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError as error:
        raise Unreachable(
            f"no Ray job server answers at {address} ({error.strerror or error})",
            "start a cluster with `ray start --head` (its dashboard is at http://127.0.0.1:8265), or check --address",
        ) from None
    use_token()
    import logging

    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(name).setLevel(logging.WARNING)

    try:
        return JobSubmissionClient(f"{parts.scheme}://{parts.hostname}:{port}")
    except Exception as error:
        raise Unreachable(
            f"the Ray job server at {address} refuses: {str(error).strip().splitlines()[0]}",
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) to the cluster's token",
        ) from None


def submit(
    address: str,
    *,
    name: str,
    arguments: Sequence[str],
    label: str,
    config: str,
    import_paths: Sequence[Path] = (),
    environment: dict[str, str] | None = None,
) -> str:
    """Start `triptych run …` as a Ray job; returns the job's id, which is the run's name.

    Args:
        arguments: of `triptych run`, with the recipe as it is called inside the job.
        label: the recipe as the user called it, kept in the record for `rerun`.
        config: all settings of the recipe as YAML, to be `CONFIG_FILE` in the job's folder.
    """
    jobs = client(address)
    folder = stage_code(import_paths)
    (folder / CONFIG_FILE).write_text(config, encoding="utf-8")
    request = {
        "entrypoint": f"{_python()} -m pipelines.cli run {shlex.join(arguments)} --name {shlex.quote(name)}",
        "submission_id": name,
        "runtime_env": {
            "working_dir": str(folder),
            "env_vars": {
                "TRIPTYCH_LABEL": label,
                "TRIPTYCH_SUBMITTED": address,
                RESOLVED: CONFIG_FILE,
                **(environment or {}),
            },
        },
        "metadata": {"triptych.run": name},
    }
    try:
        _send(jobs, request, address)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return name


def _python() -> str:
    """A shell word for the job's Python: ours where the head is this machine, else the head's own."""
    own = shlex.quote(sys.executable)
    return f'"$(test -x {own} && echo {own} || echo python)"'


def _send(jobs: Any, request: dict[str, Any], address: str) -> None:
    """Submit; a cluster that has just started has no agent to take a job for some seconds."""
    end = time.monotonic() + 60
    while True:
        try:
            jobs.submit_job(**request)
            return
        except RuntimeError as error:
            if "No available agent" in str(error) and time.monotonic() < end:
                time.sleep(1)
                continue
            raise Unreachable(
                f"the Ray job server at {address} did not take the job: {str(error).strip()[:300]}",
                "look at `ray status` and the dashboard of the cluster",
            ) from None


def follow(address: str, name: str, *, pause: float = 0.5) -> Iterator[str]:
    """The job's output as it comes, until it ends."""
    jobs = client(address)
    shown = 0
    while True:
        status = jobs.get_job_status(name)
        text = jobs.get_job_logs(name)
        if len(text) > shown:
            yield text[shown:]
            shown = len(text)
        if status.is_terminal():
            text = jobs.get_job_logs(name)
            if len(text) > shown:
                yield text[shown:]
            return
        time.sleep(pause)


def ended(address: str, name: str) -> tuple[str, int]:
    """(status, exit code) of a finished job."""
    info = client(address).get_job_info(name)
    code = getattr(info, "driver_exit_code", None)
    return str(info.status), int(code) if code is not None else (0 if str(info.status).endswith("SUCCEEDED") else 1)


def job_info(address: str, name: str) -> Any:
    """What Ray knows of a job: status, message; None where it knows no such job.

    Raises:
        Unreachable: the job server does not answer.
    """
    jobs = client(address)
    try:
        return jobs.get_job_info(name)
    except RuntimeError as error:
        if "404" in str(error):
            return None
        raise Unreachable(
            f"the Ray job server at {address} does not tell of job {name}: {str(error).strip()[:300]}",
            "look at the dashboard of the cluster",
        ) from None


def stop(address: str, name: str) -> None:
    """Ask Ray to stop the job, if it knows it; the driver gets SIGTERM and cancels cleanly."""
    with contextlib.suppress(RuntimeError):
        client(address).stop_job(name)
