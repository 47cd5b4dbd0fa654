"""Listing, fingerprinting and opening files: local, compressed, remote (fsspec's memory file system)."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from cluster import files
from cluster.errors import BadConfig, BadData
from cluster.files import expand, fingerprint, names
from cluster.streams import open_stream

TEXT = b"".join(b"line %d of some text\n" % i for i in range(20_000))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def old(path: Path, data: bytes) -> Path:
    """A file that was written a while ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(time.time_ns() - 10**10,) * 2)
    return path


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


COMPRESSED = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zstd, "txt": bytes}


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    first = fingerprint(str(old(tmp_path / "a" / "x.txt", b"one")))
    assert first == fingerprint(str(old(tmp_path / "b" / "x.txt", b"one")))
    assert first != fingerprint(str(old(tmp_path / "b" / "x.txt", b"two")))
    assert first[0]["name"] == "x.txt" and first[0]["size"] == 3
    assert str(tmp_path) not in json.dumps(first)


def test_fingerprint_is_read_from_the_cache_when_warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the same size is seen although the time of modification was set back."""
    file = tmp_path / "x.txt"
    file.write_bytes(b"one")
    time.sleep(2 * files._SETTLED_SECONDS)
    before, stat = fingerprint(str(file)), file.stat()
    with monkeypatch.context() as patched:
        patched.setattr(files, "_hash", lambda _: "not asked")
        assert fingerprint(str(file)) == before
    with file.open("r+b") as opened:
        opened.write(b"two")
    os.utime(file, ns=(stat.st_mtime_ns,) * 2)
    assert fingerprint(str(file)) != before


def test_a_broken_or_unwritable_cache_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(old(tmp_path / "x.txt", b"one"))
    good = fingerprint(file)
    for entry in Path(os.environ["TRIPTYCH_CACHE"]).rglob("*.json"):
        entry.write_text("{")
    assert fingerprint(file) == good
    monkeypatch.setenv("TRIPTYCH_CACHE", "/proc/nowhere")
    assert fingerprint(file) == good


def test_several_processes_share_the_cache(tmp_path: Path) -> None:
    files = [str(old(tmp_path / f"{i}.txt", b"%d" % i * 1000)) for i in range(10)]
    with ProcessPoolExecutor(4) as pool:
        found = list(pool.map(fingerprint, [files] * 8))
    assert all(f == found[0] for f in found)


def test_lists_globs_and_folders(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden", "with,comma.txt"):
        old(tmp_path / name, b"x")
    here = str(tmp_path)
    assert [Path(p).name for p in expand(here)] == ["a.txt", "b.txt", "c.txt", "with,comma.txt"]
    assert [Path(p).name for p in expand(f"{here}/?.txt")] == ["a.txt", "b.txt"]
    assert [Path(p).name for p in expand(f"{here}/b.txt, {here}/a.txt")] == ["b.txt", "a.txt"]
    assert [Path(p).name for p in expand((f"{here}/b.txt", f"{here}/a.txt"))] == ["b.txt", "a.txt"]
    assert [Path(p).name for p in expand(f"{here}/with,comma.txt")] == ["with,comma.txt"]
    assert [Path(p).name for p in expand(f"{here}/s*/*")] == ["c.txt"]
    assert names(["a/x.txt", "b/x.txt", "c/y.txt"]) == ["x.txt", "x.txt~2", "y.txt"]


def test_no_file_of_a_folder_is_lost(tmp_path: Path) -> None:
    """Linked folders are read; a link to nothing is a file that is missing."""
    old(tmp_path / "far" / "b.txt", b"x")
    old(tmp_path / "near" / "a.txt", b"x")
    (tmp_path / "near" / "more").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "c.txt").symlink_to(tmp_path / "far" / "b.txt")
    here = str(tmp_path / "near")
    assert [Path(p).name for p in expand(here)] == ["a.txt", "c.txt", "b.txt"]
    (tmp_path / "far" / "round").symlink_to(tmp_path / "near")
    with pytest.raises(BadConfig, match="near/more/round is a link to a folder that it is in"):
        expand(here)
    (tmp_path / "far" / "round").unlink()
    (tmp_path / "far" / "d.txt").symlink_to(tmp_path / "gone.txt")
    for source in (here, f"{here}/*/*.txt"):
        with pytest.raises(BadConfig, match=r"d\.txt is a link to .*gone\.txt, which is not there"):
            expand(source)


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [("corpos.txt", "corpus.txt"), ("nowhere/deep/corpus.txt", "holds: corpus.txt"), ("*.jsonl", "holds: corpus.txt")],
)
def test_missing_files_name_the_field_and_the_nearest_name(tmp_path: Path, asked: str, remedy: str) -> None:
    old(tmp_path / "corpus.txt", b"x")
    with pytest.raises(BadConfig) as caught:
        fingerprint(str(tmp_path / asked), field="corpus")
    assert caught.value.message.startswith("corpus: ") and asked in caught.value.message
    assert remedy in caught.value.remedy


def test_empty_folder_and_unknown_protocol(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="holds no files"):
        expand(str(tmp_path))
    with pytest.raises(BadConfig, match="cannot be opened"):
        expand("nosuch://bucket/x.txt")


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_compression_is_found_by_magic(tmp_path: Path, suffix: str) -> None:
    for name in (f"x.{suffix}", "misleading.dat"):
        with open_stream(str(old(tmp_path / name, COMPRESSED[suffix](TEXT)))) as stream:
            assert stream.read() == TEXT
        with open_stream(str(tmp_path / name)) as stream:
            assert sum(1 for _ in stream) == 20_000


@pytest.mark.parametrize("suffix", ["gz", "xz", "bz2", "zst"])
def test_two_streams_in_one_file_are_one_text(tmp_path: Path, suffix: str) -> None:
    twice = COMPRESSED[suffix](TEXT) + COMPRESSED[suffix](b"more\n")
    with open_stream(str(old(tmp_path / "x", twice))) as stream:
        assert stream.read() == TEXT + b"more\n"


@pytest.mark.parametrize("suffix", ["gz", "xz", "bz2", "zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_streams_name_the_file(tmp_path: Path, suffix: str, damage: str) -> None:
    data = COMPRESSED[suffix](TEXT)
    if damage == "cut":
        data = data[: len(data) * 2 // 3]
    else:
        data = data[: len(data) // 2] + bytes(b ^ 0xFF for b in data[len(data) // 2 :])
    file = old(tmp_path / f"x.{suffix}", data)
    with pytest.raises(BadData) as caught, open_stream(str(file)) as stream:
        stream.read()
    assert f"x.{suffix}" in caught.value.message and "broken or cut off" in caught.value.message


def test_remote_files(tmp_path: Path) -> None:
    with fsspec.open("memory://data/one.jsonl.gz", "wb") as file:
        file.write(gzip.compress(TEXT))
    with fsspec.open("memory://data/two.jsonl.gz", "wb") as file:
        file.write(gzip.compress(b"other"))
    assert len(expand("memory://data/*.gz")) == 2
    found = fingerprint("memory://data/one.jsonl.gz")
    assert found[0]["name"] == "one.jsonl.gz" and found[0]["checksum"].startswith("blake2b:")
    with open_stream("memory://data/one.jsonl.gz") as stream:
        assert stream.read() == TEXT
    with pytest.raises(BadConfig) as caught:
        fingerprint("memory://data/ones.jsonl.gz")
    assert "one.jsonl.gz" in caught.value.remedy


def test_a_device_is_no_file_and_is_not_proposed_for_itself() -> None:
    with pytest.raises(BadConfig, match="source: /dev/null is neither a file nor a folder") as raised:
        expand("/dev/null", "source")
    assert "did you mean" not in str(raised.value)
