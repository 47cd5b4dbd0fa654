"""FitScaling: the laws of one sweep, from the models that it has made.

A sweep's variant is an architecture with its objective and settings. Its runs are models of several sizes and lengths
(`tasks.scaling.ladder`); which of them were made is the sweep's decision, and the fit takes those. What it says next is
the run that checks it: the compute-optimal model of `factor` times the largest compute that was swept.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData
from tasks.base import Artifact, Context, Model, Task
from tasks.scaling.ladder import FEWEST_RUNS, FRESH_EPOCHS, Ladder, nearest_width

Measure = Literal["validation_loss", "validation_bits_per_byte"]
UNITS = {"validation_loss": "nats per label", "validation_bits_per_byte": "bits per byte"}
COUNTS = {"total": "all parameters", "non_embedding": "parameters without embeddings"}
"""How a law says what its N counts (`tasks.scaling.laws.Law.counts`)."""
LAWS = ("3", "2", "1")
"""Approaches that can say a next run; the first of those that know the optimum's exponent equally well does."""


def run_name(variant: str, width: int, line: int) -> str:
    """What the stage of a run is called; `line` counts from 0."""
    return f"{variant}-w{width}-c{line + 1}"


class FitScaling(Task):
    """Fit the laws through a variant's runs.

    The artifact: `points.csv` (params, tokens, flops, loss, unit, run, stage, key: what `triptych fit` reads),
    `fit.json` (what it prints), `sweep.json` (the points with their settings, the next run and what is predicted for
    it), `next.json` (that run's model and loop) and pictures in `plots/`.
    """

    produces: ClassVar[str] = "scaling-fit"
    stage: ClassVar[str] = "scaling"
    partial: ClassVar[tuple[str, ...]] = ("runs",)

    runs: tuple[Model, ...] = Field(min_length=1)
    variant: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,40}$", description="what the sweep is of")
    ladder: Ladder = Field(Ladder(), description="the rules the runs were made by; the next one follows them")
    measure: Measure = Field("validation_loss", description="what is fitted")
    counts: Literal["total", "non_embedding"] = Field("total", description="which parameters N counts")
    bootstrap: int = Field(4000, ge=0, le=100_000, description="resamples of the intervals")
    factor: float = Field(8.0, ge=1, description="compute of the next run over the largest swept")

    @model_validator(mode="after")
    def _enough(self) -> FitScaling:
        if len(self.runs) < FEWEST_RUNS:
            raise BadConfig(
                f"scaling: {len(self.runs)} runs of {self.variant} cannot tell a law, expected at least {FEWEST_RUNS}",
                "sweep more sizes or lines",
            )
        return self

    def run(self, ctx: Context) -> Mapping[str, Any]:
        from tasks.scaling.fit import as_json, fit_all, fit_names
        from tasks.scaling.forecast import forecast
        from tasks.scaling.plots import pictures
        from tasks.scaling.point_files import read_points

        rows = sorted((self._row(model) for model in ctx.inputs("runs")), key=lambda row: (row["flops"], row["params"]))
        number_lines(rows, self.ladder)
        for row in rows:
            row["stage"] = run_name(self.variant, row["width"], row["line"] - 1)
            row["unit"] = UNITS[self.measure]
        write_points(ctx.out / "points.csv", rows)
        points = read_points(ctx.out / "points.csv")
        found, refused = fit_all(points, fit_names("all", points), bootstrap=self.bootstrap)
        fit = json.loads(json.dumps(as_json(points, found, refused), default=float))
        for part in fit.values():
            part.pop("file", None)  # the place of a work folder
            part["counts"] = COUNTS[self.counts]
        _write(ctx.out / "fit.json", fit)
        (ctx.out / "plots").mkdir()
        for name, picture in pictures(points, found):
            (ctx.out / "plots" / name).write_bytes(picture)
        ctx.progress(1, 2, "parts")
        next_run = self._next(rows, fit, ctx.out / "fit.json", ctx.inputs("runs"))
        next_run |= forecast(points, next_run["params"], next_run["tokens"], bootstrap=self.bootstrap) or {}
        _write(ctx.out / "next.json", {name: next_run.pop(name) for name in ("model", "loop")})
        first, warnings = rows[0], repeated(rows)
        sweep = {
            "variant": self.variant,
            "architecture": first["architecture"],
            "objective": first["objective"],
            "unit": UNITS[self.measure],
            "counts": self.counts,
            "flops_per_param_token": flops_factor(rows),
            "points": [
                {k: v for k, v in row.items() if k not in ("architecture", "objective", "unit")} for row in rows
            ],
            "next": next_run,
            "warnings": warnings,
        }
        _write(ctx.out / "sweep.json", sweep)
        for warning in warnings:
            ctx.log(warning)
        metrics: dict[str, float] = {"points": len(rows), "sizes": len({row["width"] for row in rows})}
        for name, part in fit.items():
            for key in ("exponent_N", "exponent_D"):
                if key in part:
                    metrics[f"{name}.{key}"] = part[key]
        metrics |= {f"approach_3.{k}": v for k, v in fit.get("approach_3", {}).get("params", {}).items()}
        if next_run.get("predicted_loss") is not None:
            metrics["predicted_loss"] = next_run["predicted_loss"]
        for name, part in fit.items():
            ctx.log(f"{name}: refused: {part['refused']}" if "refused" in part else f"{name}: {part['params']}")
        return metrics

    def _row(self, model: Artifact) -> dict[str, Any]:
        """A run as a point."""
        note, config = _read(model.path / "training.json"), _read(model.path / "config.json")["model"]
        final, loop = note["final"], note["loop"]
        loss = final.get(self.measure)
        if loss is None:
            raise BadData(
                f"scaling: a run of {self.variant} has no {self.measure}",
                "hold out examples; bits per byte need an objective whose labels are text",
            )
        if not note.get("training_flops"):
            raise BadData(f"scaling: a run of {self.variant} has no FLOPs", "there is no formula for this model")
        length = int(note["length_tokens"])
        return {
            "key": model.key,
            "run": f"w{config['width']}",
            "layers": config["layers"],
            "width": config["width"],
            "params": note["parameters"][self.counts],
            "tokens": final["tokens"],
            "flops": note["training_flops"],
            "loss": loss,
            "learning_rate": loop["peak_lr"],
            "batch_tokens": loop["batch_size"] * length,
            "steps": final["steps"],
            "epochs": final["epochs"],
            "budget": note["budget"],
            "architecture": config["architecture"],
            "objective": note["objective"]["kind"],
        }

    def _next(
        self, rows: Sequence[Mapping[str, Any]], fit: Mapping[str, Any], file: Path, runs: Sequence[Artifact]
    ) -> dict[str, Any]:
        """The run that the fit is put to the test with: its model and loop."""
        from modeling.architecture import model_config
        from modeling.flops import count_by_group
        from modeling.shapes import parameter_shapes
        from tasks.scaling.laws import read_law

        approach = surest(fit)
        factor = flops_factor(rows)
        law = read_law(file, approach)
        own = _read(runs[0].path / "config.json")
        note = _read(runs[0].path / "training.json")
        gated, two = "glu" in own["model"]["activation"], own["model"]["architecture"] == "encoder-decoder"

        def config(width: int) -> Any:
            shape = self.ladder.shape(width, gated=gated, two_stacks=two)
            return model_config({**own["model"], **shape})

        def params(width: int) -> int:
            return count_by_group(parameter_shapes(config(width), own["head"]).items())[self.counts]

        flops = self.factor * max(row["flops"] for row in rows)
        best = float(law.optimum(flops)[0])
        width = nearest_width(params, best, self.ladder)
        N = params(width)
        D = flops / (factor * N)
        return {
            "approach": int(approach),
            "flops": flops,
            "optimal_params": best,
            "params": N,
            "tokens": D,
            "layers": config(width).layers,
            "width": width,
            "model": config(width).model_dump(mode="json"),
            "loop": {**self.ladder.loop(width, N, int(note["length_tokens"])), "flops": flops},
        }


