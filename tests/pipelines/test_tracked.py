"""What a run leaves in MLflow: nested runs, curves without doubled steps, datasets, models, the registry, pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import Pipeline, Registration, run
from tests.recipes.toy import Count, Join, Read, Seen, Steps


def pipeline(text: Path, steps: int = 12) -> Pipeline:
    read = Read(source=str(text))
    words = Count(corpus=read, name="words")
    trained = Steps(model=words, steps=steps, name="trained")
    return Pipeline(
        trained, report=Join(parts=(trained,), name="join"), register=[Registration("toy-model", ((trained, None),))]
    )


@pytest.fixture
def client(tmp_path: Path) -> Any:
    from mlflow import MlflowClient

    return lambda: MlflowClient(f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")


def go(tmp_path: Path, made: Pipeline, **options: Any) -> Any:
    return run(
        made, store=str(tmp_path / "store"), address="inline", recipe="tracked", config={"a": {"b": 1}}, **options
    )


def children(client: Any, parent: str) -> dict[str, Any]:
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {r.data.tags["triptych.stage"]: r for r in found}


def test_parent_children_curves_models_registry(tmp_path: Path, text: Path, client: Any) -> None:
    result = go(tmp_path, pipeline(text))
    mlflow = client()
    parent = mlflow.get_run(result.tracking["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["a.b"] == "1"
    assert parent.data.tags["triptych.run"] == result.run
    assert "report.html" in [f.path for f in mlflow.list_artifacts(parent.info.run_id)]
    found = children(mlflow, parent.info.run_id)
    assert set(found) == {"read", "words", "trained", "join"}
    assert {r.info.status for r in found.values()} == {"FINISHED"}
    trained = found["trained"]
    assert trained.data.tags["triptych.key"] == result.artifacts["trained"]["key"]
    assert trained.data.params["steps"] == "12"
    assert [p.step for p in mlflow.get_metric_history(trained.info.run_id, "sum")][:12] == list(range(1, 13))
    inputs = {d.dataset.name for d in found["words"].inputs.dataset_inputs}
    assert inputs == {"read"}
    version = mlflow.search_model_versions("name='toy-model'")[0]
    assert version.tags["triptych.key"] == result.artifacts["trained"]["key"]
    assert len(trained.outputs.model_outputs) == 1


def test_a_cached_stage_points_to_the_run_that_made_it(tmp_path: Path, text: Path, client: Any) -> None:
    first = go(tmp_path, pipeline(text))
    second = go(tmp_path, pipeline(text, steps=13))
    mlflow = client()
    made = children(mlflow, first.tracking["run_id"])["words"]
    cached = children(mlflow, second.tracking["run_id"])["words"]
    assert cached.data.tags["triptych.cached"] == "true"
    assert cached.data.tags["triptych.made_by_run"] == made.info.run_id
    assert cached.data.metrics["kinds"] == made.data.metrics["kinds"]


def test_a_failed_stage_is_failed_with_its_cause(tmp_path: Path, text: Path, client: Any) -> None:
    broken = Steps(model=Count(corpus=Read(source=str(text))), steps=2, fault="bug", name="broken")
    result = go(tmp_path, Pipeline(broken))
    mlflow = client()
    assert mlflow.get_run(result.tracking["run_id"]).info.status == "FAILED"
    child = children(mlflow, result.tracking["run_id"])["broken"]
    assert child.info.status == "FAILED"
    assert "a bug in the toy" in child.data.tags["triptych.error"]


def test_a_continued_run_goes_on_in_the_same_mlflow_runs_without_doubled_steps(
    tmp_path: Path, text: Path, client: Any
) -> None:
    made = Pipeline(Steps(model=Count(corpus=Read(source=str(text))), steps=9, fault="bug", name="trained"))
    first = go(tmp_path, made)
    again = go(tmp_path, made)
    assert again.tracking["run_id"] == first.tracking["run_id"]
    mlflow = client()
    child = children(mlflow, again.tracking["run_id"])["trained"]
    steps = [p.step for p in mlflow.get_metric_history(child.info.run_id, "sum")]
    assert steps == [1, 2]  # one step before each fault: no gap, none twice


def test_gc_keeps_what_a_registered_model_reaches(tmp_path: Path, text: Path, command: Any) -> None:
    result = go(tmp_path, pipeline(text))
    found = json.loads(command("gc", "--store", "store", "--forget", result.run, "--json").stdout)
    gone = {item["path"].rpartition("/")[2] for item in found["items"] if item["kind"] == "artifact"}
    keys = {name: manifest["key"] for name, manifest in result.artifacts.items()}
    assert gone == {keys["join"]}  # the model, and what it was made from, stay


def test_the_runs_of_a_killed_driver_are_marked_killed(tmp_path: Path, text: Path, client: Any, command: Any) -> None:
    code = (
        "import os, sys; sys.path[:0] = [sys.argv[3]]\n"
        "from tests.recipes.toy import *\n"
        "from pipelines import run\n"
        "import contextlib, sqlite3, threading, time\n"
        "def runs():\n"
        "    with contextlib.suppress(sqlite3.Error):\n"
        "        with sqlite3.connect('file:' + sys.argv[2] + '/mlflow.db?mode=ro', uri=True) as db:\n"
        "            return db.execute('select count(*) from runs').fetchone()[0]\n"
        "    return 0\n"
        "def die():\n"  # as soon as MLflow has the parent and the stages, however long that takes here
        "    while runs() < 4:\n"
        "        time.sleep(0.5)\n"
        "    os._exit(9)\n"
        "made = Pipeline(Steps(model=Count(corpus=Read(source=sys.argv[1])), steps=10_000, step_seconds=0.05))\n"
        "threading.Thread(target=die, daemon=True).start()\n"
        "run(made, store=sys.argv[2], address='inline', recipe='killed')\n"
    )
    root = Path(__file__).resolve().parents[2]
    command_line = [sys.executable, "-c", code, str(text), str(tmp_path / "store"), str(root / "tests" / "recipes")]
    subprocess.run(command_line, cwd=root, check=False, capture_output=True, timeout=120)
    run_id = json.loads(command("status", "latest", "--store", "store", "--json").stdout)["mlflow"]["run_id"]
    mlflow = client()
    assert mlflow.get_run(run_id).info.status == "KILLED"
    assert {r.info.status for r in children(mlflow, run_id).values()} <= {"KILLED", "FINISHED"}


def test_the_data_a_score_is_measured_on_are_evaluation_data(tmp_path: Path, text: Path, client: Any) -> None:
    read = Read(source=str(text))
    result = go(tmp_path, Pipeline([Count(corpus=read, name="count"), Seen(corpus=read, name="seen")]))
    found = children(client(), result.tracking["run_id"])
    contexts = {n: [t.value for d in found[n].inputs.dataset_inputs for t in d.tags] for n in ("count", "seen")}
    assert contexts == {"count": ["training"], "seen": ["evaluation"]}
