"""Outside conditions end in one clear message: what, where, what to do."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import Unreachable, UserError
from cluster.store import Store

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "no URL"),
        ("nosuch://place", "cannot be opened: Protocol not known: nosuch"),
        ("s3://", "names no bucket"),
        ("github://somewhere/x", "cannot be opened"),
        ("simplecache::s3://bucket/x", "no URL"),
        ("/dev/null", "not a folder"),
        ("/dev/null/store", "not a folder"),
    ],
)
def test_bad_urls(url, says, s3_server):
    with pytest.raises(Unreachable, match=says) as error:
        Store(url)
    assert error.value.remedy


def test_local_urls_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in ("runs", "./runs/", "~/runs", f"file://{tmp_path}/runs", tmp_path / "runs"):
        assert Store(url).url == str(tmp_path / "runs") and Store(url).local_root == tmp_path / "runs"
    assert not (tmp_path / "runs").exists(), "opening a store makes nothing"


def test_missing_bucket(s3_server):
    with pytest.raises(Unreachable, match="bucket that does not exist") as error:
        Store("s3://no-such-bucket/prefix")
    assert "create the bucket" in error.value.remedy


def test_bucket_lost_while_at_work(s3_server, key, owner):
    import s3fs

    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    fs.mkdir("short-lived")
    store = Store("s3://short-lived/x")
    fs.rm("short-lived", recursive=True)
    for call in (lambda: store.claim(key, owner), lambda: store.manifests([key]), lambda: store.read_json("runs/x")):
        with pytest.raises(Unreachable, match="bucket"):
            call()


def test_no_server(s3_server, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(Unreachable, match="does not answer") as error:
            Store("s3://triptych/x")
    assert "AWS_ENDPOINT_URL" in error.value.remedy
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_server_that_never_answers(s3_server, monkeypatch):
    monkeypatch.setattr("cluster.store_remote.ANSWER_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(Unreachable, match="does not answer: nothing heard within 1 s"):
            Store("s3://triptych/x")


def test_no_credentials(s3_server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Unreachable, match="credentials") as error:
        Store("s3://triptych/x")
    assert "AWS_ACCESS_KEY_ID" in error.value.remedy


def test_server_that_ignores_the_condition_is_refused(s3_server, key, owner):
    store = Store("s3://triptych/unconditional")
    call = store._files._call
    store._files._call = lambda operation, *args, mode="", **kwargs: call(operation, *args, **kwargs)
    with pytest.raises(Unreachable, match="only if it is absent"):
        store.claim(key, owner)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "runs/../../x", "runs//x", "a\\b", "a\nb", "runs/.", ""])
def test_paths_stay_inside(store, name):
    for call in (store.read_text, store.list, store.exists, store.delete, lambda path: store.write_text(path, "")):
        with pytest.raises(UserError, match="no name"):
            call(name)


def test_keys_and_folders_are_checked(store, make, key, owner):
    for bad in ("", "../" * 12, "A" * 32, "0" * 31, "0" * 65, "0" * 32 + "/x"):
        for call in (store.manifest, lambda k: store.claim(k, owner), store.scratch_folder, store.delete_artifact):
            with pytest.raises(ValueError, match="not a key"):
                call(bad)
    manifest = make(store, key)
    for folder in ("../../etc", f"artifacts/00/{key}/a000001", f"{manifest['folder']}/..", None, "runs"):
        for call in (store.fetch, store.verify):
            with pytest.raises(UserError, match="names the folder"):
                call({**manifest, "folder": folder})
    with pytest.raises(ValueError, match="own"):
        store.write_text("artifacts/x", "")
    with pytest.raises(ValueError, match="own"):
        store.delete("artifacts")


def test_damaged_manifest_is_named_and_can_be_deleted(store, make, key, owner):
    manifest = make(store, key)
    path = f"artifacts/{key[:2]}/{key}/artifact.json"
    store._files.write(path, b'{"key": "01')
    for call in (lambda: store.manifest(key), lambda: store.manifests([key]), lambda: store.claim(key, owner)):
        with pytest.raises(UserError, match="artifact.json.*damaged") as error:
            call()
        assert "delete that file" in error.value.remedy
    store._files.delete(path)
    assert store.manifest(key) == manifest


def test_damaged_claim_and_object_are_named(store, make, key, owner):
    make(store, key)
    store._files.write(f"artifacts/{key[:2]}/{key}/claims/000002.json", b"[]")
    with pytest.raises(UserError, match=r"claims/000002.json.*damaged"):
        store.claim(key, owner)
    store.write_text("runs/r/run.json", "{")
    with pytest.raises(UserError, match=r"runs/r/run.json.*damaged"):
        store.read_json("runs/r/run.json")


def test_full_disk_is_named_while_beating(tmp_path, key, owner):
    store = Store(tmp_path)
    claim = store.claim(key, owner)
    (tmp_path / f"artifacts/{key[:2]}/{key}/claims/000001.beat").symlink_to("/dev/full")
    with pytest.raises(UserError, match=rf"no space left in the store {tmp_path}.*20 bytes to write") as error:
        store.heartbeat([claim])
    assert "gc" in error.value.remedy


_FILL_THE_DISK = """
import os, sys
from cluster.errors import UserError
from cluster.store import Owner, Store
store, key = Store(sys.argv[1]), "ab" * 16
claim = store.claim(key, Owner.here("r"))
folder = store.attempt_folder(claim)
try:
    (folder / "big").write_bytes(bytes(1 << 20))
