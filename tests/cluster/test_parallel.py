"""Ordered maps: the same results in process and over Ray, bounded, safe against lost workers and cancels."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray

from cluster.errors import BadData
from cluster.parallel import flat_map_ordered, in_ray, map_ordered


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def square(n: int) -> int:
    time.sleep(0.01 * (n % 3))  # so that later items often finish first
    return n * n


def count_up(n: int) -> Iterator[int]:
    yield from range(n * 10, n * 10 + n)


def fails_at(bad: int, n: int) -> int:
    if n == bad:
        raise BadData(f"item {n} is bad", "leave it out")
    return n


def dies_once(folder: str, deaths: int, n: int) -> int:
    """Kill the worker the first `deaths` times that item 3 comes."""
    seen = Path(folder, f"{n}-{time.time_ns()}")
    seen.touch()
    if n == 3 and len(list(Path(folder).glob("3-*"))) <= deaths:
        os._exit(1)
    return n


def dies_midway(folder: str, n: int) -> Iterator[int]:
    for i in range(20):
        if n == 1 and i == 7 and not Path(folder, "died").exists():
            Path(folder, "died").touch()
            time.sleep(0.2)  # let what was yielded get out
            os._exit(1)
        yield n * 100 + i


def sleeps(folder: str, n: int) -> int:
    Path(folder, f"{os.getpid()}").touch()
    if n:
        time.sleep(60)
    return n


def checks(bad: int) -> None:
    found = []
    with pytest.raises(BadData) as caught:
        for value in map_ordered(partial(fails_at, bad), range(20)):
            found.append(value)
    assert found == list(range(bad)), "results before the failure come first"
    assert type(caught.value) is BadData and caught.value.remedy == "leave it out"


def test_in_process() -> None:
    assert not in_ray()
    assert list(map_ordered(square, range(10))) == [n * n for n in range(10)]
    assert list(flat_map_ordered(count_up, range(4))) == [10, 20, 21, 30, 31, 32]
    assert list(map_ordered(square, [])) == []
    checks(5)


def test_over_ray_in_order_and_lazily(cluster: None) -> None:
    taken = []

    def items() -> Iterator[int]:
        for n in range(40):
            taken.append(n)
            yield n

    results = map_ordered(square, items(), max_in_flight=3)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) <= 5 + 3
    assert list(results) == [n * n for n in range(5, 40)]
    assert list(flat_map_ordered(count_up, range(12), here=True)) == [n * 10 + i for n in range(12) for i in range(n)]
    checks(5)


def test_inside_a_ray_task(cluster: None) -> None:
    """A stage is itself a Ray task; its items need no more cores than the cluster has."""

    @ray.remote(num_cpus=2)
    def stage() -> list[int]:
        return list(map_ordered(square, range(5)))

    assert ray.get(stage.remote(), timeout=60) == [0, 1, 4, 9, 16]


def test_a_lost_worker_costs_its_item_alone(cluster: None, tmp_path: Path) -> None:
    assert list(map_ordered(partial(dies_once, str(tmp_path), 2), range(6))) == list(range(6))
    runs = [p.name.split("-")[0] for p in tmp_path.iterdir()]
    assert runs.count("3") == 3 and all(runs.count(str(n)) == 1 for n in (0, 1, 2, 4, 5))


def test_a_worker_that_is_always_lost_ends_the_map(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        list(map_ordered(partial(dies_once, str(tmp_path), 99), range(6)))


def test_a_stream_goes_on_where_its_worker_was_lost(cluster: None, tmp_path: Path) -> None:
    expected = [n * 100 + i for n in range(5) for i in range(20)]
    assert list(flat_map_ordered(partial(dies_midway, str(tmp_path)), range(5))) == expected
    assert (tmp_path / "died").exists()


def test_closing_early_stops_the_workers(cluster: None, tmp_path: Path) -> None:
    results = map_ordered(partial(sleeps, str(tmp_path)), range(4))
    assert next(results) == 0
    deadline = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    results.close()
    # The workers that slept are gone well before they would have woken, and the cores are free again.
    assert list(map_ordered(square, range(4))) == [0, 1, 4, 9]
