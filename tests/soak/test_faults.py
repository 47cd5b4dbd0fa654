"""Ranks, nodes and drivers that go away under a pretraining on two workers: the same bytes, every decision noted."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import Chaos, environment
from benchmarks.endurance import continuity, curve
from cluster.store import Store
from pipelines.runs import RunRecord, run_names
from tests.pipelines.test_driver import wait_until

pytestmark = pytest.mark.soak
ROOT = Path(__file__).resolve().parents[2]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
STEPS, EVERY = 600, 10


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A pretraining of two workers on text that counts upwards, some seconds long."""
    rng = random.Random(0)
    starts = [rng.randrange(10) for _ in range(400)]
    texts = [" ".join(NUMBERS[(start + n) % 10] for n in range(rng.randint(10, 60))) for start in starts]
    corpus = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [
        "bert",
        f"corpus={corpus}",
        "clean=none",
        "ingest.duplicates=keep",
        "tokenizer.vocab_size=120",
        "tokenizer.min_frequency=1",
        "examples.length_tokens=32",
        "model=bert-tiny",
        f"pretrain.steps={STEPS}",
        f"pretrain.log_every_steps={EVERY}",
        "pretrain.batch_size=16",
        "placement.workers=2",
        "placement.checkpoint_every_seconds=1",
        "placement.collective_timeout_seconds=10",
        "placement.wait_for_room_seconds=20",
    ]


def contents(store: Store) -> dict[str, str]:
    """{stage: digest of its files} of the newest run."""
    entries = RunRecord.load(store, run_names(store)[-1]).status["stages"]
    return {name: (store.manifest(entry["key"]) or {}).get("content", "missing") for name, entry in entries.items()}


@pytest.fixture(scope="module")
def undisturbed(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert Chaos(words, folder / "store", folder / "log").run(900) == 0, (folder / "log").read_text()
    return contents(Store(str(folder / "store")))


def errors(chaos: Chaos) -> list[str]:
    return [decision["error"] for decision in chaos.pretraining().get("decisions", [])]


@pytest.mark.parametrize(("kind", "message"), [("rank", "a worker was lost"), ("hang", "did not answer for 10 s")])
def test_a_rank_is_killed_or_hangs(
    words: list[str], undisturbed: dict[str, str], tmp_path: Path, kind: str, message: str
) -> None:
    chaos = Chaos(words, tmp_path / "store", tmp_path / "log", kinds=[kind], mean_seconds=1, most=1)
    assert chaos.run(900) == 0, (tmp_path / "log").read_text()
    assert chaos.starts == 1  # by the executor, within one driver
    assert contents(chaos.store) == undisturbed
    decisions = chaos.pretraining()["decisions"]
    assert [d["error"] for d in decisions] == ["worker"]
    assert message in decisions[0]["message"]
    record = chaos.record()
    assert record is not None
    found = curve(chaos.store, record, EVERY, STEPS)
    expected = list(range(EVERY, STEPS + 1, EVERY))
    assert found["file"] == continuity(expected, expected)
    assert {**found["mlflow"], "largest_difference_to_file": 0} == {
        **continuity(expected, expected),
        "largest_difference_to_file": 0,
        "status": "FINISHED",
    }
    assert found["mlflow"]["largest_difference_to_file"] < 1e-9


def test_random_kills_of_everything_change_no_byte(
    words: list[str], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    chaos = Chaos(words, tmp_path / "store", tmp_path / "log", mean_seconds=6, most=8, seed=4)
    assert chaos.run(3000) == 0, (tmp_path / "log").read_text()
    assert len(chaos.faults) > 2
    assert contents(chaos.store) == undisturbed
    record = chaos.record()
    assert record is not None
    found = curve(chaos.store, record, EVERY, STEPS)
    assert (found["mlflow"]["missing"], found["mlflow"]["doubled"]) == (0, 0)


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A Ray cluster of real raylets on this machine: a head without cores, and two nodes of one core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.made = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def drive(words: list[str], folder: Path, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.cli", "run", *words, "--store", str(folder / "store")]
    return subprocess.Popen(
        [*command, "--address", address],
        cwd=ROOT,
        env={**environment(), "RAY_AUTH_MODE": "disabled"},  # as the cluster is, whatever token file this machine has
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def placed(store: Store) -> Callable[[], bool]:
    """Whether the ranks are at work, and some steps are done."""

    def check() -> bool:
        names = run_names(store)
        entry = RunRecord.load(store, names[-1]).status["stages"].get("pretrain", {}) if names else {}
        ranks = (entry.get("at_work") or {}).get("ranks") or []
        return len(ranks) == 2 and (entry.get("progress") or {}).get("done", 0) >= 3 * EVERY

    return check


def kill_node_of_a_rank(nodes: Any, store: Store) -> None:
    """Kill a raylet that has a rank below it, and is not the head's."""
    entry = RunRecord.load(store, run_names(store)[-1]).status["stages"]["pretrain"]
    pids = [rank["pid"] for rank in entry["at_work"]["ranks"]]
    for node in nodes.made:
        raylet = node.all_processes["raylet"][0].process.pid
        if any(parent_of(pid) == raylet for pid in pids):
            nodes.remove_node(node, allow_graceful=False)
            return
    raise AssertionError("no rank on the added nodes")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("room", [True, False], ids=["room-is-left", "no-room-is-left"])
def test_a_node_is_killed(
    words: list[str], undisturbed: dict[str, str], tmp_path: Path, nodes: Any, room: bool
) -> None:
    """With room for both ranks on what is left the run ends as it would have; without it says so, and can go on."""
    if not room:
        words = [*words, "placement.cpus=1", "placement.resources={'slot': 1}"]
        for node in nodes.made:
            nodes.remove_node(node)
        nodes.made = [nodes.add_node(num_cpus=1, resources={"slot": 1}) for _ in range(2)]
        nodes.wait_for_nodes()
    store = Store(str(tmp_path / "store"))
    driver = drive(words, tmp_path, nodes.address)
    wait_until(placed(store), 300)
    kill_node_of_a_rank(nodes, store)
    output, _ = driver.communicate(timeout=600)
    entry = RunRecord.load(store, run_names(store)[-1]).status["stages"]["pretrain"]
    assert [d["error"] for d in entry["decisions"]][:1] == ["worker"], output
    if room:
        assert driver.returncode == 0, output
        assert contents(store) == undisturbed
        return
    assert driver.returncode == 1
    assert "has no room for the stage's workers" in entry["error"]["message"]
    nodes.add_node(num_cpus=1, resources={"slot": 1})
    nodes.wait_for_nodes()
    again = drive(words, tmp_path, nodes.address)
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output
    assert contents(store) == undisturbed