def surest(fit: Mapping[str, Any]) -> str:
    """The approach that knows best how the optimal size grows: the one of the narrowest interval of that exponent.

    A form's exponents hang on the form, so those of a parabola a line are often better known (docs/log.md).
    """

    def width(approach: str) -> float:
        interval = fit[f"approach_{approach}"].get("ci95", {}).get("exponent_N")
        return interval[1] - interval[0] if interval else math.inf

    return min((name for name in LAWS if "params" in fit.get(f"approach_{name}", {})), key=width)


def flops_factor(rows: Sequence[Mapping[str, Any]]) -> float:
    """C / (N·D) of the runs, the median: 6 where N counts what each token meets, about 3 for an encoder-decoder."""
    from statistics import median

    return float(median(row["flops"] / (row["params"] * row["tokens"]) for row in rows))


def repeated(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning where runs have seen their text so often that it was no longer worth what new text is."""
    often = [row["epochs"] for row in rows if row["epochs"] > FRESH_EPOCHS]
    if not often:
        return []
    times = f"more than {FRESH_EPOCHS} times, up to {max(often):.1f} times"
    said = f"{len(often)} of {len(rows)} runs saw their text {times}"
    return [f"{said}: the laws are of fresh text; take a larger corpus or smaller budgets"]


def number_lines(rows: Sequence[dict[str, Any]], ladder: Ladder) -> None:
    """Give each row the `line` it is on, from 1: the nearest of the ladder's budgets, or ratios."""
    values = ladder.budgets() if ladder.layout == "isoflop" else ladder.ratios()
    for row in rows:
        own = row["flops"] if ladder.layout == "isoflop" else row["tokens"] / row["params"]
        row["line"] = 1 + min(range(len(values)), key=lambda n: abs(math.log(own / values[n])))


def write_points(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The points as a file that `triptych fit` reads."""
    columns = ("params", "tokens", "flops", "loss", "unit", "run", "stage", "key")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row[name] for name in columns] for row in rows)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError) as error:
        raise BadData(f"{path.name}: not readable ({error})", "run the stage that makes it again") from None


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
