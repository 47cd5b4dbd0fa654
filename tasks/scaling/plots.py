"""Pictures of a fit, as SVG: IsoFLOP parabolas, the envelope, contours with the efficient frontier, residuals.

And one of several fits: the optimal loss of each variant by compute, and where they cross.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tasks.scaling.approach2 import parabolas
from tasks.scaling.curves import curves
from tasks.scaling.estimate import Fit
from tasks.scaling.laws import FAR, Law, law_of
from tasks.scaling.points import Points


def pictures(points: Points, found: Mapping[str, Fit]) -> Iterator[tuple[str, bytes]]:
    """(file name, SVG) of what the fits allow."""
    if "approach_2" in found:
        yield "isoflop.svg", _isoflop(points, found["approach_2"])
    if "approach_1" in found:
        yield "envelope.svg", _envelope(points, found["approach_1"])
    if "approach_3" in found:
        yield "contours.svg", _contours(points, found["approach_3"])
    if any(f"approach_{n}" in found for n in (1, 2, 3)):
        yield "allocation.svg", _allocation(points, found)
    for name in ("approach_3", "over_training", "data_constrained", "kaplan_ND"):
        if name in found:
            yield f"residuals-{name}.svg", _residuals(points, found[name])


def comparison_picture(laws: Mapping[str, Law], points: Mapping[str, Points], found: Mapping[str, Any]) -> bytes:
    """SVG of the optimal loss by compute with 95 % bands, crossovers, and differences to the first variant.

    Args:
        laws: {variant: a law with a surface}, two or more.
        points: the measurements of each.
        found: what `tasks.scaling.compare.compare` says of these laws, losses included.
    """
    figure = _figure(7.5, 6.5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    largest = max(row["flops"] for row in found["budgets"])
    smallest = min(float(points[name].flops.min()) for name in laws)
    c = np.geomspace(smallest, 2 * max(largest, 10 * smallest), 60)
    first = next(iter(laws))
    for number, (name, law) in enumerate(laws.items()):
        colour = f"C{number}"
        above.scatter(points[name].flops, points[name].loss, s=6, color=colour, alpha=0.25, linewidths=0)
        above.plot(c, law.optimal_loss(c), color=colour, label=name)
        if law.draws:
            above.fill_between(c, *_loss_band(law, c), color=colour, alpha=0.15, linewidth=0)
        below.plot(c, law.optimal_loss(c) - laws[first].optimal_loss(c), color=colour)
    for pair in found["pairs"]:
        for row in pair["losses"] if pair["a"] == first else ():
            if row["ci95"]:
                number, (low, high) = list(laws).index(pair["b"]), row["ci95"]
                at = row["flops"] * 1.1 ** (number - 1)  # side by side
                below.plot([at, at], [-high, -low], color=f"C{number}", linewidth=3, alpha=0.4)
        for cross in pair["crossover"]["found"]:
            if cross["flops"] is not None and c[0] <= cross["flops"] <= c[-1]:
                _mark(above, cross, float(laws[pair["a"]].optimal_loss(cross["flops"])), c)
    if common := found["largest_common_flops"]:
        for axes in (above, below):
            axes.axvline(common, color="grey", linestyle=":", linewidth=1)
            axes.axvspan(FAR * common, c[-1], color="grey", alpha=0.08, linewidth=0)
        above.plot([], [], color="grey", linestyle=":", label="largest measured; shaded: extrapolated")
    every = np.concatenate([law.optimal_loss(c) for law in laws.values()])
    unit = found["unit"] or "unit of the files"
    above.set(
        xscale="log", yscale="log", ylabel=f"loss, {unit}", title="Loss of the compute-optimal model, 95 % intervals",
        xlim=(c[0], c[-1]), ylim=(0.97 * every.min(), 1.05 * every.max()),
    )  # fmt: skip
    below.axhline(0, color="k", linewidth=0.8)
    below.set(xlabel="training compute, FLOPs", ylabel=f"difference to {first}")
    above.legend(fontsize=8)
    above.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_minor_formatter("{x:g}")
    for axes in (above, below):
        axes.grid(alpha=0.3, which="both")
    return _svg(figure)


def _mark(axes: Any, cross: Mapping[str, Any], loss: float, c: np.ndarray) -> None:
    """A crossover, with its interval as far as the picture goes."""
    label = f"{cross['after']} lower than {cross['before']} from {cross['flops']:.2g} FLOPs"
    axes.plot(cross["flops"], loss, "kX", markersize=8, label=label)
    if cross["ci95"]:
        low, high = cross["ci95"]
        axes.plot([max(low or c[0], c[0]), min(high or c[-1], c[-1])], [loss, loss], "k-", linewidth=1)


def _loss_band(law: Law, flops: np.ndarray) -> np.ndarray:
    """[2, budgets]: 95 % interval of the optimal loss; nan where there are too few draws for one."""
    return np.array([law.interval(lambda d, c=c: law.optimal_loss(c, d)) or (np.nan, np.nan) for c in flops]).T


def _loss_label(points: Points) -> str:
    return f"loss, {points.unit or 'nats per token'}"


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # no date and stable ids: the same fit gives the same bytes
    with matplotlib.rc_context({"svg.hashsalt": "triptych"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _colours(values: np.ndarray) -> Any:
    from matplotlib import colormaps

    logs = np.log(values)
    span = np.ptp(logs) or 1.0
    return colormaps["viridis"](0.9 * (logs - logs.min()) / span)


def _isoflop(points: Points, fit: Fit) -> bytes:
    figure = _figure(7, 4.5)
    axes = figure.add_subplot()
    lines = parabolas(points)
    for line, colour in zip(lines, _colours(np.array([x["flops"] for x in lines])), strict=True):
        inside = line["inside"]
        axes.scatter(line["params"][inside], line["loss"][inside], s=14, color=colour, label=f"{line['flops']:.1e}")
        axes.scatter(
            line["params"][~inside], line["loss"][~inside], s=14, facecolors="none", edgecolors=colour, alpha=0.5
        )
        axes.plot(line["curve_params"], line["curve_loss"], color=colour, linewidth=1)
    rows = fit.diagnostics["minima"]
    axes.plot([r["params"] for r in rows], [r["loss"] for r in rows], "k*--", linewidth=1, label="minima")
    lowest = min(float(x["loss"].min()) for x in lines)
    highest = max(float(x["loss"][x["inside"]].max()) for x in lines)
    axes.set(
        xscale="log", xlabel="parameters", ylabel=_loss_label(points), title="IsoFLOP lines and their parabolas",
        ylim=(lowest - 0.03 * (highest - lowest), highest + 0.1 * (highest - lowest)),
    )  # fmt: skip
    axes.legend(title="FLOPs", fontsize=7, ncols=2)
    axes.grid(alpha=0.3, which="both")
    return _svg(figure)


def _envelope(points: Points, fit: Fit) -> bytes:
    figure = _figure(7, 4.5)
    axes = figure.add_subplot()
    found = curves(points, 300)
    if found is not None:
        for row, colour in zip(found.loss, _colours(np.exp(found.log_n)), strict=True):
            axes.plot(np.exp(found.log_c), np.where(np.isfinite(row), row, np.nan), color=colour, linewidth=1)
    axes.scatter(points.flops, points.loss, s=10, c=_colours(points.params), alpha=0.7)
    rows = fit.diagnostics["minima"]
    axes.plot([r["flops"] for r in rows], [r["loss"] for r in rows], "k-", linewidth=2, label="envelope")
    axes.set(
        xscale="log", yscale="log", xlabel="training compute, FLOPs", ylabel=_loss_label(points),
        title="Training curves by model size, and their envelope",
    )  # fmt: skip
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    return _svg(figure)


def _contours(points: Points, fit: Fit) -> bytes:
    figure = _figure(7, 5)
    axes = figure.add_subplot()
    law = law_of(fit, "", float(points.flops.max()), flops_factor=points.flops_factor)
    c = np.geomspace(points.flops.min() / 2, points.flops.max() * 4, 120)
    n = np.geomspace(points.params.min() / 2, points.params.max() * 4, 120)
    grid_c, grid_n = np.meshgrid(c, n)
    loss = law.loss(grid_n, grid_c / (points.flops_factor * grid_n))
    top = float(np.quantile(points.loss, 0.98))
    levels = np.geomspace(float(loss.min()) * 1.005, top, 14)
    drawn = axes.contour(grid_c, grid_n, loss, levels=levels, linewidths=0.8, cmap="viridis_r")
    axes.clabel(drawn, fontsize=7, fmt="%.2f")
    axes.scatter(points.flops, points.params, s=12, c=points.loss, cmap="viridis_r", vmin=levels[0], vmax=top)
    axes.plot(c, law.optimum(c)[0], "r-", linewidth=2, label="efficient frontier")
    if law.draws:
        low, high = _band(law, c[::8])
        axes.fill_between(c[::8], low, high, color="r", alpha=0.15, label="95 % interval")
    axes.set(
        xscale="log", yscale="log", xlabel="training compute, FLOPs", ylabel="parameters", xlim=(c[0], c[-1]),
        ylim=(n[0], n[-1]), title=f"Loss ({points.unit or 'nats per token'}) by compute and size",
    )  # fmt: skip
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    return _svg(figure)


def _band(law: Law, flops: np.ndarray) -> np.ndarray:
    """[2, budgets]: 95 % interval of the optimal parameters; nan where there are too few draws for one."""
    return np.array([law.interval(lambda d, c=c: law.optimum(c, d)[0]) or (np.nan, np.nan) for c in flops]).T


def _allocation(points: Points, found: Mapping[str, Fit]) -> bytes:
    figure = _figure(7, 4.5)
    axes = figure.add_subplot()
    c = np.geomspace(points.flops.min(), points.flops.max() * 100, 40)
    for number, colour in ((1, "tab:orange"), (2, "tab:green"), (3, "tab:red")):
        if (fit := found.get(f"approach_{number}")) is None:
            continue
        law = law_of(fit, "", float(points.flops.max()), flops_factor=points.flops_factor)
        label = f"approach {number}: N ∝ C^{fit.derived['exponent_N']:.3f}"
        axes.plot(c, law.optimum(c)[0], color=colour, label=label)
        if law.draws:
            low, high = _band(law, c)
            axes.fill_between(c, low, high, color=colour, alpha=0.15)
        for row in fit.diagnostics.get("minima", []):
            axes.plot(row["flops"], row["params"], ".", color=colour, markersize=5)
    axes.axvline(points.flops.max(), color="grey", linestyle=":", label="largest measured")
    axes.set(
        xscale="log", yscale="log", xlabel="training compute, FLOPs", ylabel="optimal parameters",
        title="Compute-optimal size, 95 % intervals",
    )  # fmt: skip
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
    return _svg(figure)


def _residuals(points: Points, fit: Fit) -> bytes:
    figure = _figure(10, 3.4)
    assert fit.predicted is not None
    residual = 100 * np.log(points.loss / fit.predicted)
    columns = (
        ("parameters", points.params), ("tokens", points.tokens), ("compute, FLOPs", points.flops),
    )  # fmt: skip
    left = None
    for number, (label, column) in enumerate(columns, 1):
        axes = figure.add_subplot(1, 3, number, sharey=left)
        left = left or axes
        axes.scatter(column, residual, s=10, c=_colours(points.params))
        axes.axhline(0, color="k", linewidth=0.8)
        axes.set(xscale="log", xlabel=label)
        axes.grid(alpha=0.3, which="both")
    left.set_ylabel("log measured − log fitted, %")
    figure.suptitle(f"Residuals of {fit.name.replace('_', ' ')}", fontsize=10)
    return _svg(figure)
