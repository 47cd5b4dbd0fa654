"""Commands that look after a store: cancel, accept, gc, report, ui."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli_options import JsonOption, RunArgument, StageArgument, StoreOption, rebuild, show_json, store_at


def cancel(run: RunArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Ask a run's driver to stop: stages end, leases are released, MLflow says KILLED; or stop a job yet to begin."""
    from pipelines.runs import resolve_run
    from pipelines.session import wait_for
    from pipelines.status import reconcile
    from pipelines.submitted import cancel_submitted

    where = store_at(store)
    record = resolve_run(where, run)
    state = record.state()
    if state == "submitted":
        state = cancel_submitted(record)
    elif state == "running":
        where.write_json(f"{record.folder}/cancel", {"asked": True})
        wait_for(lambda: resolve_run(where, record.name).state() != "running", 40)
        state = resolve_run(where, record.name).state()
    if state == "interrupted":
        record = resolve_run(where, record.name)
        reconcile(where, [record])
        record.finish("cancelled")
        state = "cancelled"
    if json:
        show_json({"run": record.name, "state": state})
    else:
        text = "asked to stop; it has not answered yet" if state in ("running", "submitted") else state
        typer.echo(f"{record.name}: {text}")


def accept(
    run: RunArgument,
    stage: StageArgument,
    store: StoreOption = None,
    config_too: Annotated[
        bool, typer.Option("--any", help="Accept changes of config or data, too, not only of code.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Say that a change does not matter: the stage's new key stands for the artifact it has (globs allowed)."""
    from pipelines.accept import accept_changes
    from pipelines.runs import resolve_run

    where = store_at(store)
    record = resolve_run(where, run)
    found = accept_changes(rebuild(record, where.url), where, record, stage, config_too=config_too)
    if json:
        show_json(found)
        return
    for item in found:
        typer.echo(f"{item['stage']}: {item['new'][:12]} stands for {item['old'][:12]}")
        for line in item["changes"]:
            typer.echo(f"  {line}")
    if not found:
        typer.echo("nothing to accept: no such stage has changed")


def gc(
    store: StoreOption = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it only show.")] = False,
    forget: Annotated[
        list[str] | None, typer.Option("--forget", metavar="RUN", help="Count this run's artifacts as not needed.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Find what no run and no registered model reaches; delete it with --delete."""
    from pipelines.gc import collect

    found = collect(store_at(store), delete=delete, forget=forget or ())
    if json:
        show_json(found)
        return
    for item in found["items"]:
        typer.echo(f"{item['kind']:<9} {item['path']}  {item['bytes'] / 1e6:,.1f} MB  {item['why']}")
    verb = "deleted" if delete else "could be deleted (--delete does it)"
    typer.echo(f"{len(found['items'])} items, {found['bytes'] / 1e6:,.1f} MB {verb}; {found['kept']} artifacts in use")


def report(
    run: Annotated[str, typer.Argument(metavar="RUN")] = "latest",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write a run's report, one HTML file that opens offline, and say where it is."""
    from pipelines.runs import resolve_run
    from pipelines.view import view_of, write_report

    where = store_at(store)
    record = resolve_run(where, run)
    if json:
        show_json(view_of(where, record))
    else:
        typer.echo(write_report(where, record))


def ui(
    store: StoreOption = None,
    tracking: Annotated[str | None, typer.Option("--tracking", metavar="URI", help="Another tracking store.")] = None,
    port: Annotated[int, typer.Option("--port")] = 5000,
    host: Annotated[
        str, typer.Option("--host", help="Keep to localhost unless you know who can reach it.")
    ] = "127.0.0.1",
) -> None:
    """Open MLflow on the runs of the store."""
    import signal

    from cluster.ui import serve
    from pipelines.runs import load_runs
    from pipelines.session import default_tracking
    from pipelines.status import reconcile

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)  # ends the server with us, as Ctrl-C does
    where = store_at(store)
    reconcile(where, load_runs(where)[0])
    serve(tracking or default_tracking(where), host=host, port=port)


def add(app: typer.Typer) -> None:
    """Put the commands of this module into the application."""
    for command in (cancel, accept, gc, report, ui):
        app.command()(command)
