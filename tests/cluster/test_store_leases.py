"""One winner, whatever happens: leases, heartbeats, take-over and fencing."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from cluster.errors import LeaseLost
from cluster.store import Claim, Held, Owner, Published, Store

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 30  # bound of loops that end much earlier


def poll(question, wanted):
    """Ask until the answer is of the wanted type."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not isinstance(answer := question(), wanted):
        assert time.monotonic() < end, f"still {answer}"
        time.sleep(0.02)
    return answer


def test_second_claimer_is_told_who_holds(store, store_url, key, owner, elsewhere):
    claim = store.claim(key, elsewhere)
    held = Store(store_url).claim(key, owner)
    assert isinstance(held, Held) and (held.n, held.owner) == (claim.n, elsewhere)
    assert held == dataclasses.replace(Store(store_url).holder(key), unchanged_seconds=held.unchanged_seconds)
    assert isinstance(store.claim(key, elsewhere), Held), "the holder itself too: it has its claim"


def test_released_claim_is_free(store, key, owner, elsewhere):
    claim = store.claim(key, elsewhere)
    store.release(claim)
    store.release(claim)
    assert store.holder(key) is None
    again = store.claim(key, owner)
    assert isinstance(again, Claim) and again.n > claim.n and not again.took_over
    with pytest.raises(LeaseLost):
        store.publish(claim, store.attempt_folder(claim), {})


def test_take_over_after_the_heart_stops(store_url, key, owner, elsewhere, fill):
    holder, observer = Store(store_url), Store(store_url, lease_ttl_seconds=0.4)
    claim = holder.claim(key, elsewhere)
    for _ in range(8):
        assert holder.heartbeat([claim]) == []
        assert isinstance(observer.claim(key, owner), Held)
        time.sleep(0.1)
    taken = poll(lambda: observer.claim(key, owner), Claim)
    assert "has not reported" in taken.took_over and taken.n == claim.n + 1
    assert holder.heartbeat([claim]) == [claim]
    with pytest.raises(LeaseLost):
        holder.check(claim)


def test_observer_needs_its_own_ttl_of_silence(store_url, key, owner, elsewhere):
    holder = Store(store_url)
    holder.claim(key, elsewhere)
    fresh = Store(store_url, lease_ttl_seconds=3600)
    assert isinstance(fresh.claim(key, owner), Held)


def test_dead_process_is_replaced_at_once(store, key, owner, dead):
    claim = store.claim(key, dead)
    taken = store.claim(key, owner)
    assert isinstance(taken, Claim) and "has ended" in taken.took_over
    assert store.heartbeat([claim]) == [claim] and store.heartbeat([taken]) == []


def test_killed_process_is_replaced_at_once(tmp_path, key, owner):
    code = """
import sys, time
from cluster.store import Owner, Store
store = Store(sys.argv[1])
claim = store.claim(sys.argv[2], Owner.here("r"))
(store.attempt_folder(claim) / "half").write_text("x")
print("ready", flush=True)
time.sleep(600)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), key], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        store = Store(tmp_path)
        assert isinstance(store.claim(key, owner), Held)
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie: dead, though its number is taken
        assert isinstance(store.claim(key, owner), Claim)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert store.attempts(key) == [(1, 1)]


def test_processes_of_other_machines_are_never_called_dead(owner):
    dead = dataclasses.replace(owner, pid_start="1")
    assert dead.gone() and not owner.gone()
    for field in ("host", "boot_id", "pid_namespace"):
        assert not dataclasses.replace(dead, **{field: "other"}).gone()


def test_writer_that_lost_its_lease_cannot_publish(store, key, owner, dead, fill):
    old = store.claim(key, dead)
    old_folder = fill(store, old, {"a.txt": "old"})
    new = store.claim(key, owner)
    with pytest.raises(LeaseLost, match="run-1"):
        store.publish(old, old_folder, {})
    assert store.manifest(key) is None
    manifest = store.publish(new, fill(store, new, {"a.txt": "new"}), {})
    with pytest.raises(LeaseLost):
        store.publish(old, old_folder, {})
    assert store.manifest(key) == manifest
    assert (store.fetch(manifest, verify=True) / "a.txt").read_text() == "new"


def test_lease_lost_during_the_upload(store, store_url, key, owner, dead, fill, monkeypatch):
    """The take-over falls between the writer's first look at the log and its commit."""
    old = store.claim(key, dead)
    folder = fill(store, old, {"a.txt": "old"})
    new = []
    commit = store._leases.commit

    def take_over_first(claim, manifest):
        new.append(Store(store_url).claim(key, owner))
        return commit(claim, manifest)

    store._leases.commit = take_over_first
    with pytest.raises(LeaseLost):
        store.publish(old, folder, {})
    assert isinstance(new[0], Claim) and store.manifest(key) is None


