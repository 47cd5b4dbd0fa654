"""`triptych show`: an artifact as a person wants to see it."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.markup import escape

from cluster.errors import BadConfig
from cluster.files import cache_folder
from cluster.store import Store
from pipelines.display import console_out, duration, number
from pipelines.runs import RunRecord, resolve_run
from pipelines.status import find_key, near_stage, stage_rows

MOST_FILES = 20


def find_manifest(store: Store, what: str, stage: str | None) -> tuple[Any, dict[str, Any] | None]:
    """(record, manifest) for a run and stage, or for a key or its unique beginning.

    Raises:
        BadConfig: nothing of that name, or a stage that has no artifact.
    """
    if stage is None and (key := find_key(store, what)) is not None:
        return None, store.manifest(key)
    record = resolve_run(store, what)
    if stage is None:
        return record, None
    entry = record.status["stages"][near_stage(record, stage)]
    manifest = store.manifest(entry["key"])
    if manifest is None:
        raise BadConfig(f"stage {stage} of {record.name} has no artifact (it is {entry.get('state')})")
    return record, manifest


def print_record(record: RunRecord) -> None:
    """A run's outcome, its stages with their keys, and its settings."""
    console = console_out()
    console.print(f"[bold]{record.name}[/]  {record.state()}", highlight=False)
    for name in ("command", "store", "tracking", "git"):
        if record.info.get(name):
            console.print(f"{name}: {escape(str(record.info[name]))}", highlight=False, soft_wrap=True)
    rows = stage_rows(record)
    width = max((len(row["stage"]) for row in rows), default=0)
    for row in rows:
        seconds = duration(row.get("seconds")) if row["state"] in ("done", "cached") else "-"
        line = f"  {row['stage']:<{width}}  {row['state']:<11}  {seconds:>9}  {row.get('key', '')[:16]}"
        console.print(escape(line), highlight=False, soft_wrap=True)
    console.print_json(json.dumps(record.info.get("config") or {}))


def print_manifest(store: Store, manifest: dict[str, Any], *, ids: bool = False) -> None:
    """What made the artifact, its figures and files, and a look inside; with `ids`, tokens with their numbers."""
    console = console_out()
    timings = manifest.get("timings", {})
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timings.get("started", 0)))
    console.print(
        f"[bold]{escape(manifest['stage'])}[/]  {manifest['task']}  makes a {manifest['kind']}", highlight=False
    )
    console.print(f"key      {manifest['key']}", highlight=False)
    console.print(
        f"made     {made} in {duration(timings.get('seconds'))} by run {manifest.get('run')}", highlight=False
    )
    console.print(f"folder   {store.url.rstrip('/')}/{manifest['folder']}", highlight=False, soft_wrap=True)
    git = manifest.get("git") or {}
    if git:
        console.print(
            f"code     {git.get('commit', '')[:12]}{' with changes' if git.get('dirty') else ''}", highlight=False
        )
    for name, value in manifest.get("inputs", {}).items():
        console.print(f"input    {name}: {value if isinstance(value, str) else ', '.join(value)}", highlight=False)
    for title in ("config", "metrics", "timings"):
        values = {k: v for k, v in manifest.get(title, {}).items() if k != "started"}
        if values:
            console.print(f"[bold]{title}[/]")
            for name, value in values.items():
                console.print(f"  {name}: {escape(number(value))}", highlight=False)
    console.print("[bold]files[/]")
    files = manifest.get("files", {})
    for name, facts in list(files.items())[:MOST_FILES]:
        console.print(f"  {name}  {facts['size']:,} bytes", highlight=False)
    if len(files) > MOST_FILES:
        console.print(f"  … {len(files) - MOST_FILES} more")
    from tasks.preview import preview

    folder = store.fetch(manifest, cache_folder() / "artifacts", lazy=True)
    lines = preview(manifest["kind"], folder, width=console.width, ids=ids)
    if lines:
        console.print("[bold]a look inside[/]")
        for line in lines:
            console.print(line, highlight=False)
