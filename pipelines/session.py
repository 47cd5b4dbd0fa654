"""From a pipeline to a finished run: plan, connect, track, execute, register, report.

`run` is the one engine: the command line, a script and a notebook call it alike.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import BadConfig, Unreachable, UserError
from cluster.store import Store
from pipelines.code import ROOT, CodeIndex
from pipelines.graph import Graph, Pipeline
from pipelines.opening import earlier_run, open_record
from pipelines.plan import Plan
from pipelines.runs import RunRecord, known_keys, remember_keys

DEFAULT_STORE = "./runs"
TRACKING_OFF = "off"


@dataclass
class Request:
    """One call of `run`: the pipeline and how to run it. Nothing here but the pipeline moves a key."""

    pipeline: Pipeline
    recipe: str = "pipeline"
    """Names the run; for a user's file the function's name."""
    label: str = ""
    """What to call the recipe by again: a name or file.py:function; empty from Python."""
    config: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    """The part of `config` that somebody set (the call, the recipe's scale): what the recipe is called with again,
    since some defaults depend on whether a value was set at all."""
    store: str = DEFAULT_STORE
    tracking: str | None = None
    address: str | None = None
    force: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    keep_going: bool = False
    check_memory: bool = True
    """Refuse training that is predicted not to fit into its worker's memory."""
    name: str | None = None
    import_paths: tuple[Path, ...] = ()
    words: tuple[str, ...] = ()
    file: str | None = None


@dataclass
class Result:
    """How a run ended.

    Attributes:
        state: done, failed or cancelled; `nothing` where all stages were cached.
        artifacts: {stage: manifest} of all stages that are there.
    """

    run: str
    state: str
    record: RunRecord | None
    artifacts: dict[str, dict[str, Any]]
    store: Store
    report: str | None = None
    tracking: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.state in ("done", "nothing")

    def path(self, stage: str) -> Path:
        """The local folder of a stage's artifact."""
        from cluster.files import cache_folder

        return self.store.fetch(self.artifacts[stage], cache_folder() / "artifacts")


class Watcher:
    """What a display may hear; this one is silent."""

    def planned(self, plan: Plan, record: RunRecord | None, resumed: bool) -> None: ...
    def changed(self) -> None: ...
    def closed(self) -> None: ...


def make_plan(request: Request, store: Store) -> Plan:
    """The plan of a request: keys, what is cached, what is stale and why."""
    code = CodeIndex(request.import_paths)
    graph = Graph(request.pipeline, code, accepted_keys(store))
    code.save()
    return Plan(graph, store, force=request.force, only=request.only, known=known_keys(store, request.recipe))


def accepted_keys(store: Store) -> dict[str, str]:
    """{new key: old key} of all changes accepted with `triptych accept`, a file each."""
    names = store.list("accepted")
    return {name.removesuffix(".json"): (store.read_json(f"accepted/{name}") or {})["key"] for name in names}


def run(
    pipeline: Pipeline | Request,
    *,
    store: str = DEFAULT_STORE,
    tracking: str | None = None,
    address: str | None = None,
    force: Iterable[str] = (),
    only: Iterable[str] = (),
    keep_going: bool = False,
    check_memory: bool = True,
    name: str | None = None,
    recipe: str = "pipeline",
    config: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> Result:
    """Run a pipeline; what is cached is not made again, what an earlier, dead driver left is continued.

    Args:
        pipeline: what a recipe returns (or a whole `Request`).
        store: fsspec URL of the artifact store.
        tracking: MLflow tracking URI; None for SQLite beside the store, `off` for none.
        address: None for Ray in this process, `auto`, `HOST:PORT`, or `inline` for no Ray at all.
        force: stages to make again. only: stages to make, with what they need.
        keep_going: after a failure, go on with what does not depend on it.
        check_memory: refuse training that is predicted not to fit into its worker's memory.
        name: the run's name; made from `recipe` and the time by default. A run of that name and the same plan is
            continued.

    Raises:
        UserError: a wrong call, an unreachable store, cluster or tracking server. A stage that fails
            does not raise: look at `Result.state` and `Result.record.status`.
    """
    if isinstance(pipeline, Request):
        request = pipeline
    else:
        request = Request(
            pipeline,
            recipe=recipe,
            config=dict(config or {}),
            store=store,
            tracking=tracking,
            address=address,
            force=tuple(force),
            only=tuple(only),
            keep_going=keep_going,
            check_memory=check_memory,
            name=name,
        )
    return _run(request, watcher or Watcher())


def _run(request: Request, watcher: Watcher, store: Store | None = None) -> Result:
    store = store or Store(request.store)
    plan = make_plan(request, store)
    before = earlier_run(request, store, plan)
    new = before is None and request.name is not None  # a name that is not there yet is wanted for itself
    if not plan.to_run and not new and (before is None or before.state() == "done"):
        watcher.planned(plan, before, False)
        remember_keys(store, request.recipe, plan.keys())
        artifacts = {name: step.manifest for name, step in plan.steps.items() if step.manifest}
        return Result(before.name if before else "", "nothing", before, artifacts, store, _report_of(before))
    with contextlib.ExitStack() as joined:
        if request.address not in (None, "inline") and not store.in_process:
            _join(request, joined)
        if request.check_memory:
            from pipelines.memory_check import check_memory

            check_memory(plan, request.address, joined, **_connecting(request))
        return _carry_out(request, watcher, store, plan, before)


def _join(request: Request, joined: contextlib.ExitStack) -> None:
    """Join the cluster before there is a record; where it does not answer, its error says all that Ray had to say."""
    from cluster.aside import aside
    from cluster.connect import connect, shutdown

    with tempfile.TemporaryDirectory(prefix="triptych-") as folder, aside(Path(folder) / "ray.log"):
        if connect(request.address, **_connecting(request)):
            joined.callback(shutdown)


def _carry_out(request: Request, watcher: Watcher, store: Store, plan: Plan, before: RunRecord | None) -> Result:
    """Run a plan, as a new run or as the one `before`."""
    from pipelines.tracked import Tracked

    try:
        store.write_json("about.json", {"format": 1, "made_by": "triptych"})
    except OSError as error:
        raise Unreachable(
            f"the store {store.url} cannot be written: {error.strerror or error}", "choose another --store"
        ) from None
    tracked = Tracked.open(request.tracking, store, request.recipe)  # an unreachable server stops us here
    record, resumed = open_record(request, store, plan, before, tracked.public_uri)
    watcher.planned(plan, record, resumed)
    state = "failed"
    try:
        state = _execute(request, store, plan, record, tracked, watcher)
    except KeyboardInterrupt:  # before the executor could take it
        state = "cancelled"
    except UserError as error:  # of no stage: Ray did not start, the store is full
        record.notice(error.message, error.remedy)
        raise
    finally:
        _finish(request, store, plan, record, tracked, state)
        watcher.closed()
    artifacts = store.manifests(plan.keys().values())
    by_name = {name: artifacts[key] for name, key in plan.keys().items() if key in artifacts}
    return Result(record.name, state, record, by_name, store, _report_of(record), tracked.facts())


def _execute(request: Request, store: Store, plan: Plan, record: RunRecord, tracked: Any, watcher: Watcher) -> str:
    from pipelines.executor import Executor

    tracked.begin(record, plan)
    holder: list[Executor] = []
    with _pool(request, store, record, holder) as pool, _signals(holder):  # Ray puts handlers of its own in place
        executor = Executor(
            plan,
            store,
            record,
            pool,
            tracked,
            notify=watcher.changed,
            keep_going=request.keep_going,
            facts={"recipe": request.recipe, "git": record.info.get("git")},
        )
        holder.append(executor)
        ok = executor.run()
        for event in pool.trailing():
            executor.event(event)
    if ok:
        return "done"
    return "cancelled" if executor.cancelling else "failed"


@contextlib.contextmanager
def _pool(request: Request, store: Store, record: RunRecord, holder: list[Any]) -> Iterator[Any]:
    from pipelines.pool import InlinePool, RayPool, ray_log

    if store.in_process and request.address not in (None, "inline"):
        raise BadConfig(
            f"store {store.url} lives inside one process; stages on a Ray cluster cannot see it",
            "use a folder or an object store, or leave --address out",
        )
    if store.in_process or request.address == "inline":
        yield InlinePool(store, lambda events: holder[0].take(events))
        return
    from cluster.connect import connect, shutdown

    with ray_log(store, record.folder):
        mine = connect(request.address, **_connecting(request))
        pool = RayPool(fixed=request.address is None)
        try:
            yield pool
        finally:
            pool.close()
            if mine:
                shutdown()


def _connecting(request: Request) -> dict[str, Any]:
    """What `connect` needs beside the address: the code of the project, and the user's own."""
    return {"import_paths": [str(ROOT), *map(str, request.import_paths)], "code": lambda: _code(request)}


def _code(request: Request) -> dict[str, Any]:
    """A Ray runtime environment with the project's code, for a cluster that is not this process."""
    from pipelines.submit import stage_code

    return {"working_dir": str(stage_code(request.import_paths))}


@contextlib.contextmanager
def _signals(holder: list[Any]) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the executor to stop; a second one stops it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def asked(number: int, frame: Any) -> None:
        if not holder:
            raise KeyboardInterrupt
        executor = holder[0]
        executor.cancelling += 1
        if executor.pool.slots == 1.0 and not hasattr(executor.pool, "_ray"):
            raise KeyboardInterrupt  # inline: the stage itself is interrupted

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, asked)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(request: Request, store: Store, plan: Plan, record: RunRecord, tracked: Any, state: str) -> None:
    """Close record, report and tracking, whatever happened; the report of a failed run is wanted most."""
    for entry in record.status["stages"].values():
        if entry.get("state") in ("running", "pending", "waiting"):
            entry["state"] = "cancelled" if state == "cancelled" else "skipped"
    record.finish(state)
    done = {n: e["key"] for n, e in record.status["stages"].items() if e.get("state") in ("done", "cached")}
    remember_keys(store, request.recipe, done)
    tracked.models(request.pipeline, plan, store, register=state == "done")
    tracked.settle()
    record.info["mlflow"] = tracked.facts()
    store.write_json(f"{record.folder}/run.json", record.info)
    try:
        from pipelines.view import view_of, write_report

        view = view_of(store, record)
        write_report(store, record, view)
        tracked.show(store, record, view)
    except Exception as error:  # the run's results stand without it
        sys.stderr.write(f"warning: no report ({type(error).__name__}: {error}); try `triptych report {record.name}`\n")
    tracked.close(state)


def _report_of(record: RunRecord | None) -> str | None:
    if record is None:
        return None
    name = f"{record.folder}/report.html"
    if not record.store.exists(name):
        return None
    root = record.store.local_root
    return str(Path(root) / name) if root is not None else f"{record.store.url.rstrip('/')}/{name}"


def default_tracking(store: Store) -> str:
    """The SQLite database beside a local store, or in ./runs for a remote one."""
    folder = Path(store.local_root) if store.local_root is not None else Path(DEFAULT_STORE).resolve()
    return f"sqlite:///{folder / 'mlflow.db'}"


def wait_for(check: Callable[[], bool], seconds: float, pause: float = 0.2) -> bool:
    """Poll until `check` holds; False when the time ran out."""
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def environment_store() -> str:
    """The store a command uses without --store: $TRIPTYCH_STORE or ./runs."""
    return os.environ.get("TRIPTYCH_STORE") or DEFAULT_STORE