def test_old_writer_cannot_publish_after_deletion(store, key, dead, fill):
    old = store.claim(key, dead)
    folder = fill(store, old, {"a.txt": "old"})
    store.delete_attempt(key, old.n)
    store.delete_artifact(key)
    with pytest.raises(LeaseLost):
        store.publish(old, folder, {})
    assert store.manifest(key) is None


def test_heartbeat_leaves_finished_claims_alone(store, key, owner, fill):
    claim, other = store.claim(key, owner), store.claim("f" * 32, owner)
    store.publish(claim, fill(store, claim, {"a": "a"}), {})
    store.release(other)
    assert store.heartbeat([claim, other]) == []


def test_lost_answer_is_not_a_lost_race(store, key, owner, fill):
    """A create whose answer got lost is sent again by the client, and then finds its own entry."""
    claim = store.claim(key, owner)
    create = store._files.create
    store._files.create = lambda path, data: create(path, data) and False
    manifest = store.publish(claim, fill(store, claim, {"a": "a"}), {})
    assert store.manifest(key) == manifest
    assert isinstance(store.claim("f" * 32, owner), Claim)


def race(url: str, keys: list[str], name: str, barrier) -> list[str]:
    """Claim and publish each key where possible; the keys won."""
    store, owner, won = Store(url), Owner.here(name, name), []
    for key in keys:
        if barrier is not None:
            barrier.wait(60)
        claim = store.claim(key, owner)
        if isinstance(claim, Claim):
            folder = store.attempt_folder(claim)
            (folder / "winner").write_text(name)
            store.publish(claim, folder, {"winner": name})
            store.discard_attempt(claim)
            won.append(key)
    return won


