"""The report's view of a run: its record, the manifests and small files of its artifacts put together.

`pipelines.report` draws it; the fields are described in `pipelines.report.view`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from cluster.store import Store
from pipelines.makers import Makers
from pipelines.runs import RunRecord
from pipelines.view_scaling import scaling_of

SMALL_FILES = {
    "corpus": "corpus.json",
    "tokenizer": "tokenizer-info.json",
    "examples": "examples.json",
    "tokenizer-comparison": "comparison.json",
    "report": "results.json",
}
PLACED = ("deepspeed_config", "memory_predicted")
"""Of a manifest's placement, what the page shows of a training."""


def view_of(store: Store, record: RunRecord) -> dict[str, Any]:
    """All that the report shows; whatever is missing in a failed or running run is left out."""
    status, info = record.status, record.info
    entries = status.get("stages", {})
    manifests = store.manifests({e["key"] for e in entries.values() if e.get("key")})
    made = {
        n: manifests[e["key"]]
        for n, e in entries.items()
        if e.get("state") in ("done", "cached") and e["key"] in manifests
    }
    started = status.get("started", 0.0)
    makers = Makers(store, record)
    view: dict[str, Any] = {
        "run": {
            "name": record.name,
            "recipe": info.get("recipe"),
            "state": record.state(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)),
            "seconds": (status.get("ended") or status.get("updated") or started) - started,
            "command": info.get("command") or "from Python",
            "config": info.get("config") or {},
            "store": store.url,
            "tracking": info.get("mlflow") or {},
        },
        "stages": [_stage(name, entry, made.get(name), started, makers) for name, entry in entries.items()],
        "training": [],
        "provenance": [],
        "environment": _environment(made, info),
        **scaling_of(store, record, made, makers),
    }
    for name, manifest in made.items():
        kind = manifest.get("kind", "")
        view["provenance"].append(
            {
                "stage": name,
                "key": manifest["key"],
                "code": manifest.get("code", {}),
                "inputs": manifest.get("inputs", {}),
            }
        )
        if kind in SMALL_FILES and (found := _read(store, manifest, SMALL_FILES[kind])) is not None:
            if kind == "report":
                view["results"], view["pretraining"] = found["rows"], found["pretraining"]
            else:
                view.setdefault(kind.replace("-", "_"), []).append({"stage": name, **found})
        if kind == "model" and manifest.get("task", "").endswith(":Pretrain"):
            view["training"].append(_training(store, name, manifest))
    return view


def _stage(
    name: str, entry: dict[str, Any], manifest: dict[str, Any] | None, started: float, makers: Makers
) -> dict[str, Any]:
    found = {
        "name": name,
        "task": entry.get("task"),
        "key": entry.get("key"),
        "state": entry.get("state", "pending"),
        "reason": entry.get("reason"),
        "seconds": entry.get("seconds"),
        "inputs": entry.get("inputs", []),
        "metrics": (manifest or {}).get("metrics", {}),
        "attempts": entry.get("attempt"),
        "decisions": [f"{d['error']}: {d['decision']}" for d in entry.get("decisions") or []],
        "made_by_run": entry.get("made_by"),
        "maker": (makers.of(manifest) if manifest else makers.of_stage(entry)).as_json(),
    }
    if entry.get("began") and entry.get("state") not in ("cached", "pending"):
        found["started_offset_seconds"] = max(0.0, entry["began"] - started)
    if error := entry.get("error"):
        found["error"] = {k: error.get(k) for k in ("type", "message", "remedy", "log")}
    return found


def _environment(made: dict[str, dict[str, Any]], info: dict[str, Any]) -> dict[str, Any]:
    from pipelines.worker import environment

    newest = max(made.values(), key=lambda m: m.get("timings", {}).get("started", 0), default={})
    found = newest.get("environment") or environment()
    return {
        "python": found.get("python"),
        "platform": found.get("platform"),
        "host": found.get("host"),
        "cpus": found.get("cpus"),
        "packages": found.get("libraries", {}),
        "git": info.get("git") or {},
    }


def _training(store: Store, name: str, manifest: dict[str, Any]) -> dict[str, Any]:
    timings = manifest.get("timings", {})
    unigram = manifest.get("metrics", {}).get("unigram_entropy")
    return {
        "stage": name,
        "records": _lines(store, manifest, "metrics.jsonl"),
        "baselines": {"unigram": unigram} if unigram else {},
        "figures": _read(store, manifest, "training.json") or {},
        "throughput": {k: v for k, v in timings.items() if k in ("tokens_per_second", "mfu")},
        "timings": {k: v for k, v in timings.items() if k.startswith(("step_", "memory/"))},
        "placement": {k: v for k, v in manifest.get("placement", {}).items() if k in PLACED},
        "updates": _lines(store, manifest, "updates.jsonl"),
        "samples": _read(store, manifest, "samples.json") or [],
    }


def _lines(store: Store, manifest: dict[str, Any], name: str) -> list[Any]:
    """The JSON values of a file with one in a line."""
    return [json.loads(line) for line in (_text(store, manifest, name) or "").splitlines() if line.strip()]


def _text(store: Store, manifest: dict[str, Any], name: str) -> str | None:
    """A small file of an artifact; None where it has none."""
    if name not in manifest.get("files", {}):
        return None
    return store.read_text(f"{manifest['folder']}/{name}")  # the file alone: corpora and examples are large


def _read(store: Store, manifest: dict[str, Any], name: str) -> Any:
    text = _text(store, manifest, name)
    return json.loads(text) if text is not None else None


def write_report(store: Store, record: RunRecord, view: dict[str, Any] | None = None) -> str:
    """Render the run's report into the store; returns its path (or URL where the store is remote)."""
    from pipelines.report.page import render

    name = f"{record.folder}/report.html"
    store.write_text(name, render(view or view_of(store, record)))
    return str(Path(store.local_root) / name) if store.local_root is not None else f"{store.url.rstrip('/')}/{name}"
