"""What a person sees while a run goes: a live table on a terminal, one line a change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from pipelines.plan import Plan
from pipelines.runs import RunRecord
from pipelines.session import Result, Watcher

COLOURS = {
    "done": "green",
    "cached": "cyan",
    "running": "yellow",
    "waiting": "magenta",
    "failed": "bold red",
    "skipped": "dim red",
    "pruned": "dim",
    "cancelled": "red",
    "interrupted": "red",
    "damaged": "bold red",
    "submitted": "magenta",
    "pending": "dim",
}
MOST_ROWS = 30


def duration(seconds: float | None) -> str:
    """1.2 s, 45 s, 3:05, 1:02:03; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: Any) -> str:
    """A metric for people: four significant digits, thousands marked."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 10000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def console_out() -> Console:
    """Standard output; a pipe or a file is wide enough for whole names."""
    return Console(width=None if sys.stdout.isatty() else 160)


class Progress(Watcher):
    """The display of a run.

    Args:
        console: where to write; a terminal gets the live table.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or console_out()
        self.record: RunRecord | None = None
        self.plan: Plan | None = None
        self._live: Live | None = None
        self._shown: dict[str, str] = {}
        self._told = 0
        self._refreshed = 0.0

    def planned(self, plan: Plan, record: RunRecord | None, resumed: bool) -> None:
        self.plan, self.record = plan, record
        self._told = len(record.status.get("notices", [])) if record is not None else 0  # of sessions before
        counts = plan.as_json()["counts"] if len(plan.steps) < 2000 else {}
        if record is None or not plan.to_run:
            return
        said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        verb = "continuing" if resumed else "run"
        self.console.print(f"[bold]{verb} {record.name}[/]: {len(plan.steps)} stages ({said})", highlight=False)
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()

    def changed(self) -> None:
        now = time.monotonic()
        if self.record is None or now - self._refreshed < (0.25 if self._live else 0.5):
            return
        self._refreshed = now
        self._notices()
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        else:
            self._lines()

    def closed(self) -> None:
        self._notices()
        if self._live is not None:
            self._live.stop()
            self._live = None
            if self.record is not None:
                self.console.print(self._table())
        elif self.record is not None:
            self._lines()

    def _notices(self) -> None:
        """What concerns the run as a whole, each once, above the table."""
        found = self.record.status.get("notices", []) if self.record is not None else []
        for entry in found[self._told :]:
            print_notice(entry, self.console)
        self._told = max(self._told, len(found))

    def _lines(self) -> None:
        """One line for each change of state, and progress now and then, for logs and pipes."""
        assert self.record is not None
        for name, entry in list(self.record.status["stages"].items()):
            state = entry.get("state", "pending")
            progress = entry.get("progress") or {}
            tenth = int(10 * progress["done"] / progress["total"]) if progress.get("total") else 0
            mark = f"{state}{entry.get('attempt', '')}{tenth if state == 'running' else ''}"
            if state == "pending" or self._shown.get(name) == mark:
                continue
            self._shown[name] = mark
            parts = [name, state]
            if state == "running" and progress:
                parts.append(_progress_text(progress))
            if state == "done":
                parts.append(duration(entry.get("seconds")))
            if state in ("done", "cached") and entry.get("metrics"):
                parts.append(" ".join(f"{k}={number(v)}" for k, v in list(entry["metrics"].items())[:4]))
            if state == "failed":
                parts.append(str((entry.get("error") or {}).get("message", "")).splitlines()[0][:200])
            if decisions := entry.get("decisions"):
                parts.append(f"({decisions[-1]['decision']})")
            sys.stdout.write("  ".join(p for p in parts if p) + "\n")
        sys.stdout.flush()

    def _table(self) -> Table:
        assert self.record is not None
        table = Table(box=None, pad_edge=False, expand=False)
        for title, justify in (("stage", "left"), ("state", "left"), ("time", "right"), ("progress", "left")):
            table.add_column(title, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
        entries = list(self.record.status["stages"].items())
        hidden = 0
        if len(entries) > MOST_ROWS:
            busy = [e for e in entries if e[1].get("state") in ("running", "failed", "waiting")]
            rest = [e for e in entries if e not in busy]
            shown = [*busy, *rest][:MOST_ROWS]
            hidden = len(entries) - len(shown)
            entries = shown
        for name, entry in entries:
            state = entry.get("state", "pending")
            colour = COLOURS.get(state, "default")
            seconds = entry.get("seconds")
            if state == "running":
                seconds = time.time() - entry.get("began", time.time())
            text = ""
            if state == "running":
                text = _progress_text(entry.get("progress") or {}, seconds)
            elif state in ("done", "cached"):
                text = "  ".join(f"{k} {number(v)}" for k, v in list((entry.get("metrics") or {}).items())[:3])
            elif state == "failed":
                text = str((entry.get("error") or {}).get("message", "")).splitlines()[0]
            elif state == "waiting":
                text = f"held by {entry.get('held_by', 'another driver')}"
            table.add_row(escape(name), f"[{colour}]{state}[/]", duration(seconds), escape(text))
        if hidden:
            table.add_row(f"… {hidden} more", "", "", "")
        return table


def _progress_text(progress: dict[str, Any], seconds: float = 0.0) -> str:
    """Bar, count, what the stage shows (loss, rate), and the time left at the pace so far."""
    total, done = progress.get("total") or 0, progress.get("done") or 0
    parts = []
    if total:
        width = 16
        filled = min(width, int(width * done / total))
        parts.append("━" * filled + "·" * (width - filled))
        parts.append(f"{done:,.0f}/{total:,.0f} {progress.get('unit', '')}".rstrip())
    shown = dict(progress.get("shown") or {})
    parts += [f"{name} {number(value)}" for name, value in shown.items()]
    if total and done and seconds:
        parts.append(f"ETA {duration(seconds * (total - done) / done)}")
    return "  ".join(parts)


def print_notice(entry: dict[str, Any], console: Console) -> None:
    """What was seen, and what to do."""
    text = f"[yellow]note[/]: {escape(str(entry['message']))}\n  {escape(str(entry['remedy']))}"
    console.print(text, highlight=False, soft_wrap=True)


def print_result(result: Result, console: Console) -> None:
    """The end of a run: what failed and why, the results table, where to look."""
    stages = result.record.status["stages"] if result.record else {}
    if result.state == "nothing":
        name = f" by run {result.run}" if result.run else ""
        console.print(f"Nothing to do: all {len(result.artifacts)} stages are cached{name}.", highlight=False)
    found = results_of(result)
    if found["pretraining"]:
        console.print(pretraining_table(found["pretraining"]))
    if found["rows"]:
        console.print(results_table(found["rows"]))
    for line in _sweep_lines(result):
        console.print(line, highlight=False, markup=False)
    for name, entry in stages.items():
        if entry.get("state") == "failed":
            print_failure(name, entry.get("error") or {}, result.store.url, console)
    skipped = [name for name, entry in stages.items() if entry.get("state") == "skipped"]
    if skipped and result.state != "nothing":
        console.print(f"not made: {', '.join(skipped[:12])}{' …' if len(skipped) > 12 else ''}", highlight=False)
    if result.state == "cancelled":
        console.print(f"[red]cancelled[/]; the same command continues run {result.run}", highlight=False)
    if result.report:
        console.print(f"report   {result.report}", highlight=False, soft_wrap=True)
    if uri := (result.tracking or {}).get("uri"):
        shown = f"run {result.tracking.get('run_id')} in {uri}"
        console.print(f"MLflow   {shown} (`triptych ui` opens it)", highlight=False, soft_wrap=True)
    elif result.state == "nothing" and result.record is not None:
        facts = result.record.info.get("mlflow") or {}
        if facts.get("run_id"):
            console.print(f"MLflow   run {facts['run_id']} in {facts.get('uri')}", highlight=False, soft_wrap=True)


def print_failure(name: str, error: dict[str, Any], store: str, console: Console) -> None:
    """The root cause of a failed stage, its remedy and its log."""
    console.print(f"[bold red]stage {escape(name)} failed[/]: {escape(str(error.get('message', '')))}", highlight=False)
    if error.get("remedy"):
        console.print(f"  {escape(str(error['remedy']))}", highlight=False)
    if error.get("class") == "bug" and error.get("traceback"):
        console.print(escape(error["traceback"].rstrip()), highlight=False)
    if error.get("log"):
        console.print(f"  log: {store.rstrip('/')}/{error['log']}", highlight=False, soft_wrap=True)


def _sweep_lines(result: Result) -> Iterator[str]:
    """What a sweep's comparison found."""
    import json

    from pipelines.display_scaling import comparison_lines, sweep_lines

    for stage, manifest in result.artifacts.items():
        if manifest.get("kind") == "scaling-comparison":
            found = json.loads((result.path(stage) / "comparison.json").read_text(encoding="utf-8"))
            yield from sweep_lines(found)
            if found["pairs"]:
                yield from comparison_lines({found["approach"]: found})


def results_of(result: Result) -> dict[str, list[dict[str, Any]]]:
    """What the run's report stage found: {rows, pretraining}; empty lists without one."""
    import json

    for stage, manifest in result.artifacts.items():
        if manifest.get("kind") == "report" and "results.json" in manifest.get("files", {}):
            found = json.loads((result.path(stage) / "results.json").read_text())
            return {"rows": found["rows"], "pretraining": found["pretraining"]}
    return {"rows": [], "pretraining": []}


def pretraining_table(rows: list[dict[str, Any]]) -> Table:
    """Each model's held-out loss beside a unigram and an n-gram model's."""
    from tasks.report import loss_shown

    table = Table(title="pretraining, nats per label on held-out text", title_justify="left")
    for title in ("objective", "architecture", "parameters", "tokens", "loss", "unigram", "n-gram"):
        table.add_column(title, justify="left" if title in ("objective", "architecture") else "right")
    for row in rows:
        baselines = ["-" if row[name] is None else f"{row[name]:.3f}" for name in ("unigram", "ngram")]
        counts = [f"{row[name]:,}" for name in ("parameters", "tokens")]
        table.add_row(row["objective"], row["architecture"], *counts, loss_shown(row), *baselines)
    return table


def _published(row: dict[str, Any]) -> str:
    """A published figure, with its metric where that is another; of several systems BERT-base, or the first."""
    value, metric = row.get("published"), row.get("published_metric")
    if isinstance(value, dict):
        name = next((n for n in value if n.startswith("BERT-base")), next(iter(value), None))
        other = f" ({metric})" if metric and metric != row.get("metric") else ""
        return "" if name is None else f"{name} {number(value[name])}{other}"
    return "" if value is None else str(value)


def results_table(rows: list[dict[str, Any]]) -> Table:
    """Each task: pretrained against the same model from random initialisation."""
    table = Table(title="downstream, median over seeds", title_justify="left")
    titles = ["task", "metric", "pretrained", "from scratch", "difference", "pays"]
    if any(_published(row) for row in rows):
        titles.append("published")
    for title in titles:
        justify = "left" if title in ("task", "metric", "pays", "published") else "right"
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        pre, scratch = row.get("pretrained") or {}, row.get("random") or {}
        cells = []
        for side in (pre, scratch):
            median, spread = side.get("median"), side.get("spread")
            text = "-" if median is None else f"{median:.3f}"
            cells.append(text if spread is None or median is None else f"{text} ± {spread:.3f}")
        difference = row.get("difference")
        pays = row.get("pays")
        table.add_row(
            str(row.get("task")),
            str(row.get("metric")),
            *cells,
            "-" if difference is None else f"{difference:+.3f}",
            "-" if pays is None else ("[green]yes[/]" if pays else "[red]no[/]"),
            *([_published(row)] if "published" in titles else []),
        )
    return table
