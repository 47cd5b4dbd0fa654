"""The DAG as a picture, and the run's timeline: SVG, coloured by the page's style sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from pipelines.report.dag import Box, depths, fold
from pipelines.report.numbers import duration, ticks

BOX_W, BOX_H, GAP_ACROSS, GAP_ALONG = 168, 48, 18, 46
PAGE_WIDTH = 1080
MARK = {
    "done": "✓",
    "cached": "↺",
    "failed": "✕",
    "skipped": "–",
    "pruned": "✂",
    "running": "▶",
    "pending": "…",
    "cancelled": "■",
}
TIMELINE_ROWS = 40


@dataclass
class _Point:
    """A box (`box` is its index) or the bend of an edge that passes a layer; `across` is its place in the layer."""

    box: int | None
    layer: int
    across: float = 0.0

    @property
    def breadth(self) -> float:
        return 1.0 if self.box is not None else 0.4


def graph(stages: Sequence[Mapping[str, Any]]) -> Markup:
    """The layered drawing: layers run down the page, or to the right where that is narrower."""
    boxes = fold(stages)
    if not boxes:
        return Markup("")
    layers, edges = _layout(boxes)
    widest = max(max(point.across + point.breadth / 2 for point in layer) for layer in layers)
    down_width = widest * (BOX_W + GAP_ACROSS)
    right_width = len(layers) * (BOX_W + GAP_ALONG)
    down = down_width <= max(PAGE_WIDTH, right_width)
    if down:
        width, height = down_width, float(len(layers) * (BOX_H + GAP_ALONG) - GAP_ALONG)
    else:
        width, height = right_width - GAP_ALONG, widest * (BOX_H + GAP_ACROSS)

    def place(point: _Point) -> tuple[float, float]:
        """The middle of a point, in px."""
        if down:
            return point.across * (BOX_W + GAP_ACROSS), point.layer * (BOX_H + GAP_ALONG) + BOX_H / 2
        return point.layer * (BOX_W + GAP_ALONG) + BOX_W / 2, point.across * (BOX_H + GAP_ACROSS)

    parts = [_edge([place(point) for point in path], down) for path in edges]
    for layer in layers:
        parts += [_box(boxes[point.box], *place(point)) for point in layer if point.box is not None]
    label = f"graph of {sum(len(box.stages) for box in boxes)} stages"
    return _svg(parts, -8, -8, width + 16, height + 16, "dag", label)


def timeline(stages: Sequence[Mapping[str, Any]], total_seconds: float | None = None) -> Markup:
    """A bar per stage that ran, from the run's start; the longest ones where there are many."""
    ran = [s for s in stages if _number(s.get("started_offset_seconds")) is not None]
    ran = [s for s in ran if s.get("state") != "cached"]
    if not ran:
        return Markup("")
    shown = sorted(ran, key=lambda s: -(_number(s.get("seconds")) or 0))[:TIMELINE_ROWS]
    shown.sort(key=lambda s: (s["started_offset_seconds"], str(s.get("name"))))
    end = max([float(s["started_offset_seconds"]) + (_number(s.get("seconds")) or 0) for s in shown])
    end = max(end, _number(total_seconds) or 0, 1e-3)
    left, right, row, bar, width = 190, 86, 22, 14, PAGE_WIDTH
    scale = (width - left - right) / end
    height = len(shown) * row + 26
    parts = []
    for tick in _time_ticks(end):
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{height - 22}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{duration(tick)}</text>')
    for index, stage in enumerate(shown):
        y = index * row
        start, seconds = float(stage["started_offset_seconds"]), _number(stage.get("seconds"))
        state = _state(stage.get("state"))
        long = (seconds if seconds is not None else end - start) * scale
        name = str(stage.get("name") or "")
        end_x = left + start * scale + max(long, 2) + 6
        parts.append(
            f'<text class="row" x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(_cut(name, 25))}'
            f"<title>{escape(name)}</title></text>"
            f'<rect class="bar s-{state}" x="{left + start * scale:.1f}" y="{y + 4}" width="{max(long, 2):.1f}" '
            f'height="{bar}" rx="3"><title>{escape(name)}: {duration(seconds)}, from {duration(start)}</title></rect>'
            f'<text class="tick" x="{end_x:.1f}" y="{y + 15}">{duration(seconds)}</text>'
        )
    svg = _svg(parts, 0, 0, width, height, "timeline", "timeline of the run")
    if len(ran) > len(shown):
        svg += Markup('<p class="note">The {} longest of {} stages.</p>').format(len(shown), len(ran))
    return svg


