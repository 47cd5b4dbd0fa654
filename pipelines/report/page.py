"""Makes the report's page from a `View`: fills gaps, picks what to show, renders the template.

Everything that comes from the run (names, messages, configs) is escaped by Jinja; only the SVG that
this package draws enters as markup.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.report import curves, dag_svg, engine, numbers, watched
from pipelines.report.data import data_section
from pipelines.report.scaling import headline, scaling_section
from pipelines.report.view import View
from tasks.report import loss_remarks

STATE_WORDS = {
    "done": "done",
    "cached": "cached",
    "failed": "failed",
    "skipped": "skipped",
    "pruned": "not needed",
    "running": "running",
    "pending": "waiting",
    "cancelled": "cancelled",
}
_FILTERS = (
    "amount", "count", "duration", "flops_interval", "interval", "nats", "number", "percent", "power", "score",
    "signed", "signed_percent", "size",
)  # fmt: skip
LARGE_CURVES = 4
"""Training stages whose curves are shown in full; the loss alone is drawn for the others."""
SMALL_CURVES = 24


def render(view: View | Mapping[str, Any]) -> str:
    """One self-contained HTML document for a run: no script, nothing fetched; parts that `view` lacks are left out."""
    run = _map(view.get("run"))
    stages = [_stage(stage, number) for number, stage in enumerate(_list(view.get("stages")))]
    results = [_result(row) for row in _list(view.get("results")) if isinstance(row, Mapping)]
    scaling = scaling_section(view, stages)
    counts = {state: sum(stage["state"] == state for stage in stages) for state in STATE_WORDS}
    page = {
        "run": run,
        "tracking": _map(run.get("tracking")),
        "state": run.get("state") or _overall(counts),
        "words": STATE_WORDS,
        "stages": stages,
        "counts": {state: number for state, number in counts.items() if number},
        "failed": [stage for stage in stages if stage["state"] == "failed"],
        "held_up": counts["skipped"] + counts["pending"],
        "outcome": _outcome(run, counts, results, headline(scaling)),
        "results": results,
        "pretraining": [
            {**row, "remarks": loss_remarks(row)} for row in _list(view.get("pretraining")) if isinstance(row, Mapping)
        ],
        "scaling": scaling,
        "graph": dag_svg.graph(stages),
        "timeline": dag_svg.timeline(stages, run.get("seconds")),
        "training": _curves(_list(view.get("training")), {stage["name"]: stage.get("task") for stage in stages}),
        "data": data_section(view, stages),
        "config": _sections(_map(run.get("config"))),
        "environment": _environment(_map(view.get("environment"))),
        "packages": sorted(_map(_map(view.get("environment")).get("packages")).items()),
        "provenance": [item for item in _list(view.get("provenance")) if isinstance(item, Mapping)],
    }
    return str(_environment_of_jinja().get_template("template.html.j2").render(page))


@functools.cache
def _environment_of_jinja() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
    )
    for name in _FILTERS:
        environment.filters[name] = getattr(numbers, name)
    environment.filters["flat"] = lambda value: list(_flat(_map(value)))
    environment.filters["shown"] = _shown
    environment.filters["shares"] = _shares
    environment.globals["draw"] = curves.draw
    return environment


def _stage(stage: Any, number: int) -> dict[str, Any]:
    stage = dict(_map(stage))
    stage["name"] = str(stage.get("name") or f"stage {number + 1}")
    stage["state"] = stage.get("state") if stage.get("state") in STATE_WORDS else "pending"
    stage["inputs"] = [str(name) for name in _list(stage.get("inputs"))]
    stage["metrics"] = _map(stage.get("metrics"))
    stage["error"] = _map(stage.get("error"))
    maker = _map(stage.get("maker"))
    url = str(maker.get("url") or "")
    stage["page"] = url if url.startswith(("http://", "https://")) else ""
    stage["mlflow_run"] = maker.get("mlflow_run")
    stage["notes"] = [
        ", ".join(f"{key}: {_shown(value)}" for key, value in item.items()) if isinstance(item, Mapping) else str(item)
        for item in _list(stage.get("decisions"))
    ]
    return stage


def _result(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with `pays` derived where it is missing and the strip of its seeds."""
    sides = {side: _map(row.get(side)) for side in ("pretrained", "random")}
    values = {side: [v for v in _list(sides[side].get("values")) if _finite(v)] for side in sides}
    medians = [float(side["median"]) for side in sides.values() if _finite(side.get("median"))]
    difference = row.get("difference")
    if difference is None and len(medians) == 2:
        difference = medians[0] - medians[1]
    pays = row.get("pays")
    if "pays" not in row and difference is not None:
        pays = difference > 0
    published = row.get("published")
    return {
        **row,
        **sides,
        "difference": difference,
        "pays": pays,
        "published": published if isinstance(published, Mapping) else {"": published} if published is not None else {},
        "others": {name: _map(sides) for name, sides in _map(row.get("others")).items()},
        "seeds": max(len(values["pretrained"]), len(values["random"])),
        "strip": curves.strip([(side, values[side]) for side in values]),
    }


