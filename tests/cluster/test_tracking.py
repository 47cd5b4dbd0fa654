"""The tracker against real MLflow: a SQLite file, a server on localhost, and places where nothing answers."""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import ui
from cluster.errors import BadConfig, Unreachable, UserError
from cluster.tracking import CACHED, KEY, MADE_BY, RUN, Tracker, registered_keys
from cluster.tracking_buffer import Point, RunBuffer, clean_key, flatten
from cluster.tracking_uri import check, redact
from cluster.tracking_writer import quiet_mlflow

quiet_mlflow()


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made anew, without the user's cache, by two drivers that meet."""
    from cluster.tracking_sqlite import create_sqlite

    folder = tmp_path_factory.mktemp("tracking")
    path = folder / "deep" / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_CACHE", str(folder / "cache"))
        drivers = [threading.Thread(target=create_sqlite, args=(path, "")) for _ in range(2)]
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join()
    assert {file.name for file in path.parent.iterdir()} == {"mlflow.db"}
    assert [file.suffix for file in (folder / "cache" / "tracking").iterdir()] == [".db"]
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="module")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    process, url = ui.start(f"sqlite:///{folder}/mlflow.db", port=free_port())
    yield url
    ui.stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def client(uri: str):  # type: ignore[no-untyped-def]
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def curve(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client(uri).get_metric_history(run_id, key)]


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def whole_run(uri: str) -> tuple[str, str, str]:
    """Track a small run with everything in it; return the ids of the parent, a stage and a cached stage."""
    tracker = Tracker(uri, "triptych", warn=lambda message: pytest.fail(message))
    tracker.check()
    tracker.start_run("brisk-otter", {RUN: "brisk-otter"}, {"store": "./runs", "pretrain": {"steps": 10, "sizes": [1]}})
    stage = tracker.start_stage("pretrain", tags={KEY: "k1"}, params={"note": "é" * 7000})
    for step in range(3):
        stage.metrics(step, {"loss": 3.0 - step, "tokens/s": 100})
    stage.metrics(2, {"loss": 99.0})
    stage.dataset("corpus", "s3://me:secret@bucket/corpus", "0123456789" * 5, schema={"id": "string"}, profile={"n": 3})
    stage.artifact(("notes/words.txt", "hello"))
    stage.model(
        "encoder",
        "s3://store/k1",
        params={"layers": 2},
        metrics={"loss": 1.0},
        tags={KEY: "k1", RUN: "brisk-otter"},
        step=2,
        register_as="triptych-test",
    )
    stage.end("FINISHED", {"loss": 1.0, "documents": 7, "bad": math.nan, "big": math.inf})
    cached = tracker.cached_stage("ingest", {KEY: "k0", MADE_BY: stage.run_id})
    tracker.artifact(("report.html", b"<html></html>"))
    tracker.end_run("FINISHED")
    assert tracker.close()
    return tracker.run_id, stage.run_id, cached.run_id


def check_whole_run(uri: str, ids: tuple[str, str, str]) -> None:
    mlflow = client(uri)
    parent, stage, cached = (mlflow.get_run(run_id) for run_id in ids)
    assert [run.info.status for run in (parent, stage, cached)] == ["FINISHED"] * 3
    assert all(run.info.end_time >= run.info.start_time for run in (parent, stage, cached))
    assert parent.data.params == {"store": "./runs", "pretrain.steps": "10", "pretrain.sizes": "[1]"}
    assert parent.info.run_name == "brisk-otter" and parent.data.tags["mlflow.runName"] == "brisk-otter"
    assert {run.data.tags["mlflow.parentRunId"] for run in (stage, cached)} == {parent.info.run_id}
    assert stage.data.tags[KEY] == "k1" and cached.data.tags[CACHED] == "true"
    assert f"/runs/{ids[1]}?" in cached.data.tags["mlflow.note.content"]
    assert "{experiment_id}" not in cached.data.tags["mlflow.note.content"]
    assert curve(uri, ids[1], "loss") == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert math.isnan(stage.data.metrics["bad"]) and stage.data.metrics["big"] > 1e308
    assert stage.data.metrics["documents"] == 7
    assert len(stage.data.params["note"]) < 6000 and "7,000 characters" in stage.data.params["note"]
    assert {file.path for file in mlflow.list_artifacts(ids[1])} == {"notes", "params"}
    assert [file.path for file in mlflow.list_artifacts(ids[0])] == ["report.html"]
    (dataset,) = stage.inputs.dataset_inputs
    assert dataset.dataset.digest == ("0123456789" * 5)[:36] and "secret" not in dataset.dataset.source
    (output,) = stage.outputs.model_outputs
    model = mlflow.get_logged_model(output.model_id)
    assert model.status == "READY" and model.params == {"layers": "2"}
    assert [(metric.key, metric.value, metric.step) for metric in model.metrics] == [("loss", 1.0, 2)]
    (version,) = mlflow.search_model_versions("name = 'triptych-test'")
    assert version.run_id == ids[1] and version.tags[KEY] == "k1" and version.source == "s3://store/k1"
    assert "k1" in registered_keys(uri)


