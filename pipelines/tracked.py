"""How a run appears in MLflow: a parent run, a child per stage, datasets, models, registry, report.

The executor calls this adapter; it alone knows the tracker. `tracking=off` gives one that does nothing.
"""

from __future__ import annotations

import threading
from typing import Any

from cluster.store import Store
from cluster.tracking_uri import redact
from pipelines.graph import Node, Pipeline
from pipelines.makers import Makers
from pipelines.plan import Plan
from pipelines.plots import pictures
from pipelines.report.standalone import data_pictures, scaling_pictures, training_pictures
from pipelines.runs import RunRecord
from pipelines.tracked_fits import cite
from pipelines.view_scaling import FIT
from tasks.base import Runtime

DATA_KINDS = ("corpus", "examples", "dataset")
STATUS = {"done": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class Tracked:
    """The tracking of one run; see `open`."""

    def __init__(self, tracker: Any, store: Store, recipe: str) -> None:
        self._tracker = tracker
        self._store = store
        self._recipe = recipe
        self._handles: dict[str, Any] = {}
        self._record: RunRecord | None = None
        self._makers = Makers(store)
        self._known: dict[str, dict[str, Any]] = {}
        self._headline: dict[str, float] = {}
        self._models: dict[str, dict[str, Any]] = {}

    @classmethod
    def open(cls, uri: str | None, store: Store, recipe: str) -> Tracked:
        """A tracker for a run, checked to answer.

        Raises:
            Unreachable: the tracking server does not answer, or the URI is none.
        """
        from pipelines.session import TRACKING_OFF, default_tracking

        if uri == TRACKING_OFF:
            return Tracked(None, store, recipe)
        from cluster.tracking import Tracker

        tracker = Tracker(uri or default_tracking(store), f"triptych-{recipe}")
        tracker.check()
        return cls(tracker, store, recipe)

    @property
    def public_uri(self) -> str | None:
        """The tracking URI without credentials."""
        return redact(self._tracker.uri) if self._tracker else None

    def facts(self) -> dict[str, Any]:
        """{uri, run_id, experiment_id, url} for the record and the report; empty when tracking is off."""
        if not self._tracker:
            return {}
        return {
            "uri": self.public_uri,
            "run_id": self._tracker.run.known_run_id,
            "experiment_id": self._tracker.experiment_id,
            "url": self._tracker.run_url(),
        }

    def begin(self, record: RunRecord, plan: Plan) -> None:
        """Start the parent run, or take up the one of an interrupted driver."""
        self._record = record
        self._makers = Makers(self._store, record)
        if not self._tracker:
            return
        tags = {
            "triptych.run": record.name,
            "triptych.recipe": self._recipe,
            "triptych.store": self._store.url,
            "triptych.command": record.info.get("command") or "",
            "triptych.stages": str(len(plan.steps)),
        }
        git = record.info.get("git") or {}
        if git.get("commit"):
            tags["mlflow.source.git.commit"] = git["commit"]
        resume = (record.info.get("mlflow") or {}).get("run_id")
        self._tracker.start_run(record.name, tags, flat(record.info.get("config") or {}), resume=resume)
        if self._tracker.run.known_run_id:
            self._note_parent()
        else:
            threading.Thread(target=self._note_parent, daemon=True).start()

    def _note_parent(self) -> None:
        """Keep the parent's id in the record at once: a killed driver's successor continues that run."""
        assert self._record is not None
        self._tracker.run.wait_run_id(60)
        self._record.info["mlflow"] = self.facts()
        self._store.write_json(f"{self._record.folder}/run.json", self._record.info)

    def started(self, node: Node, runtime: Runtime) -> None:
        if not self._tracker:
            return
        assert self._record is not None
        if node.name in self._handles:  # another attempt of a stage this driver started before
            return
        entry = self._record.stage(node.name)
        params = {**flat(node.identity.config), **{f"placement.{k}": v for k, v in flat(runtime.model_dump()).items()}}
        handle = self._tracker.start_stage(
            node.name, tags=self._tags(node), params=params, resume=entry.get("mlflow_run")
        )
        self._handles[node.name] = handle
        entry["mlflow_run"] = handle.known_run_id

    def _tags(self, node: Node) -> dict[str, str]:
        return {
            "triptych.key": node.key,
            "triptych.stage": node.name,
            "triptych.task": node.identity.task,
            "triptych.run": self._record.name if self._record else "",
            "triptych.recipe": self._recipe,
            "triptych.store": self._store.url,
        }

    def metric(self, name: str, step: int, values: dict[str, float]) -> None:
        if name in self._handles:
            self._handles[name].metrics(step, values)

    def file(self, name: str, file: str, path: str) -> None:
        """A file that a stage at work has put into the run's folder of the store."""
        if name in self._handles and (data := self._store.read_bytes(path)) is not None:
            self._handles[name].artifact((file, data))

    def cached(self, node: Node, manifest: dict[str, Any]) -> None:
        """A child that points to the run that made the artifact."""
        if not self._tracker:
            return
        tags = {
            **self._tags(node),
            "triptych.cached": "true",
            "triptych.made_by": str(manifest.get("run", "")),
            "triptych.made_by_run": self._makers.of(manifest).mlflow_run,
        }
        handle = self._tracker.cached_stage(node.name, tags, flat(node.identity.config))
        handle.end("FINISHED", numbers(manifest.get("metrics", {})))

    def ended(
        self, name: str, status: str, manifest: dict[str, Any] | None, *, node: Node | None = None, error: Any = None
    ) -> None:
        handle = self._handles.get(name)
        if handle is None:
            return
        if manifest is None:
            tags = {"triptych.error": str(error["message"])[:5000]} if error else {}
            handle.end(status, {}, tags)
            return
        folder = f"{self._store.url.rstrip('/')}/{manifest['folder']}"
        if node is not None:
            context = "evaluation" if type(node.task).produces == "score" else "training"
            for stage in node.parents:
                self._input(handle, stage, context)
        for facts in manifest.get("datasets", []):
            handle.dataset(
                facts["name"],
                source=str(facts.get("source", folder)),
                digest=str(facts.get("digest") or manifest["content"])[:36],
                profile={k: v for k, v in facts.items() if k not in ("name", "source", "digest")},
            )
        if manifest.get("kind") == "model":
            self._models[name] = manifest  # logged when the run ends and it is known which one is registered
        measured = {k: v for k, v in manifest.get("timings", {}).items() if k != "started"}
        timings = {f"timing.{k}": v for k, v in measured.items() if not k.startswith("memory/")}
        timings |= {k: v for k, v in measured.items() if k.startswith("memory/peak")}  # the rest was told live
        tags = {"triptych.artifact": folder, "triptych.content": manifest["content"]}
        figures = {**numbers(manifest.get("metrics", {})), **numbers(timings)}
        if manifest.get("kind") == FIT:
            self._note_runs()
            figures |= cite(handle, self._store, manifest, self._makers)
        handle.end(status, figures, tags)

    def _input(self, handle: Any, stage: str, context: str) -> None:
        """The artifact of an input stage that holds data, as an MLflow dataset of the stage that reads it."""
        manifest = self._manifests.get(stage)
        if manifest is None or manifest.get("kind") not in DATA_KINDS:
            return
        handle.dataset(
            stage,
            source=f"{self._store.url.rstrip('/')}/{manifest['folder']}",
            digest=manifest["content"][:36],
            profile=manifest.get("metrics", {}),
            context=context,
        )

    @property
    def _manifests(self) -> dict[str, dict[str, Any]]:
        """Manifests of the stages that ended, by name, read when first asked for."""
        assert self._record is not None
        known = self._known
        missing = {
            n: e["key"]
            for n, e in self._record.status["stages"].items()
            if e.get("state") in ("done", "cached") and n not in known
        }
        if missing:
            found = self._store.manifests(missing.values())
            known.update({n: found[k] for n, k in missing.items() if k in found})
        return known

    def models(self, pipeline: Pipeline, plan: Plan, store: Store, *, register: bool) -> None:
        """Log the models that this run made; with `register`, put the best of each registration into the registry."""
        if not self._tracker:
            return
        chosen: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
        manifests = store.manifests(plan.keys().values()) if register else {}
        for registration in pipeline.register if register else ():
            scored = []
            for model, score in registration.candidates:
                made = manifests.get(plan.graph.node(model).key)
                metrics = manifests.get(plan.graph.node(score).key, {}).get("metrics", {}) if score else {}
                if made:
                    scored.append((metrics.get("primary", 0.0), plan.graph.node(model).name, made, metrics))
            if scored:
                _, stage, made, metrics = max(scored, key=lambda item: item[0])
                chosen[stage] = (registration.name, made, metrics)
        for stage, made in {**self._models, **{s: m for s, (_, m, _) in chosen.items()}}.items():
            name, _, metrics = chosen.get(stage, (None, None, {}))
            handle = self._handles.get(stage) or self._tracker.run
            handle.model(
                stage,
                source_uri=f"{store.url.rstrip('/')}/{made['folder']}",
                params=flat(made.get("config", {})),
                metrics=numbers({**made.get("metrics", {}), **metrics}),
                tags={
                    "triptych.key": made["key"],
                    "triptych.run": str(made.get("run", "")),
                    "triptych.store": store.url,
                },
                register_as=name,
            )

    def show(self, store: Store, record: RunRecord, view: dict[str, Any]) -> None:
        """Give the parent run the report, the pictures and the headline figures."""
        if not self._tracker:
            return
        self._tracker.artifact(("report.html", store.read_text(f"{record.folder}/report.html") or ""))
        for name, picture in (*pictures(view), *data_pictures(view), *training_pictures(view), *scaling_pictures(view)):
            self._tracker.artifact((name, picture))
        for stage in view["stages"]:
            if str(stage.get("task")).endswith((":Pretrain", ":Report", ":FitScaling", ":CompareScaling")):
                values = numbers(stage.get("metrics") or {})
                self._headline.update({f"{stage['name']}.{name}": value for name, value in values.items()})

    def settle(self) -> None:
        """Wait until what was said so far is with the server, so that `facts` is whole."""
        if not self._tracker:
            return
        self._tracker.wait_known(30)
        if self._record is not None:
            self._note_runs()
            self._record.write(force=True)

    def _note_runs(self) -> None:
        """Put the ids that the server has given so far into the record."""
        assert self._record is not None
        self._record.info["mlflow"] = self.facts()
        for name, handle in self._handles.items():
            self._record.stage(name)["mlflow_run"] = handle.known_run_id

    def close(self, state: str) -> None:
        if self._tracker:
            self._tracker.end_run(STATUS.get(state, "FAILED"), self._headline)
            self._tracker.close(60.0)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """A nested config as dotted names."""
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, item in value.items():
            found.update(flat(item, f"{path}.{key}" if path else str(key)))
        return found
    return {path: value}


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The entries that MLflow can plot."""
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