except OSError as error:
    print(store.explain(error))
try:
    store.publish(claim, folder, {"x": "y" * 300_000})
except UserError as error:
    print(error)
assert store.manifest(key) is None
os.unlink(folder / "big")
print(sorted(os.listdir(folder.parent / "claims")))
print(store.publish(claim, folder, {})["files"])
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a small file system of its own")
def test_full_disk_leaves_nothing_half_written(tmp_path):
    command = 'mount -t tmpfs -o size=256k none "$1" && exec "$2" -c "$3" "$1"'
    call = ["unshare", "-rm", "sh", "-c", command, "sh", str(tmp_path), sys.executable, _FILL_THE_DISK]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no small file system here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"no space left in the store {tmp_path}, ") and "`triptych gc`" in lines[1]
    assert lines[2].startswith(f"no space left in the store {tmp_path}, ") and "kB to write" in lines[2]
    assert lines[4:] == ["['000001.json']", "{}"]


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs to drop root's rights")
def test_permission_denied_is_named(tmp_path, key):
    code = """
import sys
from cluster.errors import UserError
from cluster.store import Owner, Store
for url in sys.argv[1:]:
    try:
        Store(url).claim("ab" * 16, Owner.here("r"))
    except UserError as error:
        print(type(error).__name__, error.message)
"""
    readable, hidden = tmp_path / "readable", tmp_path / "hidden"
    readable.mkdir(mode=0o755)
    hidden.mkdir(mode=0o700)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:  # pytest's own folders, which the other user must pass
            folder.chmod(folder.stat().st_mode | 0o011)
    urls = [str(readable), str(hidden), str(readable / "new")]
    call = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", code, *urls]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if not done.stdout:
        pytest.skip(f"another user cannot run this Python here: {done.stderr[-300:]}")
    assert done.stdout.splitlines() == [
        f"UserError permission denied in the store {readable}: {readable}/artifacts",
        f"Unreachable the store {hidden} cannot be read by this user",
        f"Unreachable the store {readable}/new does not exist and {readable} is not writable",
    ]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ECONNREFUSED])
def test_conditions_are_told_from_bugs(tmp_path, number):
    store = Store(tmp_path)
    explained = store.explain(OSError(number, "…", str(tmp_path / "f")))
    assert explained and explained.remedy and str(tmp_path) in explained.message
    assert store.explain(KeyError("x")) is None and store.explain(FileNotFoundError(2, "x")) is None
