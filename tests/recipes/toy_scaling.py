"""A sweep for tests: models whose loss is a known law of their size and tokens, and a real fit of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from tasks.base import Context, Model, Task


class Measured(Task):
    """A model of so many parameters after so many tokens."""

    produces: ClassVar[str] = "model"
    params: float
    tokens: float

    def run(self, ctx: Context) -> Mapping[str, Any]:
        loss = 1.8 + 480 / self.params**0.35 + 2085 / self.tokens**0.366
        (ctx.out / "loss.txt").write_text(str(loss))
        return {"loss": loss}


class Fitted(Task):
    """The law of several models, in the files of a scaling fit."""

    produces: ClassVar[str] = "scaling-fit"
    models: tuple[Model, ...]

    def run(self, ctx: Context) -> Mapping[str, Any]:
        from tasks.scaling.fit import as_json, fit_all
        from tasks.scaling.points import points_of

        rows = []
        for number, made in enumerate(ctx.inputs("models")):
            params, tokens = made.config["params"], made.config["tokens"]
            row = {"stage": f"m{number}", "key": made.key, "run": f"n{params:.0f}", "params": params, "tokens": tokens}
            rows.append(row | {"flops": 6 * params * tokens, "loss": made.metrics["loss"]})
        points = points_of(
            [r["loss"] for r in rows], params=[r["params"] for r in rows], tokens=[r["tokens"] for r in rows]
        )
        found, refused = fit_all(points, ["approach_2", "approach_3"], bootstrap=100)
        (ctx.out / "fit.json").write_text(json.dumps(as_json(points, found, refused)))
        sweep = {"variant": "toy", "unit": "bits per byte", "points": rows, "left_out": [], "next": {}}
        (ctx.out / "sweep.json").write_text(json.dumps(sweep))
        (ctx.out / "plots").mkdir()
        (ctx.out / "plots" / "law.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
        return {"points": len(rows)}


class Compared(Task):
    """A prediction beside its measurement."""

    produces: ClassVar[str] = "scaling-comparison"
    model: Model

    def run(self, ctx: Context) -> None:
        made = ctx.input("model")
        row = {"variant": "toy", "stage": "m0", "key": made.key, "flops": 1e12, "params": 1e6, "predicted_loss": 3.0}
        content = {"predictions": [row | {"ci95": [2.9, 3.1], "measured_loss": 3.03}], "pairs": [], "variants": {}}
        (ctx.out / "comparison.json").write_text(json.dumps(content))
