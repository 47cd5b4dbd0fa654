"""Stores to test with: a folder, `memory://`, and a real S3 server (moto's) on a free port of this machine."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.store import Claim, Owner, Store

_numbers = itertools.count()

# in a process of its own: in this one, client and server would wait for each other's turn at the interpreter
_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%s" % server.get_host_and_port(), flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of an S3 server with the bucket `triptych`; the environment points to it."""
    import s3fs

    server = subprocess.Popen([sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin and server.stdout
    address = server.stdout.readline().strip()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_ENDPOINT_URL", address)
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("triptych")
        yield address
    server.stdin.close()  # it ends by that, as it would if this process were killed
    server.wait(20)
    server.stdout.close()


@pytest.fixture(autouse=True)
def temporary_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files on their way to or from remote stores lie in the test's own folder."""
    monkeypatch.setattr("cluster.store_base._temporary_base", lambda: tmp_path / "temporary")


@pytest.fixture(params=["local", "memory", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store, of each kind in turn."""
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://store{next(_numbers)}"
    request.getfixturevalue("s3_server")
    return f"s3://triptych/{tmp_path.name}-{next(_numbers)}"


@pytest.fixture
def store(store_url: str) -> Store:
    """An empty store of each kind in turn."""
    return Store(store_url)


@pytest.fixture
def owner() -> Owner:
    """This process."""
    return Owner.here("run-1", "session-1")


@pytest.fixture
def elsewhere(owner: Owner) -> Owner:
    """A process of another machine, about which only its heartbeat tells anything."""
    return dataclasses.replace(owner, run="run-2", host="another-host")


@pytest.fixture
def dead(owner: Owner) -> Owner:
    """A process of this machine that exists no more: its number belongs to one that started at another time."""
    return dataclasses.replace(owner, run="run-3", pid_start="1")


@pytest.fixture
def key() -> str:
    """A key of an artifact."""
    return "0123456789abcdef" * 2


@pytest.fixture
def fill() -> Callable[[Store, Claim, dict[str, str]], Path]:
    """Write files, {relative path: text}, into a claim's attempt folder."""

    def write(store: Store, claim: Claim, files: dict[str, str]) -> Path:
        folder = store.attempt_folder(claim)
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return folder

    return write


@pytest.fixture
def make(owner: Owner, fill: Callable[[Store, Claim, dict[str, str]], Path]) -> Callable[..., dict[str, Any]]:
    """Claim, write and publish in one go; returns the manifest."""

    def claim_and_publish(store: Store, key: str, files: dict[str, str] | None = None, *, force: bool = False) -> Any:
        claim = store.claim(key, owner, force=force)
        assert isinstance(claim, Claim)
        folder = fill(store, claim, {"a.txt": "alpha", "sub/b.txt": "beta"} if files is None else files)
        return store.publish(claim, folder, {"task": "Ingest", "metrics": {"rows": 2}})

    return claim_and_publish
