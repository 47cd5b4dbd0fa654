"""A plan, a run's state and the list of runs as tables."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.display import COLOURS, duration, number, print_notice
from pipelines.plan import CACHED, STALE, Plan

MOST_CHANGES = 8


def print_plan(plan: Plan, console: Console) -> None:
    """Each stage: state, expected time, reason; below it every change that made it stale."""
    found = plan.as_json()
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "state", "expected", "why"):
        table.add_column(title, justify="right" if title == "expected" else "left", overflow="fold")
    for step in plan.steps.values():
        colour = {CACHED: "cyan", STALE: "yellow"}.get(step.state, "bold")
        changes = step.changes[:MOST_CHANGES] if len(step.changes) > 1 else []
        more = [f"… {len(step.changes) - MOST_CHANGES} more"] if len(step.changes) > MOST_CHANGES else []
        why = "\n".join(["" if changes else step.reason, *changes, *more]).strip()
        expected = duration(step.expected_seconds) if step.state != CACHED else ""
        table.add_row(escape(step.name), f"[{colour}]{step.state}[/]", expected, escape(why))
    console.print(table)
    counts = ", ".join(f"{n} {state}" for state, n in found["counts"].items() if n)
    known = found["expected_seconds"]
    console.print(counts + (f"; about {duration(known)} of work known" if known else ""), highlight=False)


def print_runs(rows: list[dict[str, Any]], console: Console) -> None:
    """The list of runs, newest last; a damaged one with what is wrong."""
    table = Table(box=None, pad_edge=False)
    for title in ("run", "state", "started", "time", "stages"):
        table.add_column(title, no_wrap=title != "stages", overflow="fold")
    for row in rows:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["started"])) if row.get("started") else ""
        counts = ", ".join(f"{n} {state}" for state, n in row["counts"].items())
        colour, said = COLOURS.get(row["state"], "default"), escape(row.get("problem") or counts)
        table.add_row(row["run"], f"[{colour}]{row['state']}[/]", started, duration(row.get("seconds")), said)
    console.print(table)


def print_status(found: dict[str, Any], console: Console) -> None:
    """One run: its state and that of each stage."""
    command = escape(found.get("command") or "")
    console.print(f"[bold]{found['run']}[/]  {found['state']}  {command}", highlight=False, soft_wrap=True)
    for entry in found["notices"]:
        print_notice(entry, console)
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "state", "time", "attempt", "what"):
        table.add_column(title, overflow="fold")
    for stage in found["stages"]:
        state = stage["state"]
        what = stage.get("reason") or ""
        progress = stage.get("progress")
        if progress and progress.get("total"):
            what = f"{progress['done']:,.0f}/{progress['total']:,.0f} {progress.get('unit', '')}"
        if stage.get("metrics"):
            what = "  ".join(f"{k} {number(v)}" for k, v in list(stage["metrics"].items())[:4])
        if stage.get("error"):
            what = str(stage["error"].get("message"))
        for decision in stage.get("decisions") or []:
            what += f"\n{decision['error']}: {decision['decision']}"
        seconds = stage.get("seconds") if state in ("done", "cached") else None
        colour = COLOURS.get(state, "default")
        table.add_row(
            escape(stage["stage"]),
            f"[{colour}]{state}[/]",
            duration(seconds),
            str(stage.get("attempt") or ""),
            escape(what),
        )
    console.print(table)
