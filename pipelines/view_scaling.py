"""The report's view of scaling laws: fits and their comparison, each point with the MLflow run that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.store import Store
from pipelines.makers import Makers

FIT, COMPARISON = "scaling-fit", "scaling-comparison"


def scaling_of(store: Store, made: Mapping[str, Mapping[str, Any]], makers: Makers) -> dict[str, Any]:
    """`scaling` and `scaling_comparison` of a view; neither where a run has none.

    Args:
        store: where the artifacts are.
        made: {stage: manifest} of the run.
        makers: finds the MLflow run of a point.
    """
    found: dict[str, Any] = {}
    for name, manifest in made.items():
        if manifest.get("kind") == FIT:
            found.setdefault("scaling", []).append(_fit(store, name, manifest, makers))
        elif manifest.get("kind") == COMPARISON:
            content = _read(store, manifest, "comparison.json")
            rows = _cited(store, content.get("predictions"), manifest, makers)
            found["scaling_comparison"] = {**content, "stage": name, "key": manifest["key"], "predictions": rows}
    return found


def _fit(store: Store, name: str, manifest: Mapping[str, Any], makers: Makers) -> dict[str, Any]:
    sweep = _read(store, manifest, "sweep.json")
    return {
        **sweep,
        "stage": name,
        "key": manifest["key"],
        "maker": makers.of(manifest).as_json(),
        "points": _cited(store, sweep.get("points"), manifest, makers),
        "fit": _read(store, manifest, "fit.json"),
    }


def _cited(
    store: Store, points: Sequence[Any] | None, manifest: Mapping[str, Any], makers: Makers
) -> list[dict[str, Any]]:
    """Points with `maker`, and `changed` where the artifact is no longer the one that `manifest` was made from."""
    rows = [point for point in points or () if isinstance(point, Mapping)]
    found = store.manifests({str(point["key"]) for point in rows if point.get("key")})
    read = manifest.get("input_content") or {}
    cited = []
    for point in rows:
        source = found.get(str(point.get("key")))
        row = {**point, "maker": makers.of(source).as_json() if source else {}}
        if point.get("key") and source is None:
            row["changed"] = "the artifact is no longer in the store"
        elif source and read.get(point["key"], source.get("content")) != source.get("content"):
            row["changed"] = "made again since, with other bytes"
        cited.append(row)
    return cited


def _read(store: Store, manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    if name not in manifest.get("files", {}):
        return {}
    return dict(json.loads(store.read_text(f"{manifest['folder']}/{name}") or "{}"))
