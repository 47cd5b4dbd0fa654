"""What `triptych fit` leaves behind: a folder of pictures and numbers, and a run in MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

EXPERIMENT = "triptych-fit"


def write_folder(folder: Path, result: Mapping[str, Any], pictures: Sequence[tuple[str, bytes]]) -> None:
    """fit.json and the pictures.

    Raises:
        BadConfig: the folder cannot be written.
    """
    from cluster.errors import BadConfig

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fit.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        for name, data in pictures:
            (folder / name).write_bytes(data)
    except OSError as error:
        raise BadConfig(f"--out {folder}: {error.strerror or error}", "name a folder that can be written") from None


def open_tracker(uri: str | None, store: str | None) -> Any:
    """A tracker that was checked to answer; None where tracking is off."""
    from cluster.store import Store
    from cluster.tracking import Tracker
    from pipelines.session import TRACKING_OFF, default_tracking, environment_store

    if uri == TRACKING_OFF:
        return None
    tracker = Tracker(uri or default_tracking(Store(store or environment_store())), EXPERIMENT)
    tracker.check()
    return tracker


def track(
    tracker: Any,
    points: Any,
    settings: Mapping[str, Any],
    result: Mapping[str, Any],
    pictures: Sequence[tuple[str, bytes]],
) -> str:
    """One finished MLflow run: settings, the data set, estimates as metrics, pictures; its run id."""
    name = Path(points.source).stem or "fit"
    tracker.start_run(name, {"triptych.fit": points.source, "triptych.data": points.digest}, settings)
    tracker.run.dataset(
        name,
        source=points.source,
        digest=points.digest,
        profile={"points": len(points), "largest_flops": float(points.flops.max())},
        context="fit",
    )
    tracker.artifact(("fit.json", json.dumps(result, indent=2)))
    for file, data in pictures:
        tracker.artifact((f"plots/{file}", data))
    tracker.end_run("FINISHED", metrics(result))
    tracker.close(timeout=300)  # a new database takes MLflow long on a busy machine
    return str(tracker.run.known_run_id)


def metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """{fit.parameter: value} with the limits of the intervals."""
    out: dict[str, float] = {}
    for name, part in result.items():
        if "refused" in part:
            continue
        values = {**part["params"], **{k: part[k] for k in ("exponent_N", "exponent_D", "objective") if k in part}}
        out |= {f"{name}.{key}": float(value) for key, value in values.items()}
        for key, (low, high) in part["ci95"].items():
            out |= {f"{name}.{key}.low": low, f"{name}.{key}.high": high}
    return out
