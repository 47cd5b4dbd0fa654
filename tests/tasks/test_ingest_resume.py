"""The same bytes on one and two workers of Ray, and after a kill; files that change, and input that is hard to hold."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from cluster.errors import BadConfig, BadData
from tasks.base import Runtime
from tasks.ingest import Ingest
from tests.tasks.reading import read, texts
from tests.tasks.stage import FolderContext, digests, run_stage

ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A large plain file, a compressed one, and small ones, with duplicates among them."""
    folder = tmp_path_factory.mktemp("source")
    lines = [json.dumps({"text": text}) + "\n" for text in texts(4000, longest=900)]
    (folder / "a.jsonl").write_text("".join(lines * 2))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[:2000]).encode()))
    for number in range(5):
        (folder / f"c{number}.jsonl").write_text(json.dumps({"text": f"small {number}"}) + "\n")
    assert (folder / "a.jsonl").stat().st_size > 17 << 20
    return str(folder)


class ResumedContext(FolderContext):
    """A context whose scratch was there before."""

    def __init__(self, out: Path, runtime: Runtime, scratch: Path) -> None:
        super().__init__(out, runtime, {})
        self.scratch = scratch


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import ray
from tasks.base import Runtime
from tasks.corpus_writer import Shards
from tasks.ingest import Ingest
from tests.tasks.stage import run_stage
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
write, left = Shards.write, int(sys.argv[4])
def dying(self, table):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, table)
Shards.write = dying
run_stage(Ingest(source=sys.argv[2], format="jsonl", runtime=Runtime(workers=2)), Path(sys.argv[3]))
"""


@pytest.mark.usefixtures("cluster")
def test_workers_and_a_kill_change_no_byte(tmp_path: Path, source: str) -> None:
    task = Ingest(source=source, format="jsonl")
    one = task.model_copy(update={"runtime": Runtime(workers=1)})
    two = task.model_copy(update={"runtime": Runtime(workers=2)})
    expected = digests(run_stage(one, tmp_path / "one").out)
    assert digests(run_stage(two, tmp_path / "two").out) == expected
    facts = json.loads((tmp_path / "one" / "corpus.json").read_text())
    assert facts["documents"] == 4005 and facts["duplicates"] == 6000

    done = subprocess.run([sys.executable, "-c", _KILLED, ROOT, source, str(tmp_path / "killed"), "4"], timeout=200)
    assert done.returncode == -signal.SIGKILL
    scratch = tmp_path / "killed-scratch"
    saved = {path: path.stat().st_mtime_ns for path in scratch.rglob("*.arrow")}
    assert len(saved) == 5
    context = ResumedContext(tmp_path / "resumed", two.runtime, scratch)
    two.run(context)
    assert digests(context.out) == expected
    assert all(path.stat().st_mtime_ns == at for path, at in saved.items())  # read, not made again


def test_a_resumed_stage_without_ray_reads_what_is_saved(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Ingest(source=source, format="jsonl")
    first = run_stage(task, tmp_path / "first")
    saved = sorted((tmp_path / "first-scratch").rglob("*.arrow"))
    for path in saved[2:4]:
        path.unlink()  # as if it had stopped there; what is behind a gap in a part is made again
    context = ResumedContext(tmp_path / "second", task.runtime, tmp_path / "first-scratch")
    task.run(context)
    assert digests(context.out) == digests(first.out)

    other = tmp_path / "other"
    other.mkdir()
    (other / "a.jsonl").write_text('{"text": "of another file"}\n')
    context = ResumedContext(tmp_path / "third", task.runtime, tmp_path / "first-scratch")
    Ingest(source=str(other)).run(context)  # what was saved of other files does not count
    assert json.loads((context.out / "corpus.json").read_text())["documents"] == 1


# ---------------------------------------------------------------- files that change


@pytest.mark.parametrize("change", ["grows", "goes", "same size"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n')
    os.utime(file, ns=(10**18, 10**18))
    from tasks.ingest import read_part as original

    def read_part(*args: Any) -> Any:
        yield from original(*args)
        if change == "goes":
            file.rename(tmp_path / "away.jsonl")
        elif change == "grows":
            file.write_text('{"text": "one"}\n{"text": "two"}\n')
        else:
            file.write_text('{"text": "two"}\n')

    monkeypatch.setattr("tasks.ingest.read_part", read_part)
    with pytest.raises((BadData, BadConfig), match="a.jsonl") as caught:
        run_stage(Ingest(source=str(file)), tmp_path / "out")
    expected = {
        "grows": "had 16 bytes, has 32",
        "goes": "the source changed while it was read: source: no such file",
        "same size": "again",
    }
    assert expected[change] in caught.value.message and isinstance(caught.value, BadData)


# ---------------------------------------------------------------- input that is hard to hold


def peak_mb(command: str) -> float:
    """Largest resident size of a process that runs `command`, above one that only imports."""
    code = f"import sys; sys.path.insert(0, {ROOT!r})\nfrom tests.tasks.reading import read\n{command}"
    pid = os.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    _, status, used = os.wait4(pid, 0)
    assert status == 0
    return used.ru_maxrss / 1024


def test_a_line_of_100_mb_is_passed_without_being_held(tmp_path: Path) -> None:
    good = json.dumps({"text": "good"}).encode() + b"\n"
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(good + b'{"text": "')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + good.replace(b"good", b"last"))
    with pytest.raises(BadData, match=r"a\.jsonl:2: a line of more than 30 MiB"):
        read("jsonl", tmp_path / "a.jsonl")
    found, counts = read("jsonl", tmp_path / "a.jsonl", max_bad_records=1)
    assert [(d["id"], d["text"]) for d in found] == [("a.jsonl:1", "good"), ("a.jsonl:3", "last")] and counts.bad == 1
    small = peak_mb("import pyarrow, numpy")
    large = peak_mb(f"read('jsonl', {str(tmp_path / 'a.jsonl')!r}, max_bad_records=1)")
    assert large - small < 100, (small, large)


def test_a_text_without_an_end_is_passed_without_being_held(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("w") as file:
        for _ in range(1000):
            file.write("a line of a text that has no blank line\n" * 1000)
        file.write("\nthe end\n")
    found, counts = read("text", tmp_path / "a.txt", documents="blank-line")
    assert [d["text"] for d in found] == ["the end"] and counts.skipped == {"longer than max_document_chars": 1}


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_a_stream_that_is_cut_off_is_never_kept_in_part(tmp_path: Path, suffix: str) -> None:
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts(2000)).encode()
    pack = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "zst": lambda d: pa.compress(d, codec="zstd", asbytes=True),
    }[suffix]
    packed = pack(data)
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(pack(data[:9000]) + pack(data[9000:]))
    assert len(read("jsonl", tmp_path / f"a.jsonl.{suffix}")[0]) == 2000
    for cut in (5, len(packed) // 2, len(packed) - 1):
        (tmp_path / f"b.jsonl.{suffix}").write_bytes(packed[:cut])
        with pytest.raises(BadData, match="stream is broken or cut off after|not valid"):
            read("jsonl", tmp_path / f"b.jsonl.{suffix}")


def test_empty_files_are_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "in" / "b.jsonl").write_text("")
    (tmp_path / "in" / "c.jsonl.gz").write_bytes(gzip.compress(b""))
    context = run_stage(Ingest(source=str(tmp_path / "in")), tmp_path / "out")
    facts = json.loads((context.out / "corpus.json").read_text())
    assert facts["files"] == {"read": 3, "without_documents": 2}
    assert "no document in b.jsonl, c.jsonl.gz" in context.logged


def test_folders_that_are_named_as_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "b.jsonl.gz").mkdir()
    with pytest.raises(BadConfig, match="b.jsonl.gz is a folder"):
        Ingest(source=str(tmp_path / "*.jsonl*"), format="jsonl").external()
    with pytest.raises(BadConfig, match="holds no files"):
        Ingest(source=str(tmp_path / "b.jsonl.gz"), format="jsonl").external()


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.csv", b'text\ngood\n"never closed\nmore\n', "a.csv:3: a quote that is opened"),
        ("a.jsonl", b"PAR1....", "is a Parquet file"),
        ("a.jsonl", "\ufeff{}".encode("utf-16"), "is UTF-16"),
        ("a.jsonl", b'[\n{"text": "x"}\n]\n', "a.jsonl:1: not valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n\0\0\0\0\n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"text": ' + b"[" * 200_000 + b"\n", "nested too deeply"),
        ("a.jsonl", b'{"text": "x", "n": ' + b"1" * 5000 + b"}\n", "a number too long"),
        ("a.parquet", b"", "not a readable Parquet file"),
        ("a.jsonl.gz", b"\x1f\x8b", "broken or cut off"),
    ],
)
def test_messages(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    kind = name.split(".")[1]
    with pytest.raises(BadData) as caught:
        read(kind, tmp_path / name)
    assert said in caught.value.message and caught.value.remedy


def test_nul_bytes_in_text_are_dropped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\0 two\n\n\0\0\n")
    found, counts = read("text", tmp_path / "a.txt")
    assert [d["text"] for d in found] == ["one two"] and counts.repaired == {"NUL bytes": 3}
    (tmp_path / "a.csv").write_bytes(b"text\na\0b\n")
    assert read("csv", tmp_path / "a.csv")[0][0]["text"] == "ab"


def test_invalid_utf8_in_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    raw = pa.array([b"good", b"caf\xe9", b"fine"], pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, raw.buffers())})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table)
    for kind in ("parquet", "arrow"):
        path = tmp_path / f"a.{kind}"
        with pytest.raises(BadData, match=f"a.{kind}:2: column 'text' is not valid UTF-8"):
            read(kind, path)
        assert [d["text"] for d in read(kind, path, invalid_utf8="replace")[0]] == ["good", "caf\ufffd", "fine"]
        found, counts = read(kind, path, invalid_utf8="skip", max_bad_records=1)
        assert [d["text"] for d in found] == ["good", "fine"] and counts.bad == 1
