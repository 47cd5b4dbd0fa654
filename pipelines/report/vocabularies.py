"""Tokenizers side by side as SVG: a figure over the vocabulary's size, a line for each kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from pipelines.report.composition import COLOURS
from pipelines.report.numbers import count, number, percent, ticks

FIGURES = (
    ("bytes_per_token", "bytes per token", number),
    ("fertility", "tokens per word", number),
    ("whole_words", "words kept whole", percent),
    ("unknown_rate", "unknown tokens", percent),
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 450, 250, 52, 96, 12, 34
_LINE = 13.0  # least distance of two names at the right


def pictures(rows: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """A chart for each figure that the rows of `comparison.json` have; flat zeros are left out."""
    kinds = list(dict.fromkeys(str(row.get("kind")) for row in rows if row.get("kind")))
    found = []
    for field, title, shown in FIGURES:
        lines = {
            kind: sorted(
                (float(row["vocab_size"]), float(row[field]))
                for row in rows
                if row.get("kind") == kind and _usable(row.get("vocab_size")) and _usable(row.get(field))
            )
            for kind in kinds
        }
        if any(value for points in lines.values() for _, value in points):
            found.append(_chart(title, shown, {kind: (kinds.index(kind), p) for kind, p in lines.items() if p}))
    return found


def _chart(title: str, shown: Any, lines: Mapping[str, tuple[int, Sequence[tuple[float, float]]]]) -> Markup:
    sizes = sorted({size for _, points in lines.values() for size, _ in points})
    values = [value for _, points in lines.values() for _, value in points]
    scale = ticks(0.0 if min(values) < 0.5 * max(values) else min(values), max(values), 5)
    low, high = math.log2(sizes[0]), math.log2(sizes[-1])
    if high - low < 0.1:
        low, high = low - 0.5, high + 0.5

    def to_x(size: float) -> float:
        return LEFT + (math.log2(size) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def to_y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - scale[0]) / ((scale[-1] - scale[0]) or 1) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in scale:
        y = to_y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown(tick)}</text>')
    last = -math.inf
    for size in sizes:
        x = to_x(size)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" y1="{HEIGHT - BOTTOM}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM + 4}"/>'
        )
        if x - last > 44:
            parts.append(_text("tick", x, HEIGHT - BOTTOM + 16, count(size)))
            last = x
    ends, single = [], 0
    for kind, (colour, points) in lines.items():
        where = " ".join(f"{to_x(size):.1f},{to_y(value):.1f}" for size, value in points)
        parts.append(f'<polyline class="line l{colour % COLOURS}" points="{where}"/>')
        for size, value in points:
            about = f"<title>{escape(kind)}, {count(size)} tokens: {shown(value)}</title>"
            place = f'cx="{to_x(size):.1f}" cy="{to_y(value):.1f}"'
            parts.append(f'<circle class="k{colour % COLOURS}" {place} r="3.4">{about}</circle>')
        x, y = to_x(points[-1][0]), to_y(points[-1][1])
        if points[-1][0] < 0.9 * sizes[-1]:  # it ends before the others: its name stands beside its end
            away = 12 * single + (16 if y < TOP + 40 else -8 - 24 * single)
            parts.append(f'<text class="small" x="{x:.1f}" y="{y + away:.1f}">{escape(kind)}</text>')
            single += 1
        else:
            ends.append((y, kind, colour, x))
    for y, (true, kind, colour, x) in zip(apart([end[0] for end in sorted(ends)]), sorted(ends), strict=True):
        parts.append(
            f'<line class="line thin l{colour % COLOURS}" x1="{x + 5:.1f}" y1="{true:.1f}" '
            f'x2="{WIDTH - RIGHT + 14}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text class="small" x="{WIDTH - RIGHT + 17}" y="{y + 4:.1f}">{escape(kind)}</text>')
    caption = f"{title} by vocabulary size"
    parts.append(_text("tick", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, "tokens in the vocabulary (log scale)"))
    return Markup(
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<svg class="chart" role="img" aria-label="{escape(caption)}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _text(kind: str, x: float, y: float, said: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(said)}</text>'


def apart(places: Sequence[float], least: float = _LINE) -> list[float]:
    """Sorted places moved so that neighbours are `least` apart, as little as may be and inside the chart."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + least) if moved else place)
    over = moved[-1] - (HEIGHT - BOTTOM) if moved else 0.0
    if over > 0:
        moved[-1] -= over
        for index in range(len(moved) - 2, -1, -1):
            moved[index] = min(moved[index], moved[index + 1] - least)
    return moved


def _usable(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
