"""Commands of scaling laws: fit, budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli_options import JsonOption, StoreOption, show_json


def _column(name: str, text: str) -> Any:
    return typer.Option(f"--{name}", metavar="COLUMN", help=text)


WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where", metavar="COLUMN=VALUE", help="Only rows with this value (* stands for any text); repeatable."
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", metavar="FILE.yaml", help="Node types for time and cost. [default: ./ray_config.yaml]"),
]


def fit(
    file: Annotated[
        str, typer.Argument(metavar="FILE.csv", help="Measurements: params, tokens, loss; or flops for one.")
    ],
    approach: Annotated[
        str,
        typer.Option("--approach", metavar="1|2|3|all", help="Also kaplan, over-training, data-constrained."),
    ] = "all",
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", metavar="N", min=0, help="Resamples for the intervals.")
    ] = 4000,
    seed: Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Of the resamples.")] = 0,
    params: Annotated[str, _column("params", "Parameters of the model.")] = "params",
    tokens: Annotated[str, _column("tokens", "Tokens it was trained on, all epochs.")] = "tokens",
    loss: Annotated[str, _column("loss", "Its loss.")] = "loss",
    flops: Annotated[str, _column("flops", "Training compute.")] = "flops",
    unique_tokens: Annotated[str, _column("unique-tokens", "Tokens without repetition.")] = "unique_tokens",
    run: Annotated[str, _column("run", "Whose training curve a row is on.")] = "run",
    unit: Annotated[str, _column("unit", "What its losses are counted in, one value a file.")] = "unit",
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", metavar="OTHER.csv", help="Fit it, too, and say which wins where; repeatable."),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="COLUMN", help="Compare the values of a column of FILE, each fitted.")
    ] = None,
    at: Annotated[
        list[float] | None,
        typer.Option(
            "--at", metavar="FLOPS", help="Compare losses at this compute; repeatable. [default: largest × 1 to 1000]"
        ),
    ] = None,
    not_comparable: Annotated[
        bool, typer.Option("--not-comparable", help="Losses are of different units: compare exponents alone.")
    ] = False,
    where: WhereOption = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out rows that hold no positive number, with a warning.")
    ] = False,
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Write fit.json and the pictures there, too.")
    ] = None,
    tracking: Annotated[
        str | None, typer.Option("--tracking", metavar="URI", help="MLflow; off: none. [default: SQLite in the store]")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Fit scaling laws to measurements: Chinchilla's three approaches, Kaplan's forms, with intervals; compare them."""
    import os

    from pipelines.fits import Comparing, open_tracker, pictures_of, result_of, track, write_folder
    from tasks.scaling.point_files import Columns
    from tasks.scaling.variants import fit_variants, read_all

    columns = Columns(params, tokens, loss, flops, unique_tokens, run, unit)
    comparing = Comparing(tuple(compare or ()), by, tuple(at or ()), not not_comparable)
    comparing.check(approach)
    variants = read_all(file, comparing.files, by, columns, where or (), skip_invalid=skip_invalid)
    comparing.check_units(variants)
    tracker = open_tracker(tracking or os.environ.get("TRIPTYCH_TRACKING"), store)
    fitted = fit_variants(variants, approach, bootstrap=bootstrap, seed=seed)
    result = result_of(fitted, comparing)
    drawn = pictures_of(fitted, result) if tracker or out else []
    if out:
        write_folder(Path(out).expanduser(), result, drawn)
    tracked = ""
    if tracker:
        settings = {
            "file": file,
            "approach": approach,
            "bootstrap": bootstrap,
            "seed": seed,
            "where": list(where or ()),
            "columns": columns._asdict(),
            **comparing.settings(),
        }
        tracked = track(tracker, variants, settings, result, drawn)
    if json:
        show_json(result)
        return
    from pipelines.display_scaling import comparison_lines, fit_lines

    for name, points in variants.items():
        if len(variants) > 1:
            typer.echo(f"\n=== {name}")
        for line in fit_lines(points, result["variants"][name] if "variants" in result else result):
            typer.echo(line)
    if "comparison" in result:
        for line in comparison_lines(result["comparison"]):
            typer.echo(line)
    if out:
        typer.echo(f"\nin {out}: fit.json, {', '.join(name for name, _ in drawn)}")
    if tracked:
        typer.echo(f"\nMLflow run {tracked} (triptych ui)")


