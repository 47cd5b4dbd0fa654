"""What a store does with artifacts and small objects, the same on every back end."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import BadData, UserError
from cluster.store import Claim, Published, Store


def keys_of(count: int) -> list[str]:
    return [f"{number:032x}" for number in range(count)]


def test_published_artifact_is_read_back(store, make, key):
    assert store.manifest(key) is None
    manifest = make(store, key)
    assert manifest["task"] == "Ingest" and manifest["metrics"] == {"rows": 2}
    assert manifest["key"] == key and manifest["attempt"] == 1 and manifest["bytes"] == 9
    assert manifest["files"]["sub/b.txt"]["size"] == 4
    assert manifest["folder"] == f"artifacts/{key[:2]}/{key}/a000001"
    assert store.manifest(key) == manifest == store.manifests([key, "f" * 32])[key]
    folder = store.fetch(manifest, verify=True)
    assert (folder / "a.txt").read_text() == "alpha" and (folder / "sub/b.txt").read_text() == "beta"
    assert store.verify(manifest) == []


def test_content_digest_depends_on_names_and_bytes_alone(store, make):
    first, second, renamed, empty = keys_of(4)
    digest = make(store, first)["content"]
    assert make(store, second)["content"] == digest
    assert make(store, renamed, {"a.txt": "alpha", "sub/c.txt": "beta"})["content"] != digest
    assert make(store, empty, {})["files"] == {}
    assert store.fetch(store.manifest(empty), verify=True).is_dir()


def test_claiming_a_published_key_gives_its_manifest(store, make, key, owner):
    manifest = make(store, key)
    assert store.claim(key, owner) == Published(key, manifest)


def test_forced_regeneration_replaces_the_artifact(store, make, key, owner, fill):
    first = make(store, key)
    claim = store.claim(key, owner, force=True)
    assert isinstance(claim, Claim) and claim.commit == first["generation"]
    assert store.manifest(key) == first, "the old one stays until the new one is published"
    assert store.claim(key, owner) == Published(key, first), "and serves others meanwhile"
    second = store.publish(claim, fill(store, claim, {"new.txt": "new"}), {})
    assert store.manifest(key) == second and second["generation"] > first["generation"]
    assert [n for n, _ in store.attempts(key)] == [first["attempt"], second["attempt"]]
    store.delete_attempt(key, first["attempt"])
    assert [n for n, _ in store.attempts(key)] == [second["attempt"]] and store.verify(second) == []


def test_forced_attempt_that_fails_leaves_the_artifact(store, make, key, owner, fill):
    first = make(store, key)
    claim = store.claim(key, owner, force=True)
    fill(store, claim, {"half": "written"})
    store.discard_attempt(claim)
    store.release(claim)
    assert store.claim(key, owner) == Published(key, first) and store.verify(first) == []


def test_half_written_attempt_is_invisible(store, key, dead, make, fill):
    claim = store.claim(key, dead)
    fill(store, claim, {"a.txt": "half"})
    assert store.manifest(key) is None and store.manifests([key]) == {}
    manifest = make(store, key)
    assert manifest["attempt"] == 2 and store.verify(manifest) == []


@pytest.mark.parametrize("find", [lambda s, k, o: s.manifest(k), lambda s, k, o: s.manifests([k])[k],
                                  lambda s, k, o: s.claim(k, o).manifest])  # fmt: skip
def test_crash_after_the_commit_record_rolls_forward(store, make, key, owner, find):
    manifest = make(store, key)
    path = f"artifacts/{key[:2]}/{key}/artifact.json"
    store._files.delete(path)  # what a writer killed between its two last steps leaves
    assert find(store, key, owner) == manifest
    assert store.read_json(path) == manifest


def test_older_manifest_written_late_is_put_right(store, make, key, owner):
    first = make(store, key)
    second = make(store, key, {"new.txt": "new"}, force=True)
    path = f"artifacts/{key[:2]}/{key}/artifact.json"
    store._files.write(path, json.dumps(first).encode())  # a slow writer of the first generation, killed there
    assert store.claim(key, owner) == Published(key, second)
    assert store.manifest(key) == second


def test_publish_again_returns_what_was_published(store, key, owner, fill):
    claim = store.claim(key, owner)
    folder = fill(store, claim, {"a.txt": "alpha"})
    first = store.publish(claim, folder, {"seconds": 1})
    assert store.publish(claim, folder, {"seconds": 2}) == first == store.manifest(key)


def test_bulk_manifests(store, make):
    keys = keys_of(12)
    made = {key: make(store, key, {"a": key}) for key in keys[::2]}
    assert store.manifests(keys) == made
    assert sorted(store.keys()) == sorted(made)


def damage(store: Store, path: str, data: bytes | None) -> None:
    if data is None:
        store._files.delete(path)
    else:
        store._files.write(path, data)


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("a.txt", None, "a.txt: missing"),
        ("a.txt", b"alpha, and more", "a.txt: 15 bytes, expected 5"),
        ("sub/b.txt", b"bat!", "sub/b.txt: checksum"),
        ("c.txt", b"", "c.txt: unexpected file"),
    ],
)
def test_verify_finds_damage(store, make, key, name, data, found, tmp_path):
    manifest = make(store, key)
    damage(store, f"{manifest['folder']}/{name}", data)
    assert len(problems := store.verify(manifest)) == 1 and problems[0].startswith(found)
    if data is None or "bytes" in found or store.local_root:
        with pytest.raises(BadData, match=f"{key[:12]}.*{name}"):
            store.fetch(manifest, tmp_path / "cache", verify=True)
    if data is None or "bytes" in found:  # a corpus whose shard is gone would be a shorter one
        with pytest.raises(BadData, match=f"{key[:12]}.*{name}"):
            store.fetch(manifest, tmp_path / "cache")


def test_verify_finds_a_changed_manifest(store, make, key):
    manifest = make(store, key)
    manifest["files"]["a.txt"]["blake2b"] = "0" * 64
    assert len(store.verify(manifest)) == 2  # the digest over all, and the file


def test_lost_files_are_named(store, make, key, tmp_path):
    manifest = make(store, key)
    store._files.delete_tree(manifest["folder"])
    assert store.verify(manifest) == ["a.txt: missing", "sub/b.txt: missing"]
    with pytest.raises(BadData, match="damaged"):
        store.fetch(manifest, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").glob("*") if path.is_dir()]


def test_deleted_artifact_is_gone_and_can_be_made_again(store, make, key, owner):
    first = make(store, key)
    store.delete_artifact(key)
    assert store.manifest(key) is None and store.attempts(key) == [] and list(store.keys()) == []
    second = make(store, key)
    assert second["generation"] > first["generation"] and second["content"] == first["content"]
    assert store.claim(key, owner) == Published(key, second)


def test_deletion_spares_what_is_in_use(store, make, key, owner, elsewhere, fill):
    manifest = make(store, key)
    with pytest.raises(UserError, match="published"):
        store.delete_attempt(key, manifest["attempt"])
    claim = store.claim(key, elsewhere, force=True)
    for delete in (lambda: store.delete_artifact(key), lambda: store.delete_attempt(key, claim.n)):
        with pytest.raises(UserError, match="run-2"):
            delete()
    assert store.manifest(key) == manifest


def test_size_counts_all_files(store, make, key):
    make(store, key)
    assert store.attempts(key) == [(1, 9)]
    assert store.size(key) > 9


def test_file_names_that_need_care(store, make, key):
    names = ["a b.txt", "ä/日本.txt", "x[1]*?.txt", "%41.txt", ".hidden", "sub/.hidden", "a+b&c=d#e"]
    manifest = make(store, key, {name: name for name in names})
    assert sorted(manifest["files"]) == sorted(names) and store.verify(manifest) == []
    folder = store.fetch(manifest, verify=True)
    assert all((folder / name).read_text() == name for name in names)


def test_links_are_refused(store, key, owner, fill, tmp_path):
    claim = store.claim(key, owner)
    folder = fill(store, claim, {"a.txt": "alpha"})
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(BadData, match="link"):
        store.publish(claim, folder, {})
    assert store.manifest(key) is None


def test_small_objects(store):
    assert store.read_json("runs/r1/run.json") is None and store.read_text("runs/r1/log") is None
    assert store.list("runs") == []
    assert store.write_json("runs/r1/run.json", {"b": [1], "a": "ä"})
    assert store.write_json("runs/r1/run.json", {"state": "done"})
    assert store.write_text("runs/r2/stages/x.log", "line\n")
    assert store.read_json("runs/r1/run.json") == {"state": "done"}
    assert store.read_text("runs/r2/stages/x.log") == "line\n"
    assert store.list("runs") == ["r1", "r2"] and store.list("runs/r2") == ["stages"]
    assert store.exists("runs/r1/run.json") and store.exists("runs/r2") and not store.exists("runs/r3")
    assert store.write_json("accepted/a.json", 1, create=True)
    assert not store.write_json("accepted/a.json", 2, create=True) and store.read_json("accepted/a.json") == 1
    store.delete("runs/r2")
    store.delete("accepted/a.json")
    store.delete("accepted/none.json")
    assert store.list("runs") == ["r1"] and store.list("accepted") == []


def test_store_survives_pickling(store, make, key, owner):
    manifest = make(store, key)
    again, claim = pickle.loads(pickle.dumps((store, store.claim("a" * 32, owner))))
    assert again.manifest(key) == manifest
    assert Claim.from_json(json.loads(json.dumps(claim.to_json()))) == claim
    assert again.publish(claim, again.attempt_folder(claim), {})["key"] == "a" * 32


def _read_in_child(store: Store, key: str, answers: multiprocessing.SimpleQueue) -> None:
    answers.put(store.manifest(key) or "nothing")


def test_open_store_works_after_a_fork(s3_server, make, key):
    store = Store("s3://triptych/fork")
    manifest = make(store, key)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_read_in_child, args=(store, key, answers))
    child.start()
    child.join(30)
    try:
        assert child.exitcode == 0 and answers.get() == manifest
    finally:
        child.kill()


def test_remote_copies_are_shared_bounded_and_kept_while_in_use(s3_server, make, tmp_path):
    keys, cache = keys_of(4), tmp_path / "cache"
    store = Store("s3://triptych/cache", cache_bytes=2500)
    manifests = [make(store, key, {"f": key * 32}) for key in keys]  # 1024 bytes each
    folders = [store.fetch(manifest, cache) for manifest in manifests[:3]]
    assert all(folder.is_dir() for folder in folders), "beyond the bound, but in use"
    store.unpin(manifests[0], cache)
    store.unpin(manifests[1], cache)
    (cache / f".{'0' * 64}.left-over").mkdir()
    last = store.fetch(manifests[3], cache)
    assert [folder.is_dir() for folder in (*folders, last)] == [False, False, True, True]
    assert not list(cache.glob(".*"))
    assert store.fetch(manifests[0], cache, verify=True) == folders[0]


def test_published_folder_becomes_the_copy(s3_server, key, owner, fill, tmp_path):
    store, cache = Store("s3://triptych/adopt"), tmp_path / "cache"
    claim = store.claim(key, owner)
    folder = fill(store, claim, {"sub/a.txt": "alpha"})
    manifest = store.publish(claim, folder, {}, cache_dir=cache)
    assert (cache / manifest["content"] / "sub/a.txt").read_text() == "alpha" and not list(folder.iterdir())
    assert store.fetch(manifest, cache, verify=True) == cache / manifest["content"]


def test_import_is_light():
    code = "import sys, cluster.store; print([m for m in ('fsspec', 's3fs', 'asyncio', 'shutil') if m in sys.modules])"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "[]\n"
