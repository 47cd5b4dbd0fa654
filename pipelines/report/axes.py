"""Axes with units for charts over decades, and what is drawn between them: lines, bands, marks that link to a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pipelines.report.numbers import ticks

Shown = Callable[[float], str]
Place = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """One axis: from `low` to `high`, with marks at round values."""

    title: str
    """What and in which unit."""
    low: float
    high: float
    log: bool
    marks: tuple[tuple[float, str], ...]

    def share(self, value: float) -> float:
        """Where a value lies, 0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def inside(self, value: float) -> float:
        """The nearest value that the axis has."""
        return min(max(value, self.low), self.high)


def log_axis(title: str, values: Iterable[float], shown: Shown, *, wanted: int = 6, pad: float = 0.05) -> Axis:
    """A logarithmic axis over positive values; marks at powers of ten, at 1, 2 and 5 of them, or between."""
    found = [v for v in values if math.isfinite(v) and v > 0] or [1.0]
    low, high = min(found), max(found)
    room = max(pad * math.log(high / low), 0.02)
    low, high = low / math.exp(room), high * math.exp(room)
    return Axis(title, low, high, True, tuple((v, shown(v)) for v in _log_marks(low, high, wanted)))


def _log_marks(low: float, high: float, wanted: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = [10.0**p for p in range(first, last + 1) if low <= 10.0**p <= high]
    if len(decades) >= 3:
        return decades[:: math.ceil(len(decades) / (wanted + 1))]
    for mantissas in ((1, 3), (1, 2, 5)):
        found = [m * 10.0**p for p in range(first, last + 1) for m in mantissas if low <= m * 10.0**p <= high]
        if len(found) >= 3:
            return found
    return [v for v in ticks(low, high, wanted) if low <= v <= high]


def linear_axis(title: str, values: Iterable[float], shown: Shown, *, wanted: int = 5) -> Axis:
    """A linear axis that ends at round values beyond the smallest and the largest."""
    found = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(found), max(found)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-3):  # one value: `ticks` makes room about it
        high = low
    marks = ticks(low, high, wanted)
    return Axis(title, marks[0], marks[-1], False, tuple((v, shown(v)) for v in marks))


