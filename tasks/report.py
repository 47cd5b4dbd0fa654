"""Report: all scores of a run in one table, pretrained against random initialisation, task by task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, ClassVar

from pydantic import Field

from cluster.errors import BadData
from tasks.base import Context, Score, Task


class Report(Task):
    """`results.json`, {"rows": [one a task]}, and `results.md`, the same for people.

    A row: {task, metric, pretrained, random: {values, seeds, median, spread}, difference, pays, published,
    published_metric, split, examples, train_examples, others}. The median over seeds counts. `spread` is half the range
    of the values; pretraining *pays* where the medians differ by more than both spreads together, so that
    the ranges do not meet. It is null where one side is missing or has one seed only.
    """

    produces: ClassVar[str] = "report"

    scores: tuple[Score, ...] = Field(min_length=1)

    def run(self, ctx: Context) -> Mapping[str, Any]:
        scores = [json.loads((a.path / "score.json").read_text(encoding="utf-8")) for a in ctx.inputs("scores")]
        rows = results(scores)
        (ctx.out / "results.json").write_text(
            json.dumps({"rows": rows}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        (ctx.out / "results.md").write_text(markdown(rows), encoding="utf-8")
        ctx.log(f"{len(scores)} scores of {len(rows)} tasks")
        figures: dict[str, Any] = {"tasks": len(rows), "tasks_that_pay": sum(row["pays"] is True for row in rows)}
        for row in rows:
            for side in ("pretrained", "random"):
                if row[side]:
                    figures[f"{row['task']}.{side}"] = row[side]["median"]
        return figures


def results(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of results.json from the contents of score.json files, tasks in the order they first come in.

    Raises BadData where a (task, init, seed) comes twice, or a task's scores are of different metrics or rows.
    """
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for score in scores:
        tasks.setdefault(score["task"], []).append(score)
    return [_row(task, found) for task, found in tasks.items()]


def _row(task: str, scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    for field in ("metric", "split", "examples"):
        kinds = {score[field] for score in scores}
        if len(kinds) > 1:
            raise BadData(
                f"report: the scores of task {task!r} differ in {field}: {', '.join(map(str, sorted(kinds)))}",
                "compare models on the same rows and metric",
            )
    sides: dict[str, dict[str, Any] | None] = {}
    for side in ("pretrained", "random"):
        own = sorted((s for s in scores if s["init"] == side), key=lambda s: s["seed"])
        seeds = [s["seed"] for s in own]
        if len(set(seeds)) < len(seeds):
            raise BadData(
                f"report: task {task!r}, {side}: two scores of the same seed", "give each fine-tuning its own seed"
            )
        sides[side] = summary([s["primary"] for s in own], seeds) if own else None
    first = scores[0]
    pre, rand = sides["pretrained"], sides["random"]
    difference = pays = None
    if pre and rand:
        difference = round(pre["median"] - rand["median"], 6)
        if min(len(pre["values"]), len(rand["values"])) > 1:  # one seed has no spread to judge by
            pays = difference > pre["spread"] + rand["spread"]
    return {
        "task": task,
        "metric": first["metric"],
        "pretrained": pre,
        "random": rand,
        "difference": difference,
        "pays": pays,
        "published": first.get("published", {}),
        "published_metric": first.get("published_metric", ""),
        "split": first["split"],
        "examples": first["examples"],
        "train_examples": first.get("train_examples"),
        "others": _others(scores),
    }


def summary(values: Sequence[float], seeds: Sequence[int]) -> dict[str, Any]:
    """{values, seeds, median, spread} of one side; spread is half the range."""
    return {
        "values": list(values),
        "seeds": list(seeds),
        "median": round(median(values), 6),
        "spread": round((max(values) - min(values)) / 2, 6),
    }


def _others(scores: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """{"accuracy" or "test.accuracy": {init: median}} of the figures beside the main one."""
    found: dict[str, dict[str, list[float]]] = {}
    for score in scores:
        beside = {n: v for n, v in score["values"].items() if n != score["metric"]}
        beside |= {f"{split}.{n}": v for split, values in score.get("others", {}).items() for n, v in values.items()}
        for name, value in beside.items():
            found.setdefault(name, {}).setdefault(score["init"], []).append(value)
    return {name: {init: round(median(v), 6) for init, v in inits.items()} for name, inits in found.items()}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table, figures as shares, with a note on how to read them."""
    lines = [
        "# Results",
        "",
        "Median over seeds ± half the range. Pretraining pays where the difference is larger than both together.",
        "",
        "| task | metric | labels | pretrained | from scratch | difference | pays | seeds | published |",
        "|---|---|---:|---:|---:|---:|---|---:|---|",
    ]
    for row in rows:
        pre, rand = row["pretrained"], row["random"]
        published = ", ".join(f"{system} {value:.3f}" for system, value in row["published"].items())
        if published and row["published_metric"] != row["metric"]:
            published += f" ({row['published_metric']})"
        cells = [
            row["task"],
            row["metric"],
            "–" if row["train_examples"] is None else f"{row['train_examples']:,}",
            _side(pre),
            _side(rand),
            "–" if row["difference"] is None else f"{row['difference']:+.3f}",
            {True: "yes", False: "no", None: "–"}[row["pays"]],
            str(len((pre or rand)["values"])),
            published or "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    beside = [
        f"- {row['task']}: "
        + "; ".join(
            f"{n} " + ", ".join(f"{i} {v:.3f}" for i, v in sorted(inits.items())) for n, inits in row["others"].items()
        )
        for row in rows
        if row["others"]
    ]
    if beside:
        lines += ["", "Further figures (medians):", "", *beside]
    return "\n".join(lines) + "\n"


def _side(side: Mapping[str, Any] | None) -> str:
    return "–" if side is None else f"{side['median']:.3f} ± {side['spread']:.3f}"
