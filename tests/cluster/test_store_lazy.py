"""Files that stay in the store until they are read: fetched one by one, checked, shared, bounded (moto's S3)."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import BadConfig, BadData
from cluster.store import ArtifactFiles, Store
from cluster.store_base import cache_bound
from cluster.store_cache import FolderCache

SIZE = 5000
NAMES = [f"big-{i}.bin" for i in range(6)]


@pytest.fixture
def published(s3_server: str, key: str, owner: Any, fill: Any, tmp_path: Path) -> tuple[Store, dict[str, Any]]:
    """A store and the manifest of an artifact with a small file and six large ones for later."""
    store = Store(f"s3://triptych/lazy-{tmp_path.name}")
    claim = store.claim(key, owner)
    files = {"small.json": "{}"} | {name: name[4] * SIZE for name in NAMES}
    return store, store.publish(claim, fill(store, claim, files), {"later": ["big-*"]})


def opened(store: Store, manifest: dict[str, Any], cache: Path, limit: int, monkeypatch: Any) -> ArtifactFiles:
    monkeypatch.setenv("TRIPTYCH_CACHE_GB", str(limit / 1e9))
    return ArtifactFiles(store.fetch(manifest, cache, lazy=True))


def copies(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("*/big-*")}


def test_large_files_come_when_they_are_asked_for(published: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (store, manifest), cache = published, tmp_path / "cache"
    files = opened(store, manifest, cache, 1 << 20, monkeypatch)
    assert sorted(path.name for path in files.folder.iterdir()) == ["later.json", "small.json"]
    assert not copies(cache) and files.remote
    assert files.path("small.json").read_text() == "{}"
    assert files.path("big-3.bin").read_text() == "3" * SIZE
    assert copies(cache) == {"big-3.bin"} and files.held == {"big-3.bin"}
    assert [path.name for path in files.paths(NAMES)] == NAMES and copies(cache) == set(NAMES)
    assert store.fetch(manifest, cache, lazy=True) == files.folder
    assert (store.fetch(manifest, cache, verify=True) / "big-5.bin").stat().st_size == SIZE  # all of it is there too


def test_without_a_remote_store_the_folder_is_all_there(key: str, make: Any, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    manifest = make(store, key) | {"later": ["*"]}
    files = ArtifactFiles(store.fetch(manifest, lazy=True))
    assert not files.remote and files.path("a.txt").read_text() == "alpha" and not files.held
    files.ahead(["a.txt"])
    files.release(["a.txt"])


def test_the_cache_is_bounded_and_keeps_what_is_held(published: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (store, manifest), cache = published, tmp_path / "cache"
    files = opened(store, manifest, cache, 3 * SIZE + 3000, monkeypatch)
    other = ArtifactFiles(files.folder)
    other.path("big-0.bin")
    for name in NAMES[1:]:
        files.path(name)
        files.release([name])
        assert "big-0.bin" in copies(cache) and len(copies(cache)) <= 3
    assert copies(cache) == {"big-0.bin", "big-4.bin", "big-5.bin"}, "least recently used ones go first"
    files.path("big-0.bin")
    other.release(["big-0.bin"])
    for name in NAMES[1:5]:
        files.path(name)
    assert len(copies(cache)) == 5, "beyond the bound, but in use"


def test_reading_ahead(published: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (store, manifest), cache = published, tmp_path / "cache"
    files = opened(store, manifest, cache, 4 * SIZE + 3000, monkeypatch)
    files.path("big-0.bin")
    files.ahead(NAMES)
    end = time.monotonic() + 30
    while len(copies(cache)) < 4 and time.monotonic() < end:
        time.sleep(0.01)
    while files._thread is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert copies(cache) == set(NAMES[:4]), "no more than fits beside what is held"
    files.ahead(["no-such.bin"])  # not for later, nothing to do
    files.release(files.held)
    assert files.held == set()


@pytest.mark.parametrize("bytes_", [b"x" * SIZE, b"2" * (SIZE - 1), b"", None])
def test_what_does_not_fit_its_checksum_is_refused(
    published: Any, tmp_path: Path, monkeypatch: Any, bytes_: bytes | None
) -> None:
    (store, manifest), cache = published, tmp_path / "cache"
    files = opened(store, manifest, cache, 1 << 20, monkeypatch)
    path = f"{manifest['folder']}/big-2.bin"
    store._files.delete(path) if bytes_ is None else store._files.write(path, bytes_)
    with pytest.raises(BadData, match="damaged: .*big-2.bin") as caught:
        files.path("big-2.bin")
    assert "make it again" in caught.value.remedy
    assert not copies(cache) and not list(cache.glob(".*")) and not list(cache.glob("*.fill"))
    assert files.path("big-1.bin").read_text() == "1" * SIZE
    store._files.write(path, b"2" * SIZE)
    assert files.path("big-2.bin").read_text() == "2" * SIZE


def test_a_small_file_is_checked_too(published: Any, tmp_path: Path) -> None:
    store, manifest = published
    store._files.write(f"{manifest['folder']}/small.json", b"[]")
    with pytest.raises(BadData, match="small.json: checksum"):
        store.fetch(manifest, tmp_path / "cache", lazy=True)


def _fill_once(folder: Path, name: str, log: Path, answers: Any) -> None:
    def fill(new: Path) -> None:
        with log.open("a") as file:
            file.write("filled\n")
        time.sleep(0.3)
        (new / "f").write_text("content")

    answers.put((FolderCache(folder, 1 << 20).get(name, 7, fill) / "f").read_text())


def test_processes_that_want_the_same_file_fetch_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers: Any = context.SimpleQueue()
    args = (tmp_path / "cache", "ab" * 32, tmp_path / "log", answers)
    children = [context.Process(target=_fill_once, args=args) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [answers.get() for _ in children] == ["content"] * 4
    assert (tmp_path / "log").read_text() == "filled\n"


def test_the_bound_of_the_cache_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIPTYCH_CACHE_GB", raising=False)
    assert cache_bound() == 50_000_000_000
    monkeypatch.setenv("TRIPTYCH_CACHE_GB", "0.5")
    assert cache_bound() == 500_000_000 == Store("memory://bound").cache_bytes
    for text in ("much", "-1", "nan"):
        monkeypatch.setenv("TRIPTYCH_CACHE_GB", text)
        with pytest.raises(BadConfig, match="TRIPTYCH_CACHE_GB is"):
            cache_bound()
