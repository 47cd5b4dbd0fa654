"""Names of runs, their order, and what is below `runs/` that is no run or a damaged one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.errors import BadConfig, UserError
from cluster.store import Store
from pipelines.display_plan import print_runs, print_status
from pipelines.gc import collect
from pipelines.runs import NAME, RunRecord, load_runs, new_name, resolve_run, run_names


def test_names_sort_as_the_runs_began_whatever_their_recipes(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    made = []
    for recipe in ("zebra", "ant", "My Recipe", "ant", "zebra") * 4:
        name = new_name(recipe)
        while made and name.split("-")[-3:] == made[-1].split("-")[-3:]:  # the same 15 microseconds
            name = new_name(recipe)
        assert NAME.match(name)
        RunRecord.create(store, name, {"plan": "p", "recipe": recipe}, {})
        made.append(name)
    assert run_names(store) == made
    assert resolve_run(store, "latest").name == made[-1]


def test_runs_that_were_given_a_name_stand_where_they_began(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    made = []
    for given in ("z-1-2-3", None, "aa", None, "b", "a"):
        made.append(given or new_name("middle"))
        RunRecord.create(store, made[-1], {"plan": "p", "recipe": "r"}, {})
        time.sleep(0.002)
    assert run_names(store) == made
    assert resolve_run(store, "latest").name == "a"
    RunRecord.load(store, "aa").reopen()  # goes on, began as it did
    assert run_names(store) == made


def test_the_order_of_thousands_of_runs_is_cheap(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    names = sorted({new_name("r") for _ in range(3000)})
    for name in names:
        (tmp_path / "store" / "runs" / name).mkdir(parents=True)
    began = time.perf_counter()
    assert run_names(store) == names
    assert time.perf_counter() - began < 5  # 0.1 s here; reading a record each would be ten times that


@pytest.fixture
def stray(tmp_path: Path) -> Store:
    """A store with a good run, and what deletions, crashes and bad disks leave."""
    store = Store(str(tmp_path / "store"))
    for name in ("good", "no-json", "no-object", "bad-status", "no-stages", "no-text"):
        RunRecord.create(store, name, {"plan": "p", "recipe": "r"}, {"a": {"state": "done", "key": "0" * 64}})
    runs = tmp_path / "store" / "runs"
    (runs / "emptyrun").mkdir()
    (runs / "no-json" / "run.json").write_text('{"name": ')
    (runs / "no-object" / "run.json").write_text("[]")
    (runs / "bad-status" / "status.json").write_text("")
    (runs / "no-stages" / "status.json").write_text("{}")
    (runs / "no-text" / "run.json").write_bytes(b"\xff\xfe{")
    return store


DAMAGED = {"no-json", "no-object", "bad-status", "no-stages", "no-text"}


def test_damaged_records_are_told_apart_from_runs_and_from_no_runs(stray: Store) -> None:
    records, damaged = load_runs(stray)
    assert [record.name for record in records] == ["good"]
    assert set(damaged) == DAMAGED
    assert all(f"runs/{name}/" in problem and "damaged" in problem for name, problem in damaged.items())
    with pytest.raises(BadConfig) as unknown:
        resolve_run(stray, "emptyrum")
    assert "did you mean" not in str(unknown.value)
    with pytest.raises(UserError, match="runs/no-json/run.json in the store .* is damaged"):
        resolve_run(stray, "no-json")


def test_status_lists_damaged_runs_and_gc_names_them(stray: Store, command: Any) -> None:
    rows = json.loads(command("status", "--store", stray.url, "--json").stdout)
    assert {row["run"]: row["state"] for row in rows} == {"good": "running"} | dict.fromkeys(DAMAGED, "damaged")
    shown = command("status", "--store", stray.url)
    assert shown.returncode == 0 and "damaged" in shown.stdout and "emptyrun" not in shown.stdout
    for name in sorted(DAMAGED):
        with pytest.raises(UserError, match="what run .* needs is not known, so nothing is collected"):
            collect(stray, delete=True)
        stray.delete(f"runs/{name}")
    stray.delete("runs/good/run.json")  # half of it is gone
    with pytest.raises(UserError, match="runs/good .* has a status.json and no run.json"):
        collect(stray, delete=True)
    assert [item["path"] for item in collect(stray, delete=True, forget=["good"])["items"]] == ["runs/good"]
    assert collect(stray, delete=True)["items"] == []


@pytest.mark.parametrize("state", ["submitted", "interrupted", "damaged", "of-a-later-version"])
def test_every_state_can_be_shown(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A state without a colour ended `status` with an error of markup."""
    row: dict[str, Any] = {"run": "r", "state": state, "counts": {}, "notices": []}
    print_runs([row], Console(width=80))
    print_status({**row, "stages": [{"stage": "s", "state": state}]}, Console(width=80))
    assert capsys.readouterr().out.count(state) == 3