def test_whole_run_in_sqlite(uri: str) -> None:
    check_whole_run(uri, whole_run(uri))


def test_whole_run_on_a_server(server: str) -> None:
    check_whole_run(server, whole_run(server))


def test_sqlite_rows_equal_those_of_the_client(uri: str) -> None:
    """The fast path writes what MlflowClient would."""
    from mlflow.entities import Metric, Param

    tracker = Tracker(uri, "triptych")
    tracker.start_run("same", {"a": "b"}, {"p": "1"})
    tracker.run.metrics(3, {"loss": 0.5})
    tracker.run.end("FAILED")
    tracker.close()
    mlflow = client(uri)
    ours = mlflow.get_run(tracker.run_id)
    tags = {key: value for key, value in ours.data.tags.items() if key != "mlflow.runName"}
    theirs = mlflow.create_run(tracker.experiment_id, ours.info.start_time, tags, "same")
    time_ms = mlflow.get_metric_history(tracker.run_id, "loss")[0].timestamp
    mlflow.log_batch(theirs.info.run_id, [Metric("loss", 0.5, time_ms, 3)], [Param("p", "1")])
    mlflow.set_terminated(theirs.info.run_id, "FAILED", ours.info.end_time)
    expected = json.dumps(mlflow.get_run(theirs.info.run_id).to_dictionary(), sort_keys=True)
    found = json.dumps(ours.to_dictionary(), sort_keys=True)
    assert found == expected.replace(theirs.info.run_id, tracker.run_id)
    connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
    rows = connection.execute("SELECT * FROM runs").fetchall()
    connection.close()
    assert len({str(row).replace(theirs.info.run_id, tracker.run_id) for row in rows}) == 1


@pytest.mark.parametrize("where", ["sqlite", "server"])
def test_resume_goes_on_without_doubled_steps(where: str, uri: str, request: pytest.FixtureRequest) -> None:
    place = uri if where == "sqlite" else request.getfixturevalue("server")
    first = Tracker(place, "resume")
    first.start_run("r", params={"steps": 5, "workers": 1})
    stage = first.start_stage("pretrain")
    for step in range(4):
        stage.metrics(step, {"loss": float(step)})
    first.close()  # no end: as if the driver had been killed after its last write
    assert client(place).get_run(stage.run_id).info.status == "RUNNING"
    second = Tracker(place, "resume")
    second.start_run("r", params={"steps": 5, "workers": 2}, resume=first.run_id)
    again = second.start_stage("pretrain", resume=stage.run_id)
    for step in range(2, 6):
        again.metrics(step, {"loss": float(step)})
    again.end("FINISHED", {"loss": 5.0, "seconds": 1.5})
    second.end_run("FINISHED")
    assert second.close()
    assert (second.run_id, again.run_id) == (first.run_id, stage.run_id)
    assert curve(place, stage.run_id, "loss") == [(step, float(step)) for step in range(6)]
    run = client(place).get_run(first.run_id)
    assert run.info.status == "FINISHED" and run.data.params["workers"] == "1"
    assert json.loads(run.data.tags["triptych.changed_on_resume"]) == {"workers": ["1", "2"]}


