"""Pictures for MLflow's artifacts: loss curves and the results, as PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any


def pictures(view: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """(file name, PNG) of a run's view (`pipelines.view`): a loss curve per pretraining, the results if any."""
    if not view.get("training") and not view.get("results"):
        return
    from matplotlib.figure import Figure

    for item in view.get("training", []):
        points = [(r["step"], r["loss"]) for r in item["records"] if "step" in r and "loss" in r]
        if not points:
            continue
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*zip(*points, strict=True), label="training")
        held_out = [(r["step"], r["validation_loss"]) for r in item["records"] if "validation_loss" in r]
        if held_out:
            axes.plot(*zip(*held_out, strict=True), marker="o", markersize=3, label="validation")
        for name, value in item.get("baselines", {}).items():
            axes.axhline(value, linestyle="--", color="grey", label=f"{name} {value:.3f}")
        axes.set(xlabel="step", ylabel="loss, nats per label", title=item["stage"])
        axes.legend()
        axes.grid(alpha=0.3)
        yield f"plots/loss-{item['stage']}.png", _png(figure)
    rows = [r for r in view.get("results") or [] if (r.get("pretrained") or {}).get("values")]
    if rows:
        figure = Figure(figsize=(7, 1 + 0.7 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for number, row in enumerate(rows):
            for side, colour, shift in (("pretrained", "tab:blue", 0.12), ("random", "tab:orange", -0.12)):
                values = (row.get(side) or {}).get("values") or []
                label = {"pretrained": "pretrained", "random": "from scratch"}[side] if not number else None
                axes.scatter(values, [number + shift] * len(values), color=colour, label=label)
        axes.set_yticks(range(len(rows)), [f"{r['task']}\n{r['metric']}" for r in rows])
        axes.set(xlabel="score of each seed", ylim=(-0.6, len(rows) - 0.4))
        axes.legend()
        axes.grid(alpha=0.3, axis="x")
        yield "plots/results.png", _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
