"""What training stages need, and what a cluster would make of them, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.capacity import Need, gib, number
from pipelines.cluster_plan import Choice, Forecast, Option
from pipelines.display import duration

SHOWN = ("weights", "gradients", "optimizer", "activations")


def print_forecast(found: Forecast, console: Console) -> None:
    """Memory by part of each training stage, then the cluster's shapes."""
    if found.needs:
        console.print()
        print_needs(found.needs, console)
    for choice in found.choices:
        console.print()
        print_choice(choice, found.source, console)


def print_needs(needs: Sequence[Need], console: Console) -> None:
    """Predicted memory of a worker, by part."""
    table = Table(box=None, pad_edge=False, title="predicted memory of a worker", title_justify="left")
    table.add_column("stage", overflow="fold")
    table.add_column("model", overflow="fold")
    for title in ("workers", "zero", "micro-batch", *SHOWN, "other", "total", "of"):
        table.add_column(title, justify="right", overflow="fold")
    for need in needs:
        training, parts = need.training, dict(need.memory.parts)
        parts["optimizer"] = parts.get("optimizer", 0) + parts.pop("master", 0)
        shown = [parts.pop(name, 0) for name in SHOWN]
        name = need.stages[0] + (f" and {len(need.stages) - 1} more" if len(need.stages) > 1 else "")
        colour = "" if need.fits else "[bold red]"
        table.add_row(
            escape(name),
            escape(f"{training.model}, {number(training.parameters)}, {training.work.precision}"),
            str(training.runtime.workers),
            str(training.placed.zero_stage),
            f"{training.work.rows} x {training.tokens_per_row}",
            *(gib(size) if size else "" for size in shown),
            gib(sum(parts.values())),
            f"{colour}{gib(need.memory.total)}",
            gib(need.room.bytes) if need.room.bytes else "",
        )
    console.print(table)
    for need in needs:
        if need.memory.host or need.memory.disk:
            host = f"{gib(need.memory.host_total)} of host memory"
            disk = f", {gib(need.memory.disk)} on disk" if need.memory.disk else ""
            console.print(f"{need.stages[0]}: and {host}{disk} a worker", highlight=False)
        if not need.room.bytes:
            what = (
                "the GPU is not known: --gpu NAME says it" if need.training.runtime.gpus else "the memory is not known"
            )
            console.print(f"{need.stages[0]}: not checked, {what}", highlight=False)
        if need.training.assumed:
            console.print(f"{need.stages[0]}: assuming {need.training.assumed}", highlight=False)


def print_choice(choice: Choice, source: str, console: Console) -> None:
    """Tokens/s by ZeRO stage for each shape of the cluster; hours and cost at the fastest stage that fits."""
    training = choice.training
    if not choice.options and not choice.left_out:
        return
    title = f"{choice.stage} on {source}: {training.model}, {training.steps:,} steps; predicted tokens/s by ZeRO stage"
    table = Table(box=None, pad_edge=False, title=escape(title), title_justify="left")
    columns = (
        "node type",
        "workers",
        *(f"zero {stage}" for stage in training.zero_stages),
        "micro-batch",
        "MFU",
        "time",
        "cost",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "node type" else "right")
    groups: dict[tuple[str, int], list[Option]] = {}
    for option in choice.options:
        groups.setdefault((option.machine.name, option.workers), []).append(option)
    for options in groups.values():
        fitting = [option for option in options if option.fits]
        best = min(fitting, key=lambda option: option.hours, default=None)
        first = options[0]
        where = f"{first.machines} x {first.machine.name}" + (f" ({first.machine.gpu})" if first.machine.gpu else "")
        row = [escape(where), str(first.workers)]
        row += [f"{option.step.tokens_per_second:,.0f}" if option.step else "no room" for option in options]
        if best is None:
            row += ["", "", "", ""]
        else:
            mfu = f"{best.mfu:.0%}" if best.mfu else ""
            row += [str(best.micro_batch), mfu, duration(best.hours * 3600), f"${best.usd:,.2f}" if best.usd else ""]
        table.add_row(*row)
    console.print(table)
    for word, chosen in (("fastest", choice.fastest), ("cheapest", choice.cheapest)):
        if chosen is not None:
            console.print(f"{word}: {told(chosen)}", highlight=False)
    if choice.options and choice.fastest is None:
        console.print("none of them has room for it", highlight=False)
    for line in choice.left_out:
        console.print(f"no forecast for {line}", highlight=False)


def told(option: Option) -> str:
    """An option as the settings that ask for it, with what it gives."""
    settings = f"placement.workers={option.workers} placement.zero_stage={option.zero_stage}"
    settings += f" placement.micro_batch={option.micro_batch}"
    cost = f", ${option.usd:,.2f}" if option.usd else ""
    return f"{settings} on {option.machines} x {option.machine.name}: {duration(option.hours * 3600)}{cost}"