def _curves(items: Sequence[Any], task_of: Mapping[str, Any]) -> dict[str, Any]:
    """Pretraining (else the first kind of training there is) in full, the loss alone of the others."""
    made = [_training(item) for item in items if isinstance(item, Mapping)]
    tasks = [str(task_of.get(item["stage"]) or "") for item in made]
    main = "Pretrain" if "Pretrain" in tasks else tasks[0] if tasks else ""
    large = [item for item, task in zip(made, tasks, strict=True) if task == main][:LARGE_CURVES]
    rest = [item for item in made if item not in large]
    return {"large": large, "small": rest[:SMALL_CURVES], "left_out": max(len(rest) - SMALL_CURVES, 0)}


def _training(item: Mapping[str, Any]) -> dict[str, Any]:
    records = [record for record in _list(item.get("records")) if isinstance(record, Mapping)]
    throughput = item.get("throughput")
    figures = dict(_flat(_map(item.get("figures"))))
    for name, value in _map(throughput).items() if isinstance(throughput, Mapping) else [("tokens/s", throughput)]:
        if value is not None:
            figures[str(name)] = value
    timings, placement = _map(item.get("timings")), _map(item.get("placement"))
    pictures = (
        watched.step_time(timings),
        watched.memory(timings),
        watched.updates(_mappings(item.get("updates"))),
    )
    return {
        "stage": item.get("stage") or "training",
        "charts": curves.charts(records, _map(item.get("baselines"))),
        "figures": figures,
        "pictures": [picture for picture in pictures if picture],
        "memory": engine.memory_rows(placement, timings),
        "deepspeed": engine.deepspeed_config(placement),
        "samples": watched.samples(_mappings(item.get("samples"))),
    }


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in _list(value) if isinstance(row, Mapping)]


def _overall(counts: Mapping[str, int]) -> str:
    for state in ("failed", "running", "cancelled", "pending", "skipped"):
        if counts.get(state):
            return "failed" if state == "skipped" else state
    return "done" if any(counts.values()) else "pending"


def _outcome(
    run: Mapping[str, Any], counts: Mapping[str, int], results: Sequence[Mapping[str, Any]], found: str = ""
) -> str:
    """The page's first sentence: what came out, failures included."""
    total = sum(counts.values())
    state = run.get("state") or _overall(counts)
    finished = counts.get("done", 0) + counts.get("cached", 0) + counts.get("pruned", 0)
    judged = [row for row in results if row["pays"] is not None]
    parts = [found] if found else []
    if judged:
        paying = sum(bool(row["pays"]) for row in judged)
        where = f"all {len(judged)}" if paying == len(judged) > 1 else f"{paying} of {len(judged)}"
        parts.append(f"Pretraining pays on {where} task{'s' if len(judged) != 1 else ''}.")
    if state == "failed":
        failed = counts.get("failed", 0)
        parts.insert(0, f"{failed} of {total} stages failed." if failed else "The run failed.")
    elif state == "running":
        parts.insert(0, f"Still running: {finished} of {total} stages are finished.")
    elif state == "cancelled":
        parts.insert(0, f"Cancelled after {finished} of {total} stages.")
    elif total and counts.get("cached", 0) == total:
        parts.append(f"All {total} stages were cached: nothing had to be computed.")
    elif total and finished == total:
        cached = counts.get("cached", 0)
        parts.append(f"{total} stages" + (f", {cached} of them cached." if cached else ", all computed in this run."))
    return " ".join(parts)


def _sections(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """The config as titled tables: top-level values first, then a table per nested section."""
    plain = [(str(key), value) for key, value in config.items() if not isinstance(value, Mapping)]
    nested = [(str(key), list(_flat(value))) for key, value in config.items() if isinstance(value, Mapping) and value]
    return ([("", plain)] if plain else []) + nested


def _environment(environment: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in _flat({k: v for k, v in environment.items() if k != "packages"})]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    """A config value as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int | float):
        return numbers.number(value)
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value) or "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "–"
    return str(value)


def _shares(parts: Any, field: str, most: int = 12) -> list[dict[str, Any]]:
    """`{name: {field: number} or number}` as rows with their share of the largest, biggest first."""
    sized = []
    for name, value in _map(parts).items():
        amount = value.get(field) if isinstance(value, Mapping) else value
        if amount is not None and _finite(amount):
            sized.append((str(name), float(amount)))
    sized.sort(key=lambda item: (-item[1], item[0]))
    if len(sized) > most:
        rest = sized[most - 1 :]
        sized = [*sized[: most - 1], (f"{len(rest)} others", sum(amount for _, amount in rest))]
    largest = max((amount for _, amount in sized), default=0) or 1
    return [{"name": name, "amount": amount, "share": amount / largest} for name, amount in sized]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
