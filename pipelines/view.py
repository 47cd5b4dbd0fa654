"""The report's view of a run: record, manifests and small files put together."""

from __future__ import annotations

from typing import Any

from cluster.store import Store
from pipelines.runs import RunRecord


def view_of(store: Store, record: RunRecord) -> dict[str, Any]:
    return {}


def write_report(store: Store, record: RunRecord) -> str:
    store.write_text(f"{record.folder}/report.html", "<html></html>")
    return f"{store.url}/{record.folder}/report.html"