def test_resume_of_a_run_that_is_gone_makes_a_new_one(uri: str) -> None:
    said: list[str] = []
    tracker = Tracker(uri, "triptych", warn=said.append)
    tracker.start_run("r", resume="f" * 32)
    tracker.end_run("KILLED")
    assert tracker.close() and len(said) == 1 and "gone" in said[0]
    assert client(uri).get_run(tracker.run_id).info.status == "KILLED"


def test_reconcile_ends_runs_of_dead_drivers_only_where_they_say_running(uri: str) -> None:
    dead = Tracker(uri, "triptych")
    dead.start_run("dead")
    done, running = dead.start_stage("done"), dead.start_stage("running")
    done.end("FINISHED")
    dead.close()
    tracker = Tracker(uri, "triptych")
    tracker.reconcile([dead.run_id, "0" * 32], "KILLED")
    assert tracker.close()
    states = [client(uri).get_run(run_id).info.status for run_id in (dead.run_id, done.run_id, running.run_id)]
    assert states == ["KILLED", "FINISHED", "KILLED"]


def test_a_run_is_visible_while_it_runs(uri: str) -> None:
    tracker = Tracker(uri, "triptych")
    tracker.start_run("live")
    stage = tracker.start_stage("pretrain")
    stage.metrics(1, {"loss": 2.0})
    eventually(lambda: bool(tracker.experiment_id) and not tracker._dirty and stage._buffer.created)
    assert client(uri).get_run(stage.run_id).info.status == "RUNNING"
    eventually(lambda: curve(uri, stage.run_id, "loss") == [(1, 2.0)])
    tracker.close()


def test_many_stages_at_once_and_many_threads(uri: str) -> None:
    tracker = Tracker(uri, "triptych")
    tracker.start_run("wide")

    def work(thread: int) -> None:
        for index in range(50):
            tracker.start_stage(f"s{thread}-{index}", params={"i": index}).end("FINISHED", {"value": index})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracker.end_run("FINISHED")
    assert tracker.close()
    children = client(uri).search_runs(
        [tracker.experiment_id], f"tags.mlflow.parentRunId = '{tracker.run_id}'", max_results=1000
    )
    assert len(children) == 200 and {run.info.status for run in children} == {"FINISHED"}
    assert all(run.data.metrics["value"] == int(run.data.params["i"]) for run in children)


def test_two_drivers_write_into_one_database(uri: str) -> None:
    trackers = [Tracker(uri, "triptych") for _ in range(2)]
    for number, tracker in enumerate(trackers):
        tracker.start_run(f"r{number}")
        tracker.end_run("FINISHED")
    assert all(tracker.close() for tracker in trackers)
    assert [client(uri).get_run(tracker.run_id).info.status for tracker in trackers] == ["FINISHED"] * 2


def test_a_dead_server_never_fails_a_run_and_warns_once() -> None:
    said: list[str] = []
    tracker = Tracker(f"http://me:hunter2@127.0.0.1:{free_port()}", "triptych", warn=said.append)
    with pytest.raises(Unreachable, match="no tracking server") as raised:
        tracker.check()
    assert "hunter2" not in str(raised.value) and "tracking=" in raised.value.remedy
    tracker.start_run("r")
    stage = tracker.start_stage("s")
    stage.metrics(0, {"loss": 1.0})
    assert stage.known_run_id == "" and stage.wait_run_id(0.1) == ""
    stage.end("FINISHED")
    assert not tracker.close(timeout=1)
    assert len(said) == 1 and "2 runs with 1 metric" in said[0] and "hunter2" not in said[0]


def test_data_wait_for_a_server_that_comes_back(uri: str) -> None:
    port = free_port()
    tracker = Tracker(f"http://127.0.0.1:{port}", "later")
    tracker.start_run("patient")
    tracker.run.metrics(1, {"loss": 1.0})
    eventually(lambda: bool(tracker._failing))
    process, url = ui.start(uri, port=port)
    try:
        tracker.end_run("FINISHED")
        assert tracker.close(timeout=60)
        assert client(url).get_run(tracker.run_id).info.status == "FINISHED"
        assert curve(url, tracker.run_id, "loss") == [(1, 1.0)]
        assert len(client(url).search_runs([tracker.experiment_id])) == 1
    finally:
        ui.stop(process)