def test_threads_race_for_claims(store_url):
    keys = [f"{number:032x}" for number in range(5)]
    barrier, won = threading.Barrier(4), {}
    threads = [
        threading.Thread(target=lambda name=f"t{i}": won.update({name: race(store_url, keys, name, barrier)}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for found in won.values() for key in found) == keys
    store = Store(store_url)
    for name, found in won.items():
        for key in found:
            assert store.manifest(key)["winner"] == name and store.attempts(key) == [(1, len(name))]


def race_in_process(url: str, keys: list[str], name: str, barrier, answers) -> None:
    answers.put((name, race(url, keys, name, barrier)))


@pytest.mark.parametrize("store_url", ["local", "s3"], indirect=True)
def test_processes_race_for_claims(store_url):
    keys = [f"{number:032x}" for number in range(6)]
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(3), context.SimpleQueue()
    children = [
        context.Process(target=race_in_process, args=(store_url, keys, f"p{i}", barrier, answers)) for i in range(3)
    ]
    for child in children:
        child.start()
    try:
        for child in children:
            child.join(60)
            assert child.exitcode == 0
    finally:
        for child in children:
            child.kill()
    won = dict(answers.get() for _ in children)
    assert sorted(key for found in won.values() for key in found) == keys
    manifests = Store(store_url).manifests(keys)
    assert all(manifests[key]["winner"] == name for name, found in won.items() for key in found)


def test_take_over_and_commit_race(tmp_path, owner, dead):
    """The old writer's commit and a take-over at the same moment: one of them, never both."""
    store = Store(tmp_path)
    outcomes = set()
    for number in range(40):
        key = f"{number:032x}"
        old = store.claim(key, dead)
        folder = store.attempt_folder(old)
        barrier, result = threading.Barrier(2), {}

        def publish(old=old, folder=folder, barrier=barrier, result=result):
            barrier.wait()
            try:
                result["published"] = store.publish(old, folder, {})
            except LeaseLost:
                result["published"] = None

        thread = threading.Thread(target=publish)
        thread.start()
        barrier.wait()
        taken = Store(tmp_path).claim(key, owner)
        thread.join()
        if isinstance(taken, Claim):
            assert result["published"] is None and store.manifest(key) is None
        else:
            assert taken == Published(key, result["published"])
        outcomes.add(type(taken))
    assert outcomes <= {Claim, Published}


_WORKER = """
import sys, time
from cluster.errors import LeaseLost
from cluster.store import Claim, Owner, Store
store, owner, keys = Store(sys.argv[1]), Owner.here("r"), sys.argv[2:]
print("ready", flush=True)
while len(store.manifests(keys)) < len(keys):
    for key in keys:
        claim = store.claim(key, owner)
        if isinstance(claim, Claim):
            folder = store.attempt_folder(claim)
            for name in "abcde":
                (folder / name).write_text(key + name)
                time.sleep(0.003)
            store.publish(claim, folder, {})
    time.sleep(0.01)
"""


def test_processes_killed_at_random_moments(tmp_path):
    """Whatever is killed when: each artifact is made once, whole, and nobody waits for the dead."""
    keys = [f"{number:032x}" for number in range(40)]
    chance, url = random.Random(0), str(tmp_path / "store")

    def start() -> subprocess.Popen:
        child = subprocess.Popen([sys.executable, "-c", _WORKER, url, *keys], cwd=ROOT, stdout=subprocess.PIPE)
        assert child.stdout and child.stdout.readline() == b"ready\n"
        return child

    children = []
    try:
        for _ in range(5):
            children += [start(), start()]
            for child in children[-2:]:
                time.sleep(chance.random() * 0.15)
                child.kill()
        children.append(start())
        assert children[-1].wait(60) == 0
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()
    store = Store(url)
    manifests = store.manifests(keys)
    assert sorted(manifests) == keys
    for key, manifest in manifests.items():
        assert store.verify(manifest) == [] and len(manifest["files"]) == 5
        assert store.read_json(f"artifacts/{key[:2]}/{key}/artifact.json") == manifest
        commits = [n for n in range(1, store._leases.last(key) + 1) if store._leases.entry(key, n)["type"] == "commit"]
        assert commits == [manifest["generation"]]


class Drivers(RuleBasedStateMachine):
    """Drivers that everybody takes for dead though they go on: whatever the order, one history."""

    @initialize()
    def start(self):
        self.store = Store(f"memory://machine{os.urandom(6).hex()}")
        self.key = "ab" * 16
        self.claims: list[Claim] = []
        self.published: list[int] = []
        self.deleted_at = 0

    @rule(driver=st.integers(0, 2), force=st.booleans())
    def claim(self, driver, force):
        answer = self.store.claim(self.key, dataclasses.replace(Owner.here(f"d{driver}"), pid_start="1"), force=force)
        if isinstance(answer, Published):
            assert not force and answer.manifest["generation"] == self.published[-1]
        else:
            assert isinstance(answer, Claim) and all(answer.n > earlier.n for earlier in self.claims)
            assert force or not self.published
            self.claims.append(answer)

    def last(self) -> int:
        return self.store._leases.last(self.key)

    @rule(data=st.data())
    def publish(self, data):
        if not self.claims:
            return
        claim = data.draw(st.sampled_from(self.claims))
        may = self.last() == claim.n or claim.n + 1 in self.published
        folder = self.store.attempt_folder(claim)
        (folder / "n").write_text(str(claim.n))
        try:
            manifest = self.store.publish(claim, folder, {})
        except LeaseLost:
            assert not may
        else:
            assert may and manifest["generation"] == claim.n + 1
            if manifest["generation"] not in self.published:
                self.published.append(manifest["generation"])

    @rule(data=st.data())
    def release(self, data):
        if self.claims:
            self.store.release(data.draw(st.sampled_from(self.claims)))

    @rule()
    def crash_before_the_manifest(self):
        self.store._files.delete(f"artifacts/ab/{self.key}/artifact.json")

    @rule()
    def delete(self):
        self.store.delete_artifact(self.key)
        self.published.clear()

    def teardown(self):
        if hasattr(self, "store"):
            manifest = self.store.manifest(self.key)
            assert (manifest["generation"] if manifest else None) == (self.published[-1] if self.published else None)
            if manifest:
                assert self.store.verify(manifest) == []
            for claim in self.claims:
                self.store.discard_attempt(claim)


TestDrivers = Drivers.TestCase
TestDrivers.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
