"""`triptych ui`: MLflow's web page over the tracking database, on this machine only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from cluster import tracking_uri
from cluster.errors import Unreachable, UserError
from cluster.tracking_uri import default_artifact_root, redact, sqlite_path

HOME = "/#/experiments?workflowType=machine_learning"
"""MLflow's first page as one wants it here: runs and models, not chat traces."""


def start(
    uri: str, artifact_root: str | None = None, host: str = "127.0.0.1", port: int = 5000, *, timeout: float = 60.0
) -> tuple[subprocess.Popen[bytes], str]:
    """Launch MLflow's server over a database URI and wait until it answers.

    Returns:
        The process and the server's URL. End it with `stop`.

    Raises:
        UserError: the port is taken (the remedy names a free one), or nothing was tracked there yet.
        Unreachable: the server ended, or did not answer within `timeout` seconds.
    """
    tracking_uri.check(uri)
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise UserError(f"nothing was tracked in {path} yet", "run a pipeline first, or name the store with --store")
    if not _free(host, port):
        spare = next((other for other in range(port + 1, port + 100) if _free(host, other)), None)
        raise UserError(
            f"port {port} on {host} is in use", f"try --port {spare}" if spare else "end the program that uses it"
        )
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri]
    root = artifact_root or default_artifact_root(uri)
    if root:
        command += ["--default-artifact-root", root]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        command,
        env={**quiet, **os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # the server is several processes: `stop` ends them together
    )
    url = f"http://{host}:{port}"
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                _drain(process)
                return process, url
        except (OSError, urllib.error.URLError):
            if process.poll() is not None:
                break
            time.sleep(0.2)
    stop(process)
    said = redact((process.stdout.read() if process.stdout else b"").decode(errors="replace")).strip()
    raise Unreachable(f"MLflow's server over {redact(uri)} did not start", said[-1500:])


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers."""
    for number, seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def serve(
    uri: str,
    artifact_root: str | None = None,
    host: str = "127.0.0.1",
    port: int = 5000,
    *,
    say: Callable[[str], None] = print,
) -> int:
    """Show the tracking page until Ctrl-C; for an http URI just say where its server is. Returns an exit code."""
    if uri.startswith(("http://", "https://")):
        tracking_uri.check(uri)
        say(f"MLflow: {redact(uri).rstrip('/')}{HOME}")
        return 0
    process, url = start(uri, artifact_root, host, port)
    say(f"MLflow: {url}{HOME}  (Ctrl-C ends it)")
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        stop(process)


def _drain(process: subprocess.Popen[bytes]) -> None:
    """Keep reading the server's log, so that a full pipe never stops it."""

    def read() -> None:
        while process.stdout and process.stdout.read(65536):
            pass

    threading.Thread(target=read, daemon=True).start()


def _free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
