"""Uploads go on behind training's back: through outages, not past a lost lease, and never of half-written files."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cluster.errors import LeaseLost
from cluster.store import Store
from cluster.store_uploads import Uploads
from tests.cluster.test_store_scratch import FIRST, SECOND, tree, write


class Line:
    """A TCP line to a server that can be cut and mended; its address stays."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.mend()

    def mend(self) -> None:
        if self._listener.fileno() < 0:
            self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        for end in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self._server)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_outage_is_waited_out(s3_server, key, owner, tmp_path, monkeypatch):
    address = urlsplit(s3_server)
    line = Line(str(address.hostname), int(address.port or 0))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{line.port}")
    monkeypatch.setattr("cluster.store_uploads.FIRST_PAUSE_SECONDS", 0.1)
    store = Store(f"s3://triptych/{tmp_path.name}")
    claim = store.claim(key, owner)
    folder = store.scratch_folder(claim)
    decisions: list[tuple[str, str]] = []
    lines: list[str] = []
    uploads = Uploads(store, claim, lambda *told: decisions.append(told), lines.append)
    write(folder, FIRST)
    uploads.submit(folder)
    uploads.close(60)
    uploads = Uploads(store, claim, lambda *told: decisions.append(told), lines.append)
    line.cut()
    (folder / "latest").write_text("step-15")
    uploads.submit(folder)
    until(lambda: decisions)
    for name in ("step-10/optimizer", "step-10/model", "latest"):
        (folder / name).unlink()
    write(folder, SECOND)
    write(folder, {".partial-30/model": "half"})
    uploads.submit(folder)  # takes the place of the one that waits
    line.mend()
    uploads.close(60)
    assert len(decisions) == 1 and "does not answer" in decisions[0][0] and len(lines) == 1
    fresh = tmp_path / "fresh"
    assert store.download_scratch(claim, fresh) and tree(fresh) == SECOND
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    line.cut()


def test_what_is_removed_meanwhile_is_still_uploaded(tmp_path, key, owner):
    store = Store("memory://uploads-removed")
    claim = store.claim(key, owner)
    folder = store.scratch_folder(claim)
    write(folder, FIRST)
    gate, upload = threading.Event(), store._files.upload
    store._files.upload = lambda pairs: gate.wait(60) and upload(pairs)  # a slow line
    uploads = Uploads(store, claim, lambda *told: None, lambda line: None)
    uploads.submit(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    gate.set()
    uploads.close(60)
    assert store.download_scratch(claim, tmp_path / "fresh") and tree(tmp_path / "fresh") == FIRST


def test_who_lost_the_lease_uploads_no_more(key, owner, dead):
    store = Store("memory://uploads-lost")
    old = store.claim(key, dead)
    folder = store.scratch_folder(old)
    write(folder, FIRST)
    uploads = Uploads(store, old, lambda *told: None, lambda line: None)
    store.claim(key, owner)
    uploads.submit(folder)
    uploads.close(60)
    assert not store.exists(f"scratch/{key}")
    with pytest.raises(LeaseLost):
        uploads.submit(folder)


def test_a_local_store_needs_no_upload(tmp_path: Path, key, owner):
    store = Store(tmp_path)
    uploads = Uploads(store, store.claim(key, owner), lambda *told: None, lambda line: None)
    uploads.submit(tmp_path / "nothing")
    uploads.close(0)
    assert not any(thread.name == "upload" for thread in threading.enumerate())
