"""Checkpoints outlive their writer, and an old writer cannot spoil a newer one's."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import LeaseLost
from cluster.store import Store


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


FIRST = {"step-10/model": "weights", "step-10/optimizer": "moments", "latest": "step-10"}
SECOND = {"step-10/model": "weights", "step-20/model": "weights 2", "latest": "step-20"}


def test_round_trip(store, store_url, key, owner, dead, tmp_path):
    old = store.claim(key, dead)
    folder = store.scratch_folder(old)
    assert not store.download_scratch(old, folder) and tree(folder) == {}
    for files in (FIRST, SECOND):
        for path in folder.rglob("*"):
            if path.is_file():
                path.unlink()
        write(folder, files)
        store.upload_scratch(old, folder)
    new = Store(store_url).claim(key, owner)
    successor = store.scratch_folder(new)
    assert successor != folder
    assert store.download_scratch(new, successor) and tree(successor) == SECOND
    store.clear_scratch(new)
    assert not store.exists(f"scratch/{key}")
    assert tree(store.scratch_folder("f" * 32)) == {}
    store.clear_scratch("f" * 32)
    store.clear_scratch("f" * 32)


@pytest.mark.parametrize("store_url", ["memory", "s3"], indirect=True)
def test_interrupted_upload_leaves_the_one_before(store, key, owner):
    claim = store.claim(key, owner)
    folder = store.scratch_folder(claim)
    write(folder, FIRST)
    store.upload_scratch(claim, folder)
    write(folder, SECOND)
    write_file, store._files.write = store._files.write, lambda path, data: 1 / 0  # dies while uploading
    with pytest.raises(ZeroDivisionError):
        store.upload_scratch(claim, folder)
    store._files.write = write_file
    assert store.download_scratch(claim, folder) and tree(folder) == FIRST
    store.clear_scratch(key)


@pytest.mark.parametrize("store_url", ["memory", "s3"], indirect=True)
def test_damaged_checkpoint_is_not_used(store, key, owner):
    claim = store.claim(key, owner)
    folder = store.scratch_folder(claim)
    write(folder, {"model": "weights"})
    store.upload_scratch(claim, folder)
    (name,) = store.list(f"scratch/{key}/000001/objects")
    store._files.write(f"scratch/{key}/000001/objects/{name}", b"wEights")
    assert not store.download_scratch(claim, folder) and tree(folder) == {}
    store.clear_scratch(key)


def test_old_writer_cannot_spoil_the_newer_ones(store, key, owner, dead):
    old = store.claim(key, dead)
    old_folder = store.scratch_folder(old)
    write(old_folder, FIRST)
    store.upload_scratch(old, old_folder)
    new = store.claim(key, owner)
    folder = store.scratch_folder(new)
    assert store.download_scratch(new, folder) and tree(folder) == FIRST
    write(folder, SECOND)
    store.upload_scratch(new, folder)
    write(old_folder, {"latest": "step-11"})  # it wakes up
    with pytest.raises(LeaseLost):
        store.scratch_folder(old)
    if store.local_root is None:
        with pytest.raises(LeaseLost):
            store.upload_scratch(old, old_folder)
    again = store.scratch_folder(new)
    assert store.download_scratch(new, again) and tree(again) == FIRST | SECOND
    store.clear_scratch(key)
