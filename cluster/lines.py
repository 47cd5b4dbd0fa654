"""The line between a worker of a group and whoever started the group: events, signs of life, the request to stop.

A socket that every worker opens back to the caller: nothing to start, nothing to poll, across nodes too. It is also
the life-line. When the caller goes away, however it ends, its end closes and the workers exit; and a worker from
which nothing comes for too long (stopped, its node gone from the network) is known to the caller by its rank.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import signal
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

Address = tuple[str, int, str]
"""Host, port and token of the caller."""
BEAT_SECONDS = 5.0
"""Between two signs of life at most; a fifth of the patience of the caller where that is less."""


class Line:
    """A worker's end: JSON lines out, signs of life among them; the request to stop, or the caller's end, in.

    Args:
        patience_seconds: after so much silence the caller gives the worker up.
    """

    def __init__(self, address: Address, rank: int, patience_seconds: float) -> None:
        import ray

        host, port, token = address
        self.stop = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._socket = socket.create_connection((host, port), timeout=30)
        self._socket.settimeout(None)
        node = ray.get_runtime_context().get_node_id()
        place = {"rank": rank, "pid": os.getpid(), "host": socket.gethostname(), "node": node}
        self.send({"token": token, **place})
        threading.Thread(target=self._listen, name="life-line", daemon=True).start()
        pause = min(BEAT_SECONDS, patience_seconds / 5)
        threading.Thread(target=self._beat, args=(pause,), name="beat", daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError):
            while self._socket.recv(16):
                self.stop.set()
        if not self._closed.is_set():
            os._exit(1)  # the caller is gone: nobody would take the result, and the stage's lease has ended

    def _beat(self, pause: float) -> None:
        with suppress(OSError):
            while not self._closed.wait(pause):
                self.send({"beat": True})

    def emit(self, event: dict[str, Any]) -> None:
        self.send({"event": event})

    def send(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        self._closed.set()
        with self._lock, suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)


@dataclass
class Peer:
    """A worker as the caller knows it."""

    rank: int
    pid: int
    host: str
    node: str
    """Ray's name of it."""
    connection: socket.socket = field(repr=False)
    heard: float
    """When something came from it last, monotonic seconds."""
    failed: str = ""
    """What its work raised, in words."""
    gone: bool = False
    """Its line has ended: it is done, or dead."""


class Lines:
    """The caller's end: listens, takes workers that know the token, collects their messages."""

    def __init__(self) -> None:
        import ray

        self.received: queue.Queue[dict[str, Any]] = queue.Queue()
        self.peers: dict[int, Peer] = {}
        self._token = secrets.token_hex(16)
        self._stopped = False
        self._looked = monotonic()
        host = ray.util.get_node_ip_address()
        self._server = socket.create_server((host, 0))
        self.address: Address = (host, self._server.getsockname()[1], self._token)
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._read, args=(connection,), name="events", daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError), connection.makefile("rb") as lines:
            first = json.loads(lines.readline(512))
            if not secrets.compare_digest(str(first.get("token")), self._token):
                connection.close()
                return
            peer = Peer(first["rank"], first["pid"], first["host"], first["node"], connection, monotonic())
            self.peers[peer.rank] = peer
            if self._stopped:
                connection.sendall(b"stop")
            try:
                for line in lines:
                    peer.heard = monotonic()
                    message = json.loads(line)
                    if "failed" in message:
                        peer.failed = message["failed"]
                    elif "beat" not in message:
                        self.received.put(message)
            finally:
                peer.gone = True

    def silent(self, seconds: float) -> list[Peer]:
        """Workers whose line is open, whose work goes on, and from which nothing has come for so long.

        To be asked often: where this process itself stood still (stopped, the machine asleep), silence counts anew.
        """
        now, peers = monotonic(), list(self.peers.values())
        if now - self._looked > seconds / 2:
            for peer in peers:
                peer.heard = now
        self._looked = now
        return [peer for peer in peers if not peer.gone and not peer.failed and peer.heard < now - seconds]

    def stop(self) -> None:
        """Tell the workers, now and those still to come, once."""
        if not self._stopped:
            self._stopped = True
            for peer in list(self.peers.values()):
                with suppress(OSError):
                    peer.connection.sendall(b"stop")

    def close(self) -> None:
        for connection in [self._server, *(peer.connection for peer in list(self.peers.values()))]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                connection.close()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def end_process(peer: Peer) -> None:
    """Kill a worker that does not answer, on its node: a stopped process hears neither Ray nor its line."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(peer.node, soft=False)
    kill = ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=there)
    with suppress(Exception):  # its node may be gone, too
        ray.get(kill.remote(peer.pid), timeout=20)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
