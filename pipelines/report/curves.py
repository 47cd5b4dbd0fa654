"""Line charts as SVG: training curves with units, a log scale where it helps, and baselines as dashed lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from pipelines.report.numbers import count, number, ticks

MOST_POINTS = 500
UNITS = {
    "loss": ("loss", "nats per token"),
    "validation_loss": ("validation loss", "nats per label"),
    "validation_accuracy": ("validation accuracy", "share of labels"),
    "validation_perplexity": ("validation perplexity", ""),
    "validation_bits_per_byte": ("validation loss", "bits per byte"),
    "learning_rate": ("learning rate", ""),
    "grad_norm": ("gradient norm", ""),
    "tokens_per_second": ("throughput", "tokens/s"),
    "tokens/s": ("throughput", "tokens/s"),
    "mfu": ("model FLOPs utilisation", "share of peak"),
}
COUNTERS = {"step", "tokens", "seconds", "time", "epoch", "samples"}


@dataclass(frozen=True)
class Chart:
    """One chart: `points` are (step, value); `baselines` name → value."""

    title: str
    unit: str
    points: Sequence[tuple[float, float]]
    baselines: Mapping[str, float]


def charts(records: Sequence[Mapping[str, Any]], baselines: Mapping[str, float] | None = None) -> list[Chart]:
    """A chart per logged quantity, the loss first; records without a step are numbered."""
    series: dict[str, list[tuple[float, float]]] = {}
    for index, record in enumerate(records):
        step = record.get("step")
        step = float(step) if isinstance(step, int | float) else float(index)
        for key, value in record.items():
            usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if usable and key not in COUNTERS:
                series.setdefault(key, []).append((step, float(value)))
    # one point is no curve; its value stands among the figures
    series = {key: points for key, points in series.items() if len(points) > 1 or key == "loss"}
    order = [key for key in UNITS if key in series] + sorted(key for key in series if key not in UNITS)
    made = []
    for key in order:
        title, unit = UNITS.get(key, (key.replace("_", " "), ""))
        lines = {k: v for k, v in (baselines or {}).items() if key == "loss" and isinstance(v, int | float)}
        made.append(Chart(title, unit, series[key], lines))
    return made


def thin(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points that keep every bucket's lowest and highest value, so that spikes stay visible."""
    if len(points) <= most:
        return list(points)
    buckets = most // 2
    kept = []
    for index in range(buckets):
        part = points[index * len(points) // buckets : (index + 1) * len(points) // buckets]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return [*kept, points[-1]]


def draw(chart: Chart, width: int = 520, height: int = 260) -> Markup:
    """The chart as SVG. The y axis is logarithmic where positive values span more than a factor of 30."""
    points = sorted(chart.points)
    if not points:
        return Markup("")
    values = [value for _, value in points] + list(chart.baselines.values())
    low, high = min(values), max(values)
    log = low > 0 and high / low > 30 and chart.title != "learning rate"
    if log:
        y_ticks = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    else:
        y_ticks = ticks(0.0 if low >= 0 and low < 0.35 * high else low, high, 5)
    x_low, x_high = points[0][0], points[-1][0]
    x_high = x_high if x_high > x_low else x_low + 1
    x_ticks = [tick for tick in ticks(x_low, x_high, max(3, width // 110)) if x_low <= tick <= x_high]
    left, right, top, bottom = 58, 70, 12, 30

    def to_x(step: float) -> float:
        return left + (step - x_low) / (x_high - x_low) * (width - left - right)

    def to_y(value: float) -> float:
        a, b = (math.log10(y_ticks[0]), math.log10(y_ticks[-1])) if log else (y_ticks[0], y_ticks[-1])
        share = ((math.log10(value) if log else value) - a) / ((b - a) or 1)
        return height - bottom - share * (height - top - bottom)

    parts = []
    for tick in y_ticks:
        y = to_y(tick)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks:
        x = to_x(tick)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" y1="{height - bottom}" x2="{x:.1f}" y2="{height - bottom + 4}"/>'
        )
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - bottom + 17}" text-anchor="middle">{count(tick)}</text>'
        )
    end_y = to_y(points[-1][1])
    for name, value in chart.baselines.items():
        y = to_y(value)
        beside = y + 4 if abs(y - end_y) > 13 else end_y + (17 if y >= end_y else -9)
        parts.append(f'<line class="baseline" x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{width - right + 5}" y="{beside:.1f}">{escape(name[:9])}'
            f"<title>{escape(name)}: {number(value)}</title></text>"
        )
    line = " ".join(f"{to_x(step):.1f},{to_y(value):.1f}" for step, value in thin(points))
    parts.append(f'<polyline class="curve" points="{line}"/>')
    parts.append(f'<circle class="end" cx="{to_x(points[-1][0]):.1f}" cy="{end_y:.1f}" r="3"/>')
    parts.append(f'<text class="last" x="{width - right + 7}" y="{end_y + 4:.1f}">{number(points[-1][1], 3)}</text>')
    caption = chart.title + (f", {chart.unit}" if chart.unit else "") + (" (log scale)" if log else "")
    return Markup(
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<svg class="chart" role="img" aria-label="{escape(caption)} over steps" viewBox="0 0 {width} {height}">'
        f'{"".join(parts)}<text class="tick" x="{width - right + 7}" y="{height - bottom + 17}">step</text>'
        "</svg></figure>"
    )


def strip(groups: Sequence[tuple[str, Sequence[float]]], width: int = 170) -> Markup:
    """Dots of a few values per group on one axis: how far two sets of seeds lie apart."""
    every = [value for _, values in groups for value in values if math.isfinite(value)]
    if not every:
        return Markup("")
    low, high = min(every), max(every)
    pad = (high - low) * 0.08 or 0.01
    low, high = low - pad, high + pad
    height = 12 * len(groups) + 4
    parts = []
    for index, (name, values) in enumerate(groups):
        y = 8 + 12 * index
        parts.append(f'<line class="grid" x1="4" y1="{y}" x2="{width - 4}" y2="{y}"/>')
        for value in values:
            if math.isfinite(value):
                x = 6 + (value - low) / (high - low) * (width - 12)
                title = f"<title>{escape(name)}: {number(value)}</title>"
                parts.append(f'<circle class="dot {escape(name)}" cx="{x:.1f}" cy="{y}" r="4">{title}</circle>')
    return Markup(
        f'<svg class="strip" role="img" aria-label="values per seed" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}">{"".join(parts)}</svg>'
    )