@dataclass(frozen=True)
class Frame:
    """A chart's ground: two axes in a picture of `width` × `height` pixels."""

    x: Axis
    y: Axis
    width: int = 540
    height: int = 330
    left: int = 56
    right: int = 78
    top: int = 22
    bottom: int = 40

    def at(self, x: float, y: float) -> Place:
        """Pixels of a value."""
        across = self.left + self.x.share(x) * (self.width - self.left - self.right)
        return across, self.height - self.bottom - self.y.share(y) * (self.height - self.top - self.bottom)

    def ground(self) -> str:
        """Grid, marks with their values, and the axes' titles."""
        parts = []
        foot = self.height - self.bottom
        for value, text in self.y.marks:
            y = self.at(self.x.low, value)[1]
            parts.append(
                f'<line class="grid" x1="{self.left}" y1="{y:.1f}" x2="{self.width - self.right}" y2="{y:.1f}"/>'
            )
            parts.append(f'<text class="tick" x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        for value, text in self.x.marks:
            x = self.at(value, self.y.low)[0]
            parts.append(f'<line class="grid" x1="{x:.1f}" y1="{self.top}" x2="{x:.1f}" y2="{foot + 4}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{foot + 16}" text-anchor="middle">{text}</text>')
        parts.append(f'<text class="tick" x="0" y="{self.top - 10}">{escape(self.y.title)}</text>')
        middle = (self.left + self.width - self.right) / 2
        foot = self.height - 5
        title = escape(self.x.title)
        parts.append(f'<text class="tick" x="{middle:.0f}" y="{foot}" text-anchor="middle">{title}</text>')
        return "".join(parts)

    def line(self, points: Iterable[Place], kind: str) -> str:
        """A line through values; those outside of the axes are left out."""
        inside = [self.at(x, y) for x, y in points if self._has(x, y)]
        if len(inside) < 2:
            return ""
        where = " ".join(f"{x:.1f},{y:.1f}" for x, y in inside)
        return f'<polyline class="{kind}" points="{where}"/>'

    def band(self, rows: Sequence[tuple[float, float, float]], kind: str) -> str:
        """An area between (x, low, high), cut at the axes."""
        usable = [r for r in rows if all(math.isfinite(v) for v in r) and self._has(r[0], self.y.inside(r[1]))]
        if len(usable) < 2:
            return ""
        edge = [self.at(x, self.y.inside(high)) for x, _, high in usable]
        edge += [self.at(x, self.y.inside(low)) for x, low, _ in reversed(usable)]
        return f'<polygon class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in edge)}"/>'

    def whisker(self, x: float, low: float, high: float, kind: str) -> str:
        """An interval at x, with caps."""
        (across, bottom), (_, top) = self.at(x, self.y.inside(low)), self.at(x, self.y.inside(high))
        path = f"M{across:.1f} {bottom:.1f}V{top:.1f}M{across - 9:.1f} {bottom:.1f}h18M{across - 9:.1f} {top:.1f}h18"
        return f'<path class="{kind}" d="{path}"/>'

    def dot(self, x: float, y: float, kind: str, about: str, href: str = "", *, shape: str = "circle") -> str:
        """A mark with a tooltip, a link where there is one: `circle`, or `diamond` for what stands out."""
        if not self._has(x, y):
            return ""
        across, up = self.at(x, y)
        told = f"<title>{escape(about)}</title>"
        if shape == "diamond":
            drawn = f'<path class="{kind}" d="M{across:.1f} {up - 6:.1f}l5 6l-5 6l-5 -6z">{told}</path>'
        else:
            drawn = f'<circle class="{kind}" cx="{across:.1f}" cy="{up:.1f}" r="3.6">{told}</circle>'
        return f'<a href="{escape(href)}">{drawn}</a>' if href else drawn

    def note(self, x: float, y: float, text: str) -> str:
        """A few words below and left of a value, or left of it where the axis' own words are below."""
        across, up = self.at(x, self.y.inside(y))
        beside = up + 24 > self.height - self.bottom
        right, foot = (across - 9, up + 4) if beside else (across + 6, up + 20)
        return f'<text class="last" x="{right:.1f}" y="{foot:.1f}" text-anchor="end">{escape(text)}</text>'

    def figure(self, caption: str, parts: Iterable[str]) -> Markup:
        """The whole chart with its caption."""
        return Markup(
            f"<figure><figcaption>{escape(caption)}</figcaption>"
            f'<svg class="chart" role="img" aria-label="{escape(caption)}" viewBox="0 0 {self.width} {self.height}">'
            f"{self.ground()}{''.join(parts)}</svg></figure>"
        )

    def _has(self, x: float, y: float) -> bool:
        if not (math.isfinite(x) and math.isfinite(y)) or (self.x.log and x <= 0) or (self.y.log and y <= 0):
            return False
        return all(-1e-9 <= axis.share(v) <= 1 + 1e-9 for axis, v in ((self.x, x), (self.y, y)))


def legend(rows: Sequence[tuple[str, str]], x: float, y: float, title: str = "", anchor: str = "start") -> str:
    """A column of (class, text): a swatch of each class and what it stands for."""
    parts = [f'<text class="tick" x="{x}" y="{y}">{escape(title)}</text>'] if title else []
    for number, (kind, text) in enumerate(rows, start=1 if title else 0):
        below = y + 16 * number
        if kind.startswith("line"):
            parts.append(f'<path class="{kind}" d="M{x} {below - 4}h14"/>')
        elif kind.startswith("star"):
            parts.append(f'<path class="{kind}" d="M{x + 7} {below - 10}l5 6l-5 6l-5 -6z"/>')
        else:
            parts.append(f'<circle class="{kind}" cx="{x + 6}" cy="{below - 4}" r="4"/>')
        parts.append(f'<text class="small" x="{x + 19}" y="{below}">{escape(text)}</text>')
    return "".join(parts)