def test_a_run_deleted_by_hand_is_left_alone(uri: str) -> None:
    said: list[str] = []
    tracker = Tracker(uri, "triptych", warn=said.append)
    tracker.start_run("r")
    stage = tracker.start_stage("s")
    eventually(lambda: stage._buffer.created)
    client(uri).delete_run(stage.run_id)
    stage.dataset("d", "s3://b/d", "x")
    stage.end("FINISHED")
    tracker.end_run("FINISHED")
    assert tracker.close()
    assert len(said) >= 1 and "refused" in said[0]


def test_without_a_uri_everything_is_a_no_op() -> None:
    tracker = Tracker(None, "triptych")
    tracker.check()
    tracker.start_run("r")
    stage = tracker.start_stage("s")
    stage.metrics(0, {"a": 1})
    stage.end("FINISHED")
    tracker.artifact(("a.txt", "b"))
    tracker.end_run("FINISHED")
    assert tracker.close() and tracker.run_id == "" and stage.run_id == "" and tracker._thread is None


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        ("./mlruns", BadConfig, "not a tracking URI"),
        ("ftp://host/x", BadConfig, "not a tracking URI"),
        ("http://", BadConfig, "names no host"),
        ("http://host:port", BadConfig, "not a URL"),
        ("oracle+x://host/db", BadConfig, "not a tracking URI"),
    ],
)
def test_bad_uris(place: str, error: type[UserError], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        check(place)
    assert raised.value.remedy


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("not a database, but long enough to look like a file with a header " * 20)
    with pytest.raises(Unreachable, match="cannot be opened"):
        check(f"sqlite:///{tmp_path}/x.db")
    with pytest.raises(Unreachable, match="cannot be made"):
        check(f"sqlite:///{tmp_path}/x.db/mlflow.db")
    with pytest.raises(BadConfig, match="is a folder"):
        check(f"sqlite:///{tmp_path}")
    assert registered_keys(f"sqlite:///{tmp_path}/none.db") == set()
    assert not (tmp_path / "none.db").exists()


class _Page(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("status", "words"), [(200, "not an MLflow server"), (404, "not an MLflow"), (401, "refused")])
def test_something_else_answers(status: int, words: str) -> None:
    page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Page", (_Page,), {"status": status}))
    threading.Thread(target=page.serve_forever, daemon=True).start()
    with contextlib.closing(page.socket), pytest.raises(Unreachable, match=words):
        check(f"http://127.0.0.1:{page.server_port}")
    page.shutdown()


def test_ui_says_that_the_port_is_taken(uri: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use") as raised:
            ui.start(uri, port=port)
    assert "--port" in raised.value.remedy
    with pytest.raises(UserError, match="nothing was tracked"):
        ui.start(uri.replace("mlflow.db", "none.db"))


def test_redact() -> None:
    assert redact("https://user:pass@host/x") == "https://***@host/x"
    assert redact("postgresql+psycopg2://u:p@h/db failed") == "postgresql+psycopg2://***@h/db failed"
    assert redact("https://h/x?token=abc&y=1") == "https://h/x?token=***&y=1"
    assert redact("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_names_and_params() -> None:
    assert clean_key("loss@val") == "loss_val" and clean_key("../a//b") == "_/a/_/b" and clean_key("a/b.c") == "a/b.c"
    assert dict(flatten({"a": {"b": 1, "c": [1, 2]}, "d": "x", "e": {}})) == {
        "a.b": "1",
        "a.c": "[1, 2]",
        "d": "x",
        "e": "{}",
    }


def test_fresh_points() -> None:
    buffer = RunBuffer("r", None, None)
    buffer.logged([Point("loss", 2.0, 0, 5)])
    points = [Point("loss", 9.0, 0, 5), Point("loss", 1.0, 0, 6), Point("loss", 1.0, 0, 0, final=True)]
    assert [(point.step, point.value) for point in buffer.fresh(points)] == [(6, 1.0)]
    assert [(point.step, point.value) for point in buffer.fresh([Point("loss", 3.0, 0, 0, final=True)])] == [(6, 3.0)]
