"""How a training was placed, for the page: DeepSpeed's configuration, and memory as predicted beside what was found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pipelines.report.watched import MEMORY_PARTS


def memory_rows(placement: Mapping[str, Any], timings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """[{part, predicted, measured, ratio}] in bytes, of the fullest worker, and their sums; empty without a prediction.

    Args:
        placement: the manifest's; `memory_predicted` is {part: bytes}.
        timings: the manifest's; `memory/<part>` are bytes. `ratio` is None where one of the two is 0 or not known.
    """
    predicted = placement.get("memory_predicted")
    if not isinstance(predicted, Mapping):
        return []
    rows = [_row(part, _bytes(predicted.get(part)), _bytes(timings.get(f"memory/{part}"))) for part in MEMORY_PARTS]
    rows = [row for row in rows if row["predicted"] or row["measured"]]
    known = [row for row in rows if row["predicted"] is not None and row["measured"] is not None]
    if len(known) > 1:
        sums = (sum(row[name] for row in known) for name in ("predicted", "measured"))
        rows.append(_row("together", *sums))
    return rows


def _row(part: str, predicted: float | None, measured: float | None) -> dict[str, Any]:
    ratio = measured / predicted if measured and predicted else None
    return {"part": part.replace("_", " "), "predicted": predicted, "measured": measured, "ratio": ratio}


def _bytes(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def deepspeed_config(placement: Mapping[str, Any]) -> str:
    """DeepSpeed's configuration as the run used it, as JSON; empty where the manifest has none."""
    found = placement.get("deepspeed_config")
    return json.dumps(found, indent=2, sort_keys=True) if isinstance(found, Mapping) and found else ""