def budget(
    context: typer.Context,
    flops: Annotated[float | None, typer.Option("--flops", metavar="C", help="Training compute, such as 1e21.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="Such as h100, a100, l4.")] = None,
    count: Annotated[int, typer.Option("--count", metavar="N", help="How many GPUs.")] = 1,
    days: Annotated[float | None, typer.Option("--days", metavar="D", help="For how long.")] = None,
    hours: Annotated[float | None, typer.Option("--hours", metavar="H", help="For how long; adds to --days.")] = None,
    money: Annotated[
        float | None, typer.Option("--money", metavar="M", help="What may be spent, with --gpu, --price.")
    ] = None,
    price: Annotated[float | None, typer.Option("--price", metavar="P", help="What one GPU costs you an hour.")] = None,
    mfu: Annotated[
        float, typer.Option("--mfu", metavar="SHARE", help="Share of the GPU's peak that training reaches.")
    ] = 0.4,
    precision: Annotated[str, typer.Option("--precision", metavar="bf16|fp16|fp32", help="Whose peak.")] = "bf16",
    law: Annotated[
        str | None,
        typer.Option(
            "--law",
            metavar="NAME",
            help="chinchilla, chinchilla-1, -2, -3, epoch, kaplan; all. [default: epoch, chinchilla]",
        ),
    ] = None,
    fitted: Annotated[
        str | None,
        typer.Option("--fit", metavar="FILE", help="Your own law: a CSV file to fit, or what `fit --json` printed."),
    ] = None,
    approach: Annotated[str, typer.Option("--approach", metavar="1|2|3", help="Of --fit.")] = "3",
    where: WhereOption = None,
    cluster: ClusterOption = None,
    node_price: Annotated[
        list[str] | None,
        typer.Option("--node-price", metavar="NODE=USD", help="What a node type costs you an hour; repeatable."),
    ] = None,
    architecture: Annotated[
        str,
        typer.Option(
            "--architecture",
            metavar="NAME",
            help="Of the nearest preset: encoder, decoder, encoder-decoder, prefix-lm.",
        ),
    ] = "decoder",
    table: Annotated[
        bool, typer.Option("--table", help="What the budgets of well-known models should have bought.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Say what a budget buys: the compute-optimal model and data, over-trained ones, time and cost."""
    from pipelines.display_scaling import budget_lines, table_lines
    from tasks.scaling.budget import budget_of, plan_budget
    from tasks.scaling.budget import table as table_of

    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    if fitted is None:
        _refuse_unused(given, OF_FIT, "--fit is not given", "add --fit FILE, or leave it out")
    elif fitted.lower().endswith(".json"):
        _refuse_unused(given, ("where",), f"{fitted} holds a fit, not rows", "give --fit the CSV file")
    if table:
        _refuse_unused(given, OF_BUDGET + OF_MACHINES, "--table has budgets of its own", "leave it out")
    laws = _laws(law, fitted, approach, where)
    if table:
        rows = table_of(laws)
        if json:
            show_json(rows)
        else:
            for line in table_lines(rows):
                typer.echo(line)
        return
    _check_precision(precision)
    spent = budget_of(
        flops=flops,
        gpu=gpu,
        count=count,
        days=days,
        hours=hours,
        money=money,
        price=price,
        mfu=mfu,
        precision=precision,
    )
    machines = _machines(cluster)
    if flops is not None and gpu is None and not machines:
        why, remedy = "--flops names no GPU, and there is no cluster's file", "add --gpu or --cluster, or leave it out"
        _refuse_unused(given, ("mfu", "precision"), why, remedy)
    prices = _prices(node_price, [m.name for m in machines])
    _check_architecture(architecture)
    found = [plan_budget(each, spent, machines=machines, prices=prices, architecture=architecture) for each in laws]
    if json:
        show_json(_budget_json(found))
        return
    for line in budget_lines(found):
        typer.echo(line)


# ---------------------------------------------------------------- helpers

OF_BUDGET = ("flops", "gpu", "count", "days", "hours", "money", "price", "mfu", "precision")
OF_MACHINES = ("cluster", "node_price", "architecture")
OF_FIT = ("approach", "where")


def _refuse_unused(given: set[str], names: tuple[str, ...], why: str, remedy: str) -> None:
    """Refuse those of the given options that would be ignored."""
    from cluster.errors import BadConfig

    if wrong := [f"--{name.replace('_', '-')}" for name in names if name in given]:
        raise BadConfig(f"no use for {', '.join(wrong)}: {why}", remedy)


def _budget_json(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the first law says, and all of each law below `laws`."""
    first = found[0]["optimum"]
    return {
        "budget": found[0]["budget"],
        "law": found[0]["law"],
        **{name: first[name] for name in ("params", "tokens", "tokens_per_param", "loss")},
        "ci95": {name: first[f"{name}_ci95"] for name in ("params", "tokens", "loss")},
        "laws": {each["law"]: each for each in found},
    }


def _laws(name: str | None, fitted: str | None, approach: str, where: list[str] | None) -> list[Any]:
    from cluster.errors import BadConfig
    from tasks.scaling.published import LAWS, published

    if fitted is None:
        names = list(LAWS) if name == "all" else [name] if name else ["epoch", "chinchilla"]
        return [published(each) for each in names]
    if approach not in ("1", "2", "3"):
        raise BadConfig(f"--approach {approach!r} does not say which size is optimal", "known: 1, 2, 3")
    from tasks.scaling.fit import fit_all
    from tasks.scaling.laws import law_of, read_law
    from tasks.scaling.point_files import Columns, read_points

    path = Path(fitted).expanduser()
    if path.suffix.lower() == ".json":
        own = read_law(path, approach)
    else:
        points = read_points(path, Columns(), where or ())
        found, _ = fit_all(points, [f"approach_{approach}"])
        largest, factor = float(points.flops.max()), points.flops_factor
        own = law_of(found[f"approach_{approach}"], fitted, largest, points.unit, factor)
    return [own, *map(published, LAWS if name == "all" else [name] if name else [])]


def _machines(cluster: str | None) -> list[Any]:
    from cluster.machines import read_cluster

    path = Path(cluster or "ray_config.yaml").expanduser()
    return read_cluster(path) if cluster or path.is_file() else []


def _prices(words: list[str] | None, known: list[str]) -> dict[str, float]:
    from cluster.errors import BadConfig

    prices = {}
    for word in words or ():
        name, _, value = word.partition("=")
        try:
            prices[name] = float(value)
        except ValueError:
            raise BadConfig(f"--node-price {word!r} is not of the form NODE=USD") from None
        if not 0 < prices[name] < float("inf"):
            raise BadConfig(f"--node-price {word!r}: expected a positive number of USD an hour")
        if name not in known:
            raise BadConfig(
                f"--node-price {word!r}: no such node type", f"known: {', '.join(known) or 'none; give --cluster'}"
            )
    return prices


def _check_precision(name: str) -> None:
    from cluster.errors import BadConfig

    if name not in (known := ("bf16", "fp16", "fp32")):
        raise BadConfig(f"--precision {name!r} is not known", f"known: {', '.join(known)}")


def _check_architecture(name: str) -> None:
    from cluster.errors import BadConfig

    if name not in (known := ("encoder", "decoder", "encoder-decoder", "prefix-lm")):
        raise BadConfig(f"--architecture {name!r} is not known", f"known: {', '.join(known)}")


def add(app: typer.Typer) -> None:
    """Put the commands of this module into the application."""
    for command in (fit, budget):
        app.command()(command)
