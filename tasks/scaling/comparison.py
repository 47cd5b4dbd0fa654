"""CompareScaling: what the fits of several variants say beside each other, and how their predictions came out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from cluster.errors import BadConfig
from tasks.base import Artifact, Context, Model, ScalingFit, Task
from tasks.scaling.sweep_fit import UNITS, Measure

APPROACHES = ("approach_1", "approach_2", "approach_3")


class CompareScaling(Task):
    """Exponents and losses of the variants by their fits, and each fit's prediction beside the run that was made.

    `comparison.json`: {variants: {name: {architecture, objective, unit, exponents, points, models, flops}},
    predictions: [{variant, key, flops, params, tokens, layers, width, measured_loss, error, and what
    `tasks.scaling.forecast` says}], pairs}. The pairs are `tasks.scaling.compare`'s. A prediction is for the run as it
    was made: its own N and D.
    """

    produces: ClassVar[str] = "scaling-comparison"
    stage: ClassVar[str] = "comparison"

    fits: tuple[ScalingFit, ...] = Field(min_length=1)
    runs: tuple[Model, ...] = Field((), description="the next run of each fit, in their order; none: not checked")
    comparable: bool = Field(False, description="the losses of the variants are of one kind, on one text")
    measure: Measure = Field("validation_loss", description="what was fitted")
    bootstrap: int = Field(4000, ge=0, le=100_000, description="resamples of the differences")

    @model_validator(mode="after")
    def _paired(self) -> CompareScaling:
        if self.runs and len(self.runs) != len(self.fits):
            raise BadConfig(f"comparison: {len(self.runs)} runs for {len(self.fits)} fits", "give each fit its run")
        return self

    def run(self, ctx: Context) -> Mapping[str, Any]:
        from tasks.scaling.point_files import read_points
        from tasks.scaling.variants import compare_fits, fit_variants

        fits = ctx.inputs("fits")
        sweeps = [_read(fit.path / "sweep.json") for fit in fits]
        variants = {s["variant"]: _variant(s, _read(f.path / "fit.json")) for s, f in zip(sweeps, fits, strict=True)}
        runs = ctx.inputs("runs") if self.runs else []
        predictions = []
        for fit, sweep, run in zip(fits, sweeps, runs, strict=bool(runs)):
            predictions += self._checked(fit, sweep, run)
        found: dict[str, Any] = {"variants": variants, "predictions": predictions, "pairs": []}
        points = {s["variant"]: read_points(f.path / "points.csv") for s, f in zip(sweeps, fits, strict=True)}
        approaches = [name for name in APPROACHES[::-1] if all(name in v["exponents"] for v in variants.values())]
        if len(fits) > 1 and approaches:
            # fitted anew, so that variants of one grid are resampled together
            fitted = fit_variants(points, approaches[0][-1], bootstrap=self.bootstrap, seed=0)
            compared = compare_fits(fitted, comparable=self.comparable)[approaches[0]]
            found["approach"] = approaches[0]
            for name, alone in compared.pop("variants").items():
                variants[name]["law"] = alone
            found |= compared
        told = [f"{s['variant']}: {warning}" for s in sweeps for warning in s["warnings"]]
        found["warnings"] = [*told, *found.get("warnings", [])]
        text = json.dumps(found, indent=1, sort_keys=True, default=float)
        (ctx.out / "comparison.json").write_text(text + "\n", encoding="utf-8")
        metrics: dict[str, float] = {}
        for prediction in predictions:
            name = prediction["variant"]
            metrics |= {f"{name}.{k}": prediction[k] for k in ("predicted_loss", "measured_loss", "error")}
            ctx.log(
                f"{name}: predicted {prediction['predicted_loss']:.4f}, measured {prediction['measured_loss']:.4f} "
                f"({100 * prediction['error']:+.2f} %)"
            )
        for name, variant in variants.items():
            for approach, exponents in variant["exponents"].items():
                metrics[f"{name}.{approach}.exponent_N"] = exponents["exponent_N"]["value"]
        return metrics

    def _checked(self, fit: Artifact, sweep: Mapping[str, Any], run: Artifact) -> list[dict[str, Any]]:
        from tasks.scaling.forecast import forecast
        from tasks.scaling.point_files import read_points

        note, config = _read(run.path / "training.json"), _read(run.path / "config.json")["model"]
        N, D = note["parameters"][sweep["counts"]], note["final"]["tokens"]
        found = forecast(read_points(fit.path / "points.csv"), N, D, bootstrap=self.bootstrap)
        if found is None:
            return []
        measured = note["final"][self.measure]
        return [
            {
                "variant": sweep["variant"],
                "key": run.key,
                "flops": note["training_flops"],
                "times_largest": note["training_flops"] / max(p["flops"] for p in sweep["points"]),
                "params": N,
                "tokens": D,
                "layers": config["layers"],
                "width": config["width"],
                "unit": UNITS[self.measure],
                **found,
                "measured_loss": measured,
                "error": measured / found["predicted_loss"] - 1,
            }
        ]


def _variant(sweep: Mapping[str, Any], fit: Mapping[str, Any]) -> dict[str, Any]:
    flops = [point["flops"] for point in sweep["points"]]
    exponents = {
        name: {key: {"value": part[key], "ci95": part["ci95"].get(key)} for key in ("exponent_N", "exponent_D")}
        for name in APPROACHES
        if "exponent_N" in (part := fit.get(name, {}))
    }
    return {
        "architecture": sweep["architecture"],
        "objective": sweep["objective"],
        "unit": sweep["unit"],
        "exponents": exponents,
        "points": len(sweep["points"]),
        "models": len({point["width"] for point in sweep["points"]}),
        "flops": [min(flops), max(flops)],
    }


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