def _layout(boxes: Sequence[Box]) -> tuple[list[list[_Point]], list[list[_Point]]]:
    """Layers of points with their places across, and for each edge the points it passes (Sugiyama's method)."""
    layer_of = depths(boxes)
    points = [_Point(index, layer_of[index]) for index in range(len(boxes))]
    layers: list[list[_Point]] = [[] for _ in range(max(layer_of) + 1)]
    for point in points:
        layers[point.layer].append(point)
    edges = []
    for index, box in enumerate(boxes):
        for number in sorted(box.inputs):
            if layer_of[number] >= layer_of[index]:
                continue  # a cycle among folded tasks: the edge back is not drawn
            bends = [_Point(None, layer) for layer in range(layer_of[number] + 1, layer_of[index])]
            for bend in bends:
                layers[bend.layer].append(bend)
            edges.append([points[number], *bends, points[index]])
    before: dict[int, list[_Point]] = {}
    after: dict[int, list[_Point]] = {}
    for path in edges:
        for upper, lower in zip(path, path[1:], strict=False):
            before.setdefault(id(lower), []).append(upper)
            after.setdefault(id(upper), []).append(lower)
    for layer in layers:
        _spread(layer, [float(index) for index in range(len(layer))])
    for sweep in range(8):
        order = layers if sweep % 2 == 0 else list(reversed(layers))
        near = before if sweep % 2 == 0 else after
        for layer in order:
            wanted = {id(p): _mean([n.across for n in near.get(id(p), [])], p.across) for p in layer}
            layer.sort(key=lambda point: wanted[id(point)])
            _spread(layer, [wanted[id(point)] for point in layer])
    least = min(point.across - point.breadth / 2 for layer in layers for point in layer)
    for layer in layers:
        for point in layer:
            point.across -= least
    return layers, edges


def _spread(layer: Sequence[_Point], wanted: Sequence[float]) -> None:
    """Place points at `wanted`, in order, without overlap, moved as little as this allows on average."""
    if not layer:
        return
    places: list[float] = []
    for index, point in enumerate(layer):
        least = places[-1] + (layer[index - 1].breadth + point.breadth) / 2 if index else wanted[0]
        places.append(max(wanted[index], least))
    shift = sum(w - p for w, p in zip(wanted, places, strict=True)) / len(places)
    for point, place in zip(layer, places, strict=True):
        point.across = place + shift


def _edge(path: Sequence[tuple[float, float]], down: bool) -> str:
    (x0, y0), (x1, y1) = path[0], path[-1]
    first = (x0, y0 + BOX_H / 2) if down else (x0 + BOX_W / 2, y0)
    last = (x1, y1 - BOX_H / 2) if down else (x1 - BOX_W / 2, y1)
    points = [first, *path[1:-1], last]
    text = f"M{first[0]:.1f} {first[1]:.1f}"
    for (ax, ay), (bx, by) in zip(points, points[1:], strict=False):
        if down:
            middle = (ay + by) / 2
            text += f"C{ax:.1f} {middle:.1f} {bx:.1f} {middle:.1f} {bx:.1f} {by:.1f}"
        else:
            middle = (ax + bx) / 2
            text += f"C{middle:.1f} {ay:.1f} {middle:.1f} {by:.1f} {bx:.1f} {by:.1f}"
    return f'<path class="edge" d="{text}"/>'


def _box(box: Box, x: float, y: float) -> str:
    left, top, state = x - BOX_W / 2, y - BOX_H / 2, _state(box.state)
    seconds = [value for stage in box.stages if (value := _number(stage.get("seconds"))) is not None]
    states = ", ".join(f"{number} {name}" for name, number in box.states)
    many = len(box.stages) > 1
    if many:
        worst = box.states[0]
        second = f"{worst[1]} {worst[0]}" if len(box.states) == 1 else f"{worst[1]} {worst[0]} of {len(box.stages):,}"
        if state == "done" and len(box.states) == 1:
            second = f"{len(box.stages):,}" + (f" × {duration(sum(seconds) / len(seconds))}" if seconds else " done")
    else:
        second = f"{state} · {duration(seconds[0])}" if seconds and state != "pending" else state
    title = f"{box.label}: {states}"
    if many:
        names = [str(stage["name"]) for stage in box.stages]
        title += "\n" + "\n".join(names[:30]) + (f"\n… and {len(names) - 30} more" if len(names) > 30 else "")
    elif reason := box.stages[0].get("reason"):
        title += f"\n{reason}"
    shape = f'width="{BOX_W}" height="{BOX_H}" rx="7"'
    behind = "".join(
        f'<rect class="box s-{state}" x="{left + off:.1f}" y="{top - off:.1f}" {shape}/>' for off in (6, 3) if many
    )
    second = f"{MARK.get(state, '')} {escape(_cut(second, 23))}"
    return (
        f'<g class="stage"><title>{escape(title)}</title>{behind}'
        f'<rect class="box s-{state}" x="{left:.1f}" y="{top:.1f}" {shape}/>'
        f'<rect class="edgebar s-{state}" x="{left:.1f}" y="{top:.1f}" width="6" height="{BOX_H}" rx="3"/>'
        f'<text class="name" x="{left + 15:.1f}" y="{top + 20:.1f}">{escape(_cut(box.label, 20))}</text>'
        f'<text class="what" x="{left + 15:.1f}" y="{top + 37:.1f}">{second}</text>'
        "</g>"
    )


def _svg(parts: Sequence[str], x: float, y: float, width: float, height: float, name: str, label: str) -> Markup:
    return Markup(
        f'<div class="scroll"><svg class="{name}" role="img" aria-label="{escape(label)}" '
        f'viewBox="{x:.0f} {y:.0f} {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">'
        f"{''.join(parts)}</svg></div>"
    )


def _time_ticks(end: float) -> list[float]:
    """Ticks at round seconds, minutes or hours."""
    unit = 3600 if end > 7200 else 60 if end > 180 else 1
    return [tick * unit for tick in ticks(0, end / unit, 6) if tick * unit <= end * 1.001]


def _state(state: Any) -> str:
    return state if isinstance(state, str) and state in MARK else "pending"


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length * 2 // 3]}…{text[-(length - length * 2 // 3 - 1) :]}"
