"""Sources behind URLs: a real S3 server, a local web server with its ways to fail, and the Hub's file system."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import BadConfig, BadData, Unreachable
from cluster.files import expand, fingerprint, listing, open_plain
from tasks.ingest import Ingest
from tests.cluster.conftest import s3_server  # noqa: F401 - a fixture
from tests.tasks.reading import read, small_parts, texts
from tests.tasks.stage import digests, run_stage

ROWS = [{"text": text, "id": f"d{i}"} for i, text in enumerate(texts(400))]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


class Web(BaseHTTPRequestHandler):
    """Serves `server.files`; `server.ways` says how: cut, norange, noetag, redirect."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        name, ways = self.path.lstrip("/").split("?")[0], self.server.ways
        if name.startswith("moved/"):
            self.send_response(302)
            self.send_header("Location", "/" + name.removeprefix("moved/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if name not in self.server.files:
            self.send_error(404)
            return
        data = self.server.files[name]
        asked = self.headers.get("Range") if "norange" not in ways else None
        status, start, end = 200, 0, len(data)
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            status, start, end = 206, int(first), min(int(last or len(data)) + 1, len(data))
        self.send_response(status)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "none" if "norange" in ways else "bytes")
        if "noetag" not in ways:
            self.send_header("ETag", f'"{zlib.crc32(data):x}"')
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if not body:
            return
        self.server.served += 1
        if self.server.cuts:
            self.server.cuts -= 1
            self.wfile.write(data[start : start + (end - start) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data[start:end])


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr("cluster.remote_files._PAUSES_SECONDS", (0.0, 0.0, 0.0))
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.daemon_threads = True
    server.files, server.ways, server.cuts, server.served = {}, set(), 0, 0
    server.url = f"http://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def parquet(folder: Path) -> bytes:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "x.parquet", row_group_size=50)
    return (folder / "x.parquet").read_bytes()


@pytest.mark.parametrize("ways", [set(), {"norange"}, {"noetag"}])
def test_web_files(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: set[str]) -> None:
    web.ways = ways
    web.files = {"a.jsonl": JSONL, "b.jsonl.gz": gzip.compress(JSONL), "c.parquet": parquet(tmp_path)}
    small_parts(monkeypatch, 20_000)
    for name, kind in (("a.jsonl", "jsonl"), ("b.jsonl.gz", "jsonl"), ("c.parquet", "parquet")):
        for way in ("", "moved/"):
            found, _ = read(kind, f"{web.url}/{way}{name}")
            assert [(d["id"], d["text"]) for d in found] == [(r["id"], r["text"]) for r in ROWS]
    print_ = fingerprint(f"{web.url}/a.jsonl")
    assert print_[0]["name"] == "a.jsonl" and print_[0]["size"] == len(JSONL) and print_[0]["checksum"]
    web.files["a.jsonl"] = JSONL.replace(b"river", b"RIVER")
    assert fingerprint(f"{web.url}/a.jsonl") != print_


@pytest.mark.parametrize("ways", [set(), {"norange"}])
def test_a_cut_connection_is_opened_again(web: Any, ways: set[str]) -> None:
    web.files, web.ways, web.cuts = {"a.jsonl": JSONL}, ways, 2
    found, _ = read("jsonl", f"{web.url}/a.jsonl")
    assert [d["text"] for d in found] == [r["text"] for r in ROWS] and web.cuts == 0
    web.cuts = 99
    with pytest.raises(Unreachable, match="connection broke at byte"):
        read("jsonl", f"{web.url}/a.jsonl")


def test_missing_web_files(web: Any) -> None:
    with pytest.raises(BadConfig, match=r"source: no such file: http://localhost:\d+/no\.jsonl"):
        Ingest(source=f"{web.url}/no.jsonl").external()
    with pytest.raises(BadData, match="no such file"):
        open_plain(f"{web.url}/no.jsonl")
    web.server_close()


def test_a_web_file_that_changes_while_it_is_read(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web.files = {"a.jsonl": JSONL}

    def read_part(*args: Any) -> Any:
        yield from tasks_read_part(*args)
        web.files["a.jsonl"] = JSONL.replace(b"river", b"RIVER")

    from tasks.ingest import read_part as tasks_read_part

    monkeypatch.setattr("tasks.ingest.read_part", read_part)
    with pytest.raises(BadData, match=r"a\.jsonl changed while it was read: it was written again"):
        run_stage(Ingest(source=f"{web.url}/a.jsonl"), tmp_path / "out")


@pytest.mark.usefixtures("s3_server")
def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    files = {"one.jsonl": JSONL, "sub/two.jsonl.gz": gzip.compress(b'{"text": "two"}\n'), "_SUCCESS": b""}
    (tmp_path / "local" / "sub").mkdir(parents=True)
    for name, data in files.items():
        fs.pipe(f"triptych/sources/{name}", data)
        (tmp_path / "local" / name).write_bytes(data)
    url = "s3://triptych/sources"
    assert expand(url) == [f"{url}/one.jsonl", f"{url}/sub/two.jsonl.gz"]
    assert expand(f"{url}/*.jsonl") == [f"{url}/one.jsonl"]
    assert [f["checksum"][:5] for f in fingerprint(url)] == ["etag:"] * 2
    assert [file.size for file in listing(url)] == [len(JSONL), len(files["sub/two.jsonl.gz"])]
    small_parts(monkeypatch, 20_000)
    outs = [
        run_stage(Ingest(source=source), tmp_path / name).out
        for name, source in (("far", url), ("near", str(tmp_path / "local")))
    ]
    assert digests(outs[0]) == digests(outs[1])
    assert Ingest(source=f"{url}/").format == Ingest(source=f"{url}/*").format == "jsonl"
    with pytest.raises(BadConfig) as caught:
        fingerprint(f"{url}/ones.jsonl")
    assert "one.jsonl" in caught.value.remedy


_HUB = """
import sys
sys.path.insert(0, sys.argv[1])
from cluster.errors import BadConfig
from cluster.files import fingerprint, expand
from cluster.remote_files import filesystem
from tests.tasks.reading import read
fs, path = filesystem(sys.argv[2], "source")
print(type(fs).__name__)
try:
    print(fingerprint(sys.argv[2])[0]["checksum"])
    print(len(read("jsonl", sys.argv[2])[0]))
except BadConfig as error:
    print("BadConfig", error.message)
"""


def hub(endpoint: str, url: str) -> list[str]:
    """What a process with that Hub prints; the endpoint is read when huggingface_hub is imported."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", _HUB, root, url], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_hub_that_does_not_answer(web: Any) -> None:
    kind, said = hub(web.url, "hf://datasets/someone/corpus/train.jsonl")
    assert kind == "HfFileSystem" and said.startswith("BadConfig source: ") and "someone/corpus" in said


def test_the_hub(web: Any) -> None:
    sha = "a" * 40
    entry = {"type": "file", "oid": "b" * 40, "size": len(JSONL), "path": "train.jsonl"}
    info = {"id": "someone/corpus", "sha": sha, "private": False, "tags": [], "downloads": 0, "siblings": []}
    web.files = {
        "api/datasets/someone/corpus": json.dumps(info).encode(),
        "api/datasets/someone/corpus/revision/main": json.dumps(info).encode(),
        "api/datasets/someone/corpus/tree/main": json.dumps([entry]).encode(),
        f"api/datasets/someone/corpus/tree/{sha}": json.dumps([entry]).encode(),
        "datasets/someone/corpus/resolve/main/train.jsonl": JSONL,
        f"datasets/someone/corpus/resolve/{sha}/train.jsonl": JSONL,
    }
    assert hub(web.url, "hf://datasets/someone/corpus/train.jsonl") == ["HfFileSystem", f"blob_id:{'b' * 40}", "400"]
