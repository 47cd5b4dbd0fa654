"""What MLflow knows of a scaling fit: the runs it was fitted to, its figures with their limits, its pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from cluster.store import Store
from cluster.tracking_buffer import EXPERIMENT_ID, MAX_TAG, NOTE
from pipelines.fits import metrics
from pipelines.makers import Makers, page

FITTED_TO = "triptych.fitted_to"
"""Tag: the MLflow runs of the points, by which the fits that used a run are found."""
TABLE = "runs.json"
SHOWN = ("stage", "params", "tokens", "flops", "loss")


def cite(handle: Any, store: Store, manifest: Mapping[str, Any], makers: Makers) -> dict[str, float]:
    """Give a fit's MLflow run what it was made of; returns its metrics.

    `runs.json` is a table of the points (MLflow shows it as one), each with the key of its artifact and its MLflow run;
    the run's description links to them, and the tag `triptych.fitted_to` lists them. Beside it `fit.json`, `sweep.json`
    and the artifact's `plots/*.svg`.
    """
    folder, files = manifest["folder"], manifest.get("files", {})
    read = {name: store.read_text(f"{folder}/{name}") or "" for name in ("fit.json", "sweep.json") if name in files}
    sweep, fit = json.loads(read.get("sweep.json") or "{}"), json.loads(read.get("fit.json") or "{}")
    rows = _rows(store, sweep.get("points") or (), makers)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}
    handle.artifact((TABLE, json.dumps(table, indent=1)))
    for name, text in read.items():
        handle.artifact((name, text))
    for name in sorted(files):
        if PurePosixPath(name).match("plots/*.svg") and (data := store.read_bytes(f"{folder}/{name}")) is not None:
            handle.artifact((name, data))
    handle.params({name: sweep[name] for name in ("variant", "architecture", "objective", "unit") if name in sweep})
    handle.tags(
        {
            FITTED_TO: " ".join(row["mlflow_run"] for row in rows if row["mlflow_run"]),
            "mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}]),
            NOTE: _note(rows, sweep),
        }
    )
    return metrics(fit)


def _rows(store: Store, points: Sequence[Mapping[str, Any]], makers: Makers) -> list[dict[str, Any]]:
    found = store.manifests({str(point["key"]) for point in points if point.get("key")})
    rows = []
    for point in points:
        source = found.get(str(point.get("key")))
        maker = makers.of(source) if source else None
        rows.append(
            {
                **point,
                "content": source["content"] if source else "",
                "mlflow_run": maker.mlflow_run if maker else "",
                "mlflow_page": maker.fragment if maker else "",
            }
        )
    return rows


def _note(rows: Sequence[Mapping[str, Any]], sweep: Mapping[str, Any]) -> str:
    """Markdown for the run's page: a table of the points with links, cut to what a tag holds."""
    unit = sweep.get("unit") or "nats per token"
    head = f"Fitted to {len(rows)} points; each links to the run that made it.\n\n"
    head += f"| run | parameters | tokens | FLOPs | loss, {unit} |\n|---|---|---|---|---|\n"
    lines: list[str] = []
    room = MAX_TAG - len(head) - 100
    for row in rows:
        name, *figures = (_cell(row.get(name)) for name in SHOWN)
        known = row["mlflow_page"] or (page(EXPERIMENT_ID, row["mlflow_run"]) if row["mlflow_run"] else "")
        line = f"| {f'[{name}]({known})' if known else name} | {' | '.join(figures)} |\n"
        room -= len(line)
        if room < 0:
            lines.append(f"\n{len(rows) - len(lines)} more are in the artifact `{TABLE}`.")
            break
        lines.append(line)
    return head + "".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:.4g}"
    return str(value or "–").replace("|", "/")
