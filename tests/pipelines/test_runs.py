"""Names of runs, and the order they give."""

from __future__ import annotations

from pathlib import Path

from cluster.store import Store
from pipelines.runs import NAME, RunRecord, new_name, resolve_run, run_names


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
