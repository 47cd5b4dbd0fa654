"""The report's view of scaling laws: fits and their comparison, each point with the MLflow run that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.store import Store
from pipelines.makers import Makers
from pipelines.runs import RunRecord

FIT, COMPARISON = "scaling-fit", "scaling-comparison"


def scaling_of(
    store: Store, record: RunRecord, made: Mapping[str, Mapping[str, Any]], makers: Makers
) -> dict[str, Any]:
    """`scaling` and `scaling_comparison` of a view; neither where a run has none.

    Args:
        store: where the artifacts are.
        record: of the run.
        made: {stage: manifest} of the run.
        makers: finds the MLflow run of a point.
    """
    stages = record.status.get("stages", {})
    names = {str(entry.get("key")): name for name, entry in stages.items()}
    found: dict[str, Any] = {}
    for name, manifest in made.items():
        if manifest.get("kind") == FIT:
            sweep = _read(store, manifest, "sweep.json")
            found.setdefault("scaling", []).append(
                {
                    "left_out": _left_out(stages, name),
                    **sweep,
                    "stage": name,
                    "key": manifest["key"],
                    "maker": makers.of(manifest).as_json(),
                    "points": _cited(store, sweep.get("points"), manifest, makers, names),
                    "fit": _read(store, manifest, "fit.json"),
                }
            )
        elif manifest.get("kind") == COMPARISON:
            content = _read(store, manifest, "comparison.json")
            rows = _cited(store, content.get("predictions"), manifest, makers, names)
            found["scaling_comparison"] = {**content, "stage": name, "key": manifest["key"], "predictions": rows}
    return found


def _left_out(stages: Mapping[str, Mapping[str, Any]], fit: str) -> list[dict[str, str]]:
    """The runs that a fit could have had and the sweep did not need."""
    inputs = stages[fit].get("inputs") or ()
    gone = [name for name in inputs if stages.get(name, {}).get("state") == "pruned"]
    return [{"stage": name, "reason": str(stages[name].get("reason") or "")} for name in gone]


def _cited(
    store: Store,
    points: Sequence[Any] | None,
    manifest: Mapping[str, Any],
    makers: Makers,
    names: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Points with `stage`, `seconds` and `maker`; `changed` where the artifact is not what `manifest` was made from."""
    rows = [point for point in points or () if isinstance(point, Mapping)]
    found = store.manifests({str(point["key"]) for point in rows if point.get("key")})
    read = manifest.get("input_content") or {}
    cited = []
    for point in rows:
        key = str(point.get("key") or "")
        source = found.get(key)
        row = {**point, "stage": names.get(key) or point.get("stage"), "maker": {}}
        if source is not None:
            row["maker"] = makers.of(source).as_json()
            row.setdefault("seconds", source.get("timings", {}).get("seconds"))
            if read.get(key, source.get("content")) != source.get("content"):
                row["changed"] = "made again since, with other bytes"
        elif key:
            row["changed"] = "the artifact is no longer in the store"
        cited.append(row)
    return cited


def _read(store: Store, manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    if name not in manifest.get("files", {}):
        return {}
    return dict(json.loads(store.read_text(f"{manifest['folder']}/{name}") or "{}"))
