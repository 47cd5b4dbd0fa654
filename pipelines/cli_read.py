"""Commands that read: status, logs, why, show, diff, verify, recipes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.cli_options import JsonOption, RunArgument, StageArgument, StoreOption, rebuild, show_json, store_at


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Show one recipe's settings.")] = None,
    json: JsonOption = False,
) -> None:
    """List the recipes, or the settings of one with their defaults."""
    from pipelines.config import find_recipe
    from pipelines.listing import settings
    from pipelines.recipes import RECIPES

    if name is None:
        rows = {n: _first_line(RECIPES.load(n).__doc__) for n in RECIPES}
        if json:
            show_json(rows)
        else:
            for n, text in rows.items():
                typer.echo(f"{n:<14}{text}")
        return
    found = list(settings(find_recipe(name)))
    if json:
        show_json({s.path: {"type": s.type, "default": s.default, "help": s.help} for s in found})
        return
    for s in found:
        default = "" if s.default is None else f" = {_as_typed(s.default)}"
        typer.echo(f"{s.path}{default}  ({s.type}){'  ' + s.help if s.help else ''}")


def _as_typed(value: Any) -> str:
    """A value as it stands after `key=` on the command line."""
    import json

    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0] if text else ""


def status(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run; all runs when left out.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show the runs of the store, or the stages of one."""
    from pipelines.runs import load_runs, resolve_run
    from pipelines.status import damaged_row, reconcile, run_row, stage_rows

    where = store_at(store)
    if run is None:
        records, damaged = load_runs(where)
        reconcile(where, records)
        rows = [*(damaged_row(name, problem) for name, problem in damaged.items()), *map(run_row, records)]
        if json:
            show_json(rows)
            return
        if not rows:
            typer.echo(f"no runs in {where.url}; start one: triptych run quickstart")
            return
        from pipelines.display import console_out
        from pipelines.display_plan import print_runs

        print_runs(rows, console_out())
        return
    record = resolve_run(where, run)
    reconcile(where, [record])
    notices = record.status.get("notices", [])
    found = {**run_row(record), "command": record.info.get("command"), "notices": notices, "stages": stage_rows(record)}
    if json:
        show_json(found)
        return
    from pipelines.display import console_out
    from pipelines.display_plan import print_status

    print_status(found, console_out())


def logs(
    run: RunArgument,
    stage: StageArgument,
    store: StoreOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the stage ends.")] = False,
    json: JsonOption = False,
) -> None:
    """Print the log of a stage."""
    import time

    from cluster.errors import BadConfig
    from pipelines.runs import resolve_run
    from pipelines.status import near_stage

    where = store_at(store)
    record = resolve_run(where, run)
    name = near_stage(record, stage)
    shown = 0
    while True:
        text = where.read_text(f"{record.folder}/logs/{name}.log") or ""
        if not json:
            typer.echo(text[shown:], nl=False)
        shown = len(text)
        record = resolve_run(where, record.name)
        state = record.status["stages"].get(name, {}).get("state")
        if (
            json
            or not follow
            or state in ("done", "cached", "failed", "skipped", "pruned", "cancelled")
            or record.state() != "running"
        ):
            break
        time.sleep(0.5)
    if not shown:
        entry = record.status["stages"].get(name, {})
        made_by = entry.get("made_by")
        if entry.get("state") == "cached" and made_by and made_by != record.name:
            raise BadConfig(f"stage {name} was cached in {record.name}", f"triptych logs {made_by} {name}")
        raise BadConfig(f"stage {name} of {record.name} has no log yet (it is {entry.get('state')})")
    if json:
        show_json({"run": record.name, "stage": name, "log": text})


def why(run: RunArgument, stage: StageArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Say why a stage ran or was cached in a run, and what has changed since."""
    from pipelines.runs import resolve_run
    from pipelines.status import explain_stage

    where = store_at(store)
    record = resolve_run(where, run)
    found = explain_stage(where, record, stage, rebuild)
    if json:
        show_json(found)
        return
    typer.echo(
        f"{found['stage']} in {found['run']}: {found['state']}" + (f" ({found['reason']})" if found["reason"] else "")
    )
    for line in found["changes"]:
        typer.echo(f"  {line}")
    typer.echo(f"now: {found['now']}")
    for line in found["changes_since"]:
        typer.echo(f"  {line}")


def show(
    what: Annotated[str, typer.Argument(metavar="RUN|KEY", help="A run, or the key of an artifact.")],
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="A stage of the run.")] = None,
    store: StoreOption = None,
    ids: Annotated[bool, typer.Option("--ids", help="Show the tokens' numbers in examples.")] = False,
    json: JsonOption = False,
) -> None:
    """Show an artifact: what made it, its figures and files, and a look inside; or a run's record."""
    from pipelines.show import find_manifest, print_manifest, print_record

    where = store_at(store)
    record, manifest = find_manifest(where, what, stage)
    if json:
        show_json(manifest if manifest is not None else {**record.info, "status": record.status})
    elif manifest is not None:
        print_manifest(where, manifest, ids=ids)
    else:
        print_record(record)


def diff(
    first: Annotated[str, typer.Argument(metavar="RUN")],
    second: Annotated[str, typer.Argument(metavar="RUN")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Compare two runs: settings, code and metrics, stage by stage."""
    from pipelines.runs import resolve_run
    from pipelines.status import compare

    where = store_at(store)
    found = compare(where, resolve_run(where, first), resolve_run(where, second))
    if json:
        show_json(found)
        return
    for line in found["config"]:
        typer.echo(f"config {line}")
    for name, lines in found["stages"].items():
        typer.echo(name)
        for line in lines:
            typer.echo(f"  {line}")
    if not found["config"] and not found["stages"]:
        typer.echo("no difference")


def verify(
    what: Annotated[str | None, typer.Argument(metavar="[RUN|KEY]", help="All artifacts when left out.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Check the files of artifacts against their checksums."""
    from pipelines.status import verify_all

    found = verify_all(store_at(store), what)
    bad = {key: problems for key, problems in found.items() if problems}
    if json:
        show_json({"checked": len(found), "problems": bad})
    else:
        for key, problems in bad.items():
            for problem in problems:
                typer.echo(f"{key}: {problem}")
        typer.echo(f"{len(found)} artifacts checked, {len(bad)} damaged")
        if bad:
            typer.echo("make a damaged stage again: triptych rerun RUN STAGE")
    raise typer.Exit(1 if bad else 0)


def add(app: typer.Typer) -> None:
    """Put the commands of this module into the application."""
    for command in (status, logs, why, show, diff, verify, recipes):
        app.command()(command)
