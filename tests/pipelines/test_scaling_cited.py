"""A fit in a real store and in MLflow: which runs it cites, and what is said when one of them changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.owner import Owner
from cluster.store import Store
from pipelines import Pipeline, run
from pipelines.report.page import render
from pipelines.runs import RunRecord
from pipelines.tracked_fits import FITTED_TO
from pipelines.view import view_of
from tests.recipes.toy_scaling import Compared, Fitted, Measured

KIND = "?workflowType=machine_learning"
GRID = [(n, d) for n in (1e5, 1e6, 1e7) for d in (3e7, 3e8, 3e9)]


def models() -> list[Measured]:
    return [Measured(params=n, tokens=d, name=f"m{i}") for i, (n, d) in enumerate(GRID)]


def go(folder: Path, made: Pipeline, **options: Any) -> Any:
    return run(made, store=str(folder / "store"), address="inline", recipe="sweep", config={}, **options)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A run of some models, and one that makes the others and fits them all."""
    folder = tmp_path_factory.mktemp("sweep")
    first = go(folder, Pipeline(models()[:4]))
    fit = Fitted(models=tuple(models()), name="fit")
    second = go(folder, Pipeline([fit, Compared(model=models()[0], name="compare")]))
    assert second.state == "done"
    return folder, first, second


def test_mlflow_has_the_runs_of_a_fit(swept: tuple[Path, Any, Any]) -> None:
    from mlflow import MlflowClient

    folder, first, second = swept
    client = MlflowClient(f"sqlite:///{folder / 'store' / 'mlflow.db'}")
    runs = {}
    for result in (first, second):
        found = client.search_runs(
            [result.tracking["experiment_id"]], f"tags.`mlflow.parentRunId` = '{result.tracking['run_id']}'"
        )
        for item in found:
            if item.data.tags.get("triptych.cached") != "true":
                runs[item.data.tags["triptych.stage"]] = item
    fit = runs["fit"]
    expected = [runs[f"m{i}"].info.run_id for i in range(len(GRID))]
    assert len(set(expected)) == len(GRID)
    assert fit.data.tags[FITTED_TO].split() == expected
    by_run = client.search_runs([fit.info.experiment_id], f"tags.`{FITTED_TO}` LIKE '%{expected[5]}%'")
    assert [r.info.run_id for r in by_run] == [fit.info.run_id]

    path = Path(client.download_artifacts(fit.info.run_id, "runs.json", str(folder)))
    table = json.loads(path.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["key"] for row in rows] == [second.artifacts[f"m{i}"]["key"] for i in range(len(GRID))]
    assert [row["content"] for row in rows] == [second.artifacts[f"m{i}"]["content"] for i in range(len(GRID))]
    assert [row["mlflow_run"] for row in rows] == expected
    assert rows[0]["mlflow_page"] == f"#/experiments/{first.tracking['experiment_id']}/runs/{expected[0]}{KIND}"
    assert json.loads(fit.data.tags["mlflow.loggedArtifacts"]) == [{"path": "runs.json", "type": "table"}]
    note = fit.data.tags["mlflow.note.content"]
    assert all(f"](#/experiments/{fit.info.experiment_id}/runs/{made}{KIND})" in note for made in expected)
    assert "loss, bits per byte" in note

    figures = fit.data.metrics
    assert figures["approach_3.exponent_N.low"] <= figures["approach_3.exponent_N"]
    assert figures["approach_3.exponent_N"] == pytest.approx(0.366 / 0.716, rel=0.01)  # the law, without noise
    assert figures["points"] == 9
    assert fit.data.params["unit"] == "bits per byte"
    names = {f.path for where in ("", "plots") for f in client.list_artifacts(fit.info.run_id, where)}
    assert {"fit.json", "sweep.json", "plots/law.svg"} <= names


def test_the_view_has_each_points_maker_and_the_page_its_row(swept: tuple[Path, Any, Any]) -> None:
    folder, first, second = swept
    store = Store(str(folder / "store"))
    view = view_of(store, RunRecord.load(store, second.run))
    (sweep,) = view["scaling"]
    assert [point["maker"]["run"] for point in sweep["points"]] == [first.run] * 4 + [second.run] * 5
    assert len({point["maker"]["mlflow_run"] for point in sweep["points"]}) == 9
    assert not any("url" in point["maker"] or "changed" in point for point in sweep["points"])  # SQLite has no server
    assert sweep["fit"]["approach_3"]["exponent_N"] == pytest.approx(0.511, abs=0.005)
    (prediction,) = view["scaling_comparison"]["predictions"]
    assert prediction["maker"] == sweep["points"][0]["maker"]
    text = render(view)
    assert text.count('<a href="#stage-m3">') >= 8 and '<tr id="stage-m3">' in text
    assert sweep["points"][3]["maker"]["mlflow_run"] in text and "bits per byte" in text and "+1 %" in text


def test_with_a_server_a_point_links_to_its_page(swept: tuple[Path, Any, Any]) -> None:
    folder, _, second = swept
    store = Store(str(folder / "store"))
    record = RunRecord.load(store, second.run)
    record.info["mlflow"] = {"uri": "https://tracking.example/", "experiment_id": "7", "run_id": "abc"}
    view = view_of(store, record)
    made = view["scaling"][0]["points"][8]["maker"]
    assert made["url"] == f"https://tracking.example/#/experiments/7/runs/{made['mlflow_run']}{KIND}"
    assert f'<a href="{made["url"]}"><circle' in render(view)


def test_a_run_that_changes_is_named(swept: tuple[Path, Any, Any]) -> None:
    """Last in this file: it changes the store."""
    folder, _, second = swept
    store = Store(str(folder / "store"))
    key = second.artifacts["m6"]["key"]
    claim = store.claim(key, Owner.here("again"), force=True)
    made = store.attempt_folder(claim)  # type: ignore[arg-type]
    (made / "loss.txt").write_text("another loss")
    store.publish(claim, made, {"kind": "model", "run": "again"})  # type: ignore[arg-type]
    store.delete_artifact(second.artifacts["m7"]["key"])
    view = view_of(store, RunRecord.load(store, second.run))
    changed = {point["stage"]: point["changed"] for point in view["scaling"][0]["points"] if "changed" in point}
    assert changed == {"m6": "made again since, with other bytes", "m7": "the artifact is no longer in the store"}
    assert "2 of the runs it cites have changed since" in render(view)
