"""Commands that make something: run, plan, submit, pack, rerun, repro."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli_options import (
    AddressOption,
    ConfigOption,
    ForceOption,
    JsonOption,
    KeepGoingOption,
    OnlyOption,
    RecipeArgument,
    RunArgument,
    SkipMemoryCheckOption,
    StageArgument,
    StoreOption,
    WordsArgument,
    build,
    rebuild,
    show_json,
    store_at,
)

NameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name the run (default: recipe, date, time).")
]


def run(
    recipe: RecipeArgument,
    words: WordsArgument = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    address: AddressOption = None,
    only: OnlyOption = None,
    force: ForceOption = None,
    keep_going: KeepGoingOption = False,
    skip_memory_check: SkipMemoryCheckOption = False,
    name: NameOption = None,
) -> None:
    """Run a recipe. What is cached is not made again; an interrupted run is continued.

    Exits with 2 before anything starts where training cannot fit into the memory of where it would run, as `plan` does.
    """
    request = build(
        recipe,
        words,
        config,
        store=store,
        address=address,
        only=tuple(only or ()),
        force=tuple(force or ()),
        keep_going=keep_going,
        check_memory=not skip_memory_check,
        name=name,
    )
    raise typer.Exit(execute(request))


def execute(request: object) -> int:
    """Run a request with the display; returns the exit code."""
    from pipelines.display import Progress, console_out, print_result
    from pipelines.session import run as start

    console = console_out()
    result = start(request, watcher=Progress(console))  # type: ignore[arg-type]
    print_result(result, console)
    return {"done": 0, "nothing": 0, "cancelled": 130}.get(result.state, 1)


ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="FILE.yaml", help="Node types to forecast speed and cost for. [default: ./ray_config.yaml]"
    ),
]
GpuOption = Annotated[
    str, typer.Option("--gpu", metavar="NAME", help="The workers' GPU, for the check of memory: h100, a100-80gb, l4 …")
]
OF_RUN = "Of run; changes nothing here."


def plan(
    recipe: RecipeArgument,
    words: WordsArgument = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    only: OnlyOption = None,
    force: ForceOption = None,
    cluster: ClusterOption = None,
    gpu: GpuOption = "",
    json: JsonOption = False,
    skip_memory_check: Annotated[
        bool, typer.Option("--skip-memory-check", help="Exit with 0 although training is predicted not to fit.")
    ] = False,
    address: Annotated[str | None, typer.Option("--address", metavar="ADDRESS", help=OF_RUN)] = None,
    keep_going: Annotated[bool, typer.Option("--keep-going", help=OF_RUN)] = False,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help=OF_RUN)] = None,
) -> None:
    """Show for each stage whether it is cached, stale or to be run, and why; and what training needs and costs.

    Exits with 2 where a stage that would run does not fit into its worker's memory, and says what would. A line of
    `run` is one of `plan`, too, with all its options.
    """
    from pipelines.capacity import as_json, refuse
    from pipelines.cluster_plan import forecast
    from pipelines.session import make_plan

    request = build(recipe, words, config, store=store, only=tuple(only or ()), force=tuple(force or ()))
    made = make_plan(request, store_at(store))
    found = forecast(made, cluster, gpu)
    if json:
        memory, choices = as_json(found.needs), [choice.as_json() for choice in found.choices]
        show_json({**made.as_json(), "memory": memory, "cluster": choices})
    else:
        from pipelines.display import console_out
        from pipelines.display_capacity import print_forecast
        from pipelines.display_plan import print_plan

        print_plan(made, console_out())
        print_forecast(found, console_out())
    if not skip_memory_check:
        refuse(found.needs)


def pack(
    recipe: RecipeArgument,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="A new folder.")],
    words: WordsArgument = None,
    stage: Annotated[str, typer.Option("--stage", metavar="STAGE", help="Which pretraining.")] = "pretrain",
    config: ConfigOption = None,
    store: StoreOption = None,
) -> None:
    """Write a pretraining stage as a folder, to be trained by torchrun on machines without Ray."""
    from pathlib import Path

    from pipelines.pack import pack as write
    from pipelines.session import make_plan

    found = store_at(store)
    folder = write(make_plan(build(recipe, words, config, store=store), found), found, stage, Path(to))
    typer.echo(f"torchrun --nproc-per-node 2 -m tasks.pretrain_job {folder}")


def submit(
    recipe: RecipeArgument,
    words: WordsArgument = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    address: Annotated[
        str, typer.Option("--address", metavar="URL", help="Ray's job server.")
    ] = "http://127.0.0.1:8265",
    only: OnlyOption = None,
    force: ForceOption = None,
    keep_going: KeepGoingOption = False,
    skip_memory_check: SkipMemoryCheckOption = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the run's name and leave.")] = False,
) -> None:
    """Send a run to a Ray cluster through Ray Jobs, and follow it. Leaving (Ctrl-C) does not stop it."""
    request = build(
        recipe,
        words,
        config,
        store=store,
        only=tuple(only or ()),
        force=tuple(force or ()),
        keep_going=keep_going,
        check_memory=not skip_memory_check,
    )
    from pipelines.sending import send

    raise typer.Exit(send(request, address, wait=not no_wait))


def rerun(
    run: RunArgument,
    stage: StageArgument,
    downstream: Annotated[bool, typer.Option("--downstream", help="Make again all that depends on it, too.")] = False,
    store: StoreOption = None,
    address: AddressOption = None,
    keep_going: KeepGoingOption = False,
    skip_memory_check: SkipMemoryCheckOption = False,
) -> None:
    """Make one stage of a run again, with the code as it is now."""
    from pipelines.code import CodeIndex
    from pipelines.graph import Graph
    from pipelines.plan import stage_names
    from pipelines.runs import resolve_run

    where = store_at(store)
    record = resolve_run(where, run)
    settings = {"address": address, "keep_going": keep_going, "check_memory": not skip_memory_check}
    request = rebuild(record, where.url, **settings)
    graph = Graph(request.pipeline, CodeIndex(request.import_paths))
    chosen = stage_names(graph, [stage], f"rerun {record.name}")
    if downstream:
        chosen = graph.descendants(chosen)
    request.force = tuple(sorted(chosen))
    request.only = tuple(sorted(chosen))
    submitted = record.info.get("submitted")
    if submitted and address is None:
        from pipelines.sending import send

        raise typer.Exit(send(request, submitted, wait=True))
    raise typer.Exit(execute(request))


def repro(run: RunArgument, stage: StageArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Make a stage again in isolation and say whether its bytes are equal. Changes nothing."""
    from pipelines.repro import reproduce
    from pipelines.runs import resolve_run

    where = store_at(store)
    record = resolve_run(where, run)
    found = reproduce(rebuild(record, where.url, tracking="off"), where, record, stage)
    if json:
        show_json(found)
    else:
        typer.echo(f"{stage}: " + ("equal, byte for byte" if found["equal"] else "different"))
        typer.echo(f"  {len(found['files'])} files, {found['seconds']:.1f} s (first time {found['first_seconds']} s)")
        for line in found["differences"]:
            typer.echo(f"  {line}")
    raise typer.Exit(0 if found["equal"] else 1)


def add(app: typer.Typer) -> None:
    """Put the commands of this module into the application."""
    for command in (run, plan, submit, pack, rerun, repro):
        app.command()(command)
