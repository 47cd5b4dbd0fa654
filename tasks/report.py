"""Report: a run's results in two tables.

Pretraining: each model's loss beside what a unigram and an n-gram model reach on the same validation examples.
Downstream: pretrained against random initialisation, task by task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData
from tasks.base import Baseline, Context, Model, Score, Task

WORD_VECTORS = ("skip-gram", "cbow", "glove")
"""Objectives whose loss is of pairs of words: no cross-entropy of tokens, to stand beside an n-gram model's."""


class Report(Task):
    """`results.json`, {"rows": [one a task], "pretraining": [one a model]}, and `results.md`, the same for people.

    A row of pretraining: {objective, architecture, parameters, tokens, loss, measure, unigram, ngram, order,
    measured_at}: nats; the baselines are null where none was made.

    A row of the tasks: {task, metric, pretrained, random: {values, seeds, median, spread}, difference, pays,
    published, published_metric, split, examples, train_examples, others}. The median over seeds counts. `spread` is
    half the range of the values, null for one seed; pretraining *pays* where the medians differ by more than both
    spreads together, so that the ranges do not meet. It is null where one side is missing or has one seed only.
    """

    produces: ClassVar[str] = "report"

    scores: tuple[Score, ...] = ()
    models: tuple[Model, ...] = Field((), description="pretrained models, for the first table")
    baselines: tuple[Baseline, ...] = Field((), description="an n-gram baseline for each of the models, in their order")

    @model_validator(mode="after")
    def _something_to_say(self) -> Report:
        if not self.scores and not self.models:
            raise BadConfig("report: neither scores nor models are given", "pass what it should report on")
        if self.baselines and len(self.baselines) != len(self.models):
            raise BadConfig(
                f"report: {len(self.baselines)} baselines for {len(self.models)} models", "give each model its baseline"
            )
        return self

    def run(self, ctx: Context) -> Mapping[str, Any]:
        scores = [json.loads((a.path / "score.json").read_text(encoding="utf-8")) for a in ctx.inputs("scores")]
        rows = results(scores)
        pretraining = [
            pretraining_row(_read(model.path / "training.json"), _read(model.path / "config.json"), baseline)
            for model, baseline in zip_longest(ctx.inputs("models"), self._baselines(ctx))
        ]
        (ctx.out / "results.json").write_text(
            json.dumps({"rows": rows, "pretraining": pretraining}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        (ctx.out / "results.md").write_text(markdown(rows, pretraining), encoding="utf-8")
        ctx.log(f"{len(pretraining)} models, {len(scores)} scores of {len(rows)} tasks")
        figures: dict[str, Any] = {"tasks": len(rows), "tasks_that_pay": sum(row["pays"] is True for row in rows)}
        for row in rows:
            for side in ("pretrained", "random"):
                if row[side]:
                    figures[f"{row['task']}.{side}"] = row[side]["median"]
        return figures

    def _baselines(self, ctx: Context) -> list[dict[str, Any]]:
        return [_read(artifact.path / "baseline.json") for artifact in ctx.inputs("baselines")]


def pretraining_row(
    training: Mapping[str, Any], config: Mapping[str, Any], baseline: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A row of the first table, from training.json, config.json and baseline.json.

    The loss is the one on tokens where a model has several: ELECTRA's generator's, not its discriminator's.
    """
    final = training["final"]
    measures = ("validation_loss_tokens", "validation_loss_generator", "validation_loss", "loss")
    measure = next(name for name in measures if name in final)
    baseline = baseline or {}
    return {
        "objective": training["objective"]["kind"],
        "architecture": config["model"]["architecture"],
        "parameters": training["parameters"]["total"],
        "tokens": final["tokens"],
        "loss": round(final[measure], 4),
        "measure": measure,
        "unigram": baseline.get("unigram_nats"),
        "ngram": baseline.get("ngram_nats"),
        "order": baseline.get("order"),
        "measured_at": baseline.get("measured_at"),
    }


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


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
        if pre["spread"] is not None and rand["spread"] is not None:  # one seed has none to judge by
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
    """{values, seeds, median, spread} of one side; spread is half the range, null for one value."""
    return {
        "values": list(values),
        "seeds": list(seeds),
        "median": round(median(values), 6),
        "spread": round((max(values) - min(values)) / 2, 6) if len(values) > 1 else None,
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


def markdown(rows: Sequence[Mapping[str, Any]], pretraining: Sequence[Mapping[str, Any]] = ()) -> str:
    """The rows as tables, figures as shares, with a note on how to read them."""
    lines = ["# Results", ""]
    if pretraining:
        lines += _pretraining(pretraining)
    if not rows:
        return "\n".join(lines)
    lines += [
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


def _pretraining(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "Loss on held-out text, nats per label; beside it what word frequencies alone and an n-gram model of the true",
        "tokens to the left reach, trained on the same tokens.",
        "",
        "| objective | architecture | parameters | tokens seen | loss | unigram | n-gram |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        unigram, ngram = ("–" if row[name] is None else f"{row[name]:.3f}" for name in ("unigram", "ngram"))
        gram = ngram if row["order"] is None else f"{ngram} ({row['order']}-gram)"
        cells = [row["objective"], row["architecture"], f"{row['parameters']:,}", f"{row['tokens']:,}"]
        lines.append("| " + " | ".join([*cells, loss_shown(row), unigram, gram]) + " |")
    return [*lines, ""]


def loss_shown(row: Mapping[str, Any]) -> str:
    """The loss of a row of pretraining; of one that is none of held-out tokens, what it is of."""
    remarks = loss_remarks(row)
    return f"{row['loss']:.3f}" + (f" ({', '.join(remarks)})" if remarks else "")


def loss_remarks(row: Mapping[str, Any]) -> list[str]:
    """What keeps a row's loss from standing beside an n-gram model's; nothing for one of held-out tokens."""
    pairs = ["of pairs"] if row.get("objective") in WORD_VECTORS else []
    return [*pairs, "in training"] if row.get("measure") == "loss" else pairs


def _side(side: Mapping[str, Any] | None) -> str:
    if side is None:
        return "–"
    return f"{side['median']:.3f}" + ("" if side["spread"] is None else f" ± {side['spread']:.3f}")
