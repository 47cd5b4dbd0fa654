"""Pictures of a scaling fit: IsoFLOP lines, loss and optimal size over compute, residuals. Points link to runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipelines.report.axes import Frame, legend, linear_axis, log_axis
from pipelines.report.numbers import amount, interval, number, power, signed_percent

SHADES = 8
"""Classes g0 … g7 (areas) and h0 … h7 (lines) of the style sheet: an order, from light to dark."""
BUDGETS = 24
"""Budgets at which a frontier and its band are drawn."""
WIDE = 0.5
"""An interval of an exponent that is wider is cut."""
LEAST = 5e-4
"""Residuals below it are drawn as nothing, not blown up."""
FLOPS = "training compute, FLOPs (log scale)"
APPROACHES = (("3", "k4", "l4", "b4"), ("2", "k2", "l2", "b2"), ("1", "k0", "l0", "b0"))


@dataclass(frozen=True)
class Dot:
    """A measured model, as it is drawn."""

    params: float
    tokens: float
    flops: float
    loss: float
    label: str
    """Whose training curve it is on."""
    about: str
    href: str


@dataclass(frozen=True)
class Predicted:
    """A run at a budget beyond the fit's: what was foretold, and what was measured if it was made."""

    flops: float
    params: float
    tokens: float
    low: float
    high: float
    loss: float
    measured: float | None
    about: str
    href: str


def laws(fit: Mapping[str, Any]) -> dict[str, Any]:
    """{approach: `tasks.scaling.laws.Law`} of those that were not refused."""
    from tasks.scaling.laws import law_from

    found = {}
    for name in ("3", "2", "1"):
        try:
            found[name] = law_from(fit, name)
        except (KeyError, TypeError, ValueError):
            continue
    return found


def charts(
    dots: Sequence[Dot], fit: Mapping[str, Any], predicted: Sequence[Predicted], unit: str
) -> tuple[list[Markup], list[Markup]]:
    """The main pictures and the small ones of the residuals; empty where nothing was measured."""
    if not dots:
        return [], []
    found = laws(fit)
    main = [_isoflop(dots, fit, unit), _loss(dots, found, predicted, unit), *_allocation(dots, fit, found, predicted)]
    return main, list(_residuals(dots, found))


def shade(index: int, of: int) -> int:
    """The shade of one of so many ordered things."""
    return round(index * (SHADES - 1) / (of - 1)) if of > 1 else SHADES // 2


def _shades(values: Sequence[float], apart: float) -> tuple[list[int], list[tuple[float, int]]]:
    """The shade of each value, and (mean value, shade) of each group; values within `apart` in the log are a group."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[list[int]] = []
    for i in order:
        if groups and math.log(values[i] / values[groups[-1][0]]) <= apart:
            groups[-1].append(i)
        else:
            groups.append([i])
    shades = [0] * len(values)
    told = []
    for number_, group in enumerate(groups):
        for i in group:
            shades[i] = shade(number_, len(groups))
        told.append((math.exp(sum(math.log(values[i]) for i in group) / len(group)), shade(number_, len(groups))))
    return shades, told


def _thinned(rows: Sequence[tuple[str, str]], most: int = 12) -> list[tuple[str, str]]:
    step = math.ceil(len(rows) / most)
    return list(rows[::step])


def _isoflop(dots: Sequence[Dot], fit: Mapping[str, Any], unit: str) -> Markup:
    import numpy as np

    from tasks.scaling.approach2 import SPREAD, parabolas
    from tasks.scaling.points import points_of

    points = points_of(
        [d.loss for d in dots],
        params=[d.params for d in dots],
        tokens=[d.tokens for d in dots],
        flops=[d.flops for d in dots],
        run=np.array([d.label for d in dots]),
    )
    shades, budgets = _shades([d.flops for d in dots], SPREAD)
    curves = parabolas(points)
    minima = _minima(fit, "2")
    frame = Frame(
        log_axis("parameters (log scale)", [d.params for d in dots], amount),
        linear_axis(f"loss, {unit}", [*(d.loss for d in dots), *(m["loss"] for m in minima)], number),
    )
    parts = []
    outside = set()
    for curve in curves:
        nearest = min(budgets, key=lambda b: abs(math.log(b[0] / curve["flops"])))
        places = zip(curve["curve_params"].tolist(), curve["curve_loss"].tolist(), strict=True)
        parts.append(frame.line(places, f"line h{nearest[1]}"))
        outside |= {
            (p, v)
            for p, v, i in zip(curve["params"].tolist(), curve["loss"].tolist(), curve["inside"].tolist(), strict=True)
            if not i
        }
    parts.append(frame.line([(m["params"], m["loss"]) for m in minima], "line optimum"))
    for dot, colour in zip(dots, shades, strict=True):
        hollow = (dot.params, dot.loss) in outside
        parts.append(
            frame.dot(dot.params, dot.loss, f"hollow h{colour}" if hollow else f"g{colour}", dot.about, dot.href)
        )
    for m in minima:
        about = f"minimum at {power(m['flops'])} FLOPs: {amount(m['params'])} parameters, loss {number(m['loss'])}"
        parts.append(frame.dot(m["params"], m["loss"], "star", about, shape="diamond"))
    rows = [(f"g{colour}", power(flops, 2)) for flops, colour in reversed(budgets)]
    parts.append(legend(_thinned(rows), frame.width - frame.right + 14, frame.top + 10, "FLOPs"))
    told = "; diamonds: minima of the parabolas" if minima else ""
    hollow_told = "; hollow: outside of its parabola's window" if outside else ""
    return frame.figure(f"IsoFLOP lines: models of one compute budget each{told}{hollow_told}", parts)


def _loss(dots: Sequence[Dot], found: Mapping[str, Any], predicted: Sequence[Predicted], unit: str) -> Markup:
    flops = [d.flops for d in dots] + [p.flops for p in predicted]
    rows = frontier(found.get("3"), min(flops), max(flops))
    heights = [d.loss for d in dots] + [r[2] for r in rows]
    heights += [v for p in predicted for v in (p.low, p.loss, p.high, p.measured or p.loss)]
    frame = Frame(log_axis(FLOPS, flops, _flops), log_axis(f"loss, {unit} (log scale)", heights, number))
    shades, sizes = _shades([d.params for d in dots], 0.02)
    parts = [frame.band([(c, low, high) for c, low, _, high in rows], "area b4")]
    for label in dict.fromkeys(d.label for d in dots if d.label):
        curve = sorted((d.flops, d.loss) for d in dots if d.label == label)
        parts.append(frame.line(curve, "line thin run"))
    parts.append(frame.line([(c, middle) for c, _, middle, _ in rows], "line l4"))
    for dot, colour in zip(dots, shades, strict=True):
        parts.append(frame.dot(dot.flops, dot.loss, f"g{colour}", dot.about, dot.href))
    for p in predicted:
        parts.append(frame.whisker(p.flops, p.low, p.high, "whisker"))
        parts.append(frame.dot(p.flops, p.loss, "hollow foretold", p.about, p.href))
        if p.measured is not None:
            parts.append(frame.dot(p.flops, p.measured, "star", p.about, p.href, shape="diamond"))
            error = signed_percent(p.measured / p.loss - 1)
            parts.append(frame.note(p.flops, min(p.low, p.measured), f"{number(p.measured)}, {error}"))
    told = [("line l4", "efficient frontier, 95 %")] if rows else []
    if predicted:
        told.append(("hollow foretold", "predicted, 95 %"))
    if any(p.measured is not None for p in predicted):
        told.append(("star", "measured"))
    parts.append(legend(told, frame.width - frame.right - 158, frame.top + 16))
    parts.append(
        legend(
            _thinned([(f"g{colour}", amount(size)) for size, colour in reversed(sizes)]),
            frame.width - frame.right + 14, frame.top + 10, "parameters",
        )
    )  # fmt: skip
    return frame.figure("Loss over compute; a thin line joins the points of one training curve", parts)


def frontier(law: Any, low: float, high: float) -> list[tuple[float, float, float, float]]:
    """(FLOPs, low, loss, high) of the compute-optimal models, from half of `low` to twice `high`."""
    if law is None or not law.has_surface:
        return []
    rows = []
    for flops in _budgets(low / 1.3, high * 1.5):
        middle = float(law.optimal_loss(flops))
        span = law.interval(lambda drawn, at=flops: law.optimal_loss(at, drawn)) or [middle, middle]
        rows.append((flops, span[0], middle, span[1]))
    return rows


def _budgets(low: float, high: float) -> list[float]:
    return [low * (high / low) ** (i / (BUDGETS - 1)) for i in range(BUDGETS)]


def _allocation(
    dots: Sequence[Dot], fit: Mapping[str, Any], found: Mapping[str, Any], predicted: Sequence[Predicted]
) -> Iterator[Markup]:
    """The optimal parameters by each approach, and the tokens for each of them."""
    if not found:
        return
    flops = [d.flops for d in dots] + [p.flops for p in predicted]
    budgets = _budgets(min(flops) / 1.3, max(flops) * 1.5)
    x = log_axis(FLOPS, budgets, _flops, pad=0)
    named = []
    for name, _, line, _ in APPROACHES:
        if (law := found.get(name)) is not None:
            exponent = law.values["beta"] / (law.values["alpha"] + law.values["beta"]) if law.has_surface else None
            named.append((f"line {line}", f"approach {name}: N ∝ C^{number(exponent or law.values['exponent_N'], 3)}"))
    more = [("star", "the run beyond the sweep")] if predicted else []
    more.append(("measured", "models of the sweep"))
    for ratio in (False, True):

        def shown(params: Any, tokens: Any, ratio: bool = ratio) -> Any:
            return tokens / params if ratio else params

        lines = {k: [(c, float(shown(*law.optimum(c)))) for c in budgets] for k, law in found.items()}
        measured = [shown(d.params, d.tokens) for d in dots]
        heights = [*measured, *(v for line in lines.values() for _, v in line)]
        heights += [shown(p.params, p.tokens) for p in predicted]
        title = "tokens per parameter (log scale)" if ratio else "parameters (log scale)"
        frame = Frame(x, log_axis(title, heights, amount), right=16)
        under, over = [], []
        for name, mark, line, area in reversed(APPROACHES):
            if name not in found:
                continue
            law = found[name]
            if name == "3" or known(fit, name):
                spans = [(c, law.interval(lambda d, c=c, law=law: shown(*law.optimum(c, d)))) for c in budgets]
                under.append(frame.band([(c, *span) for c, span in spans if span], f"area {area}"))
            over.append(frame.line(lines[name], f"line {line}"))
            for m in _minima(fit, name):
                about = f"approach {name}: {amount(m['params'])} parameters at {power(m['flops'])} FLOPs"
                over.append(frame.dot(m["flops"], shown(m["params"], m["tokens"]), f"{mark} faint", about))
        for dot, value in zip(dots, measured, strict=True):
            under.append(frame.dot(dot.flops, value, "measured", dot.about, dot.href))
        for p in predicted:
            over.append(frame.dot(p.flops, shown(p.params, p.tokens), "star", p.about, p.href, shape="diamond"))
        rows = more if ratio else [*named, *more]
        place = (frame.left + 12, frame.height - frame.bottom - 16 * len(rows) + 4)
        if not ratio:
            place = (frame.width - frame.right - 196, place[1])
        what = "Tokens per parameter at the optimum" if ratio else "Compute-optimal parameters"
        yield frame.figure(f"{what} over compute, with 95 % intervals", [*under, *over, legend(rows, *place)])


def known(fit: Mapping[str, Any], approach: str) -> bool:
    """Whether the exponent's interval says something: one that is wider would only hide the others."""
    part = fit.get(f"approach_{approach}")
    span = (part.get("ci95") or {}).get("exponent_N") if isinstance(part, Mapping) else None
    return span is not None and bool(span[1] - span[0] <= WIDE)


def _residuals(dots: Sequence[Dot], found: Mapping[str, Any]) -> Iterator[Markup]:
    law = found.get("3")
    if law is None:
        return
    left = [d.loss / float(law.loss(d.params, d.tokens)) - 1 for d in dots]
    shades, _ = _shades([d.flops for d in dots], 0.1)
    for word, field, shown in (
        ("parameters", "params", amount),
        ("tokens", "tokens", amount),
        ("FLOPs", "flops", _flops),
    ):
        frame = Frame(
            log_axis(f"{word} (log scale)", [getattr(d, field) for d in dots], shown, wanted=4),
            linear_axis("measured ÷ fitted − 1", [*left, -LEAST, LEAST], signed_percent, wanted=4),
            width=360, height=210, right=12,
        )  # fmt: skip
        parts = [frame.line([(frame.x.low, 0.0), (frame.x.high, 0.0)], "line zero")]
        for dot, residual, colour in zip(dots, left, shades, strict=True):
            about = f"{dot.about}\n{signed_percent(residual)} beside the fit"
            parts.append(frame.dot(getattr(dot, field), residual, f"g{colour}", about, dot.href))
        yield frame.figure(f"Residuals of approach 3 over {word}", parts)


def frontiers(rows: Sequence[tuple[str, Sequence[Dot], Any]], unit: str) -> Markup:
    """Frontiers of several variants whose losses have one unit: (name, its points, its law of approach 3)."""
    drawable = [(name, dots, law) for name, dots, law in rows if dots and law is not None]
    if len(drawable) < 2:
        return Markup("")
    flops = [d.flops for _, dots, _ in drawable for d in dots]
    lines = [frontier(law, min(flops), max(flops)) for _, _, law in drawable]
    heights = [row[2] for line in lines for row in line] + [d.loss for _, dots, _ in drawable for d in dots]
    frame = Frame(log_axis(FLOPS, flops, _flops), log_axis(f"loss, {unit} (log scale)", heights, number), right=16)
    parts, told = [], []
    for index, line in enumerate(lines):
        parts.append(frame.band([(c, low, high) for c, low, _, high in line], f"area b{index % SHADES}"))
    for index, ((name, dots, _), line) in enumerate(zip(drawable, lines, strict=True)):
        parts += [frame.dot(d.flops, d.loss, f"k{index % SHADES} faint", d.about, d.href) for d in dots]
        parts.append(frame.line([(c, middle) for c, _, middle, _ in line], f"line l{index % SHADES}"))
        told.append((f"line l{index % SHADES}", name))
    parts.append(legend(told, frame.width - frame.right - 190, frame.top + 16))
    return frame.figure("Efficient frontiers of the variants, with 95 % intervals", parts)


def forest(rows: Sequence[tuple[str, float, Sequence[float] | None, bool]]) -> Markup:
    """Exponents with their intervals, one below the other: (name, value, interval, whether it is a published one)."""
    if not rows:
        return Markup("")
    width, label, line = 540, 190, 20
    values = [v for _, value, span, _ in rows for v in (value, *(span if span and span[1] - span[0] <= WIDE else ()))]
    axis = linear_axis("", [*values, 0.5], number, wanted=6)
    height = 26 + line * len(rows) + 20

    def to_x(value: float) -> float:
        return label + axis.share(value) * (width - label - 20)

    parts = []
    for value, text in axis.marks:
        x = to_x(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="8" x2="{x:.1f}" y2="{height - 34}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 20}" text-anchor="middle">{text}</text>')
    parts.append(f'<line class="axis" x1="{to_x(0.5):.1f}" y1="8" x2="{to_x(0.5):.1f}" y2="{height - 34}"/>')
    middle = (label + width - 20) / 2
    title = "exponent a, with its 95 % interval"
    parts.append(f'<text class="tick" x="{middle:.0f}" y="{height - 4}" text-anchor="middle">{title}</text>')
    for index, (name, value, span, published) in enumerate(rows):
        y = 20 + line * index
        mark, stroke = ("k7", "l7") if published else ("k0", "l0")
        about = f"<title>{Markup.escape(name)}: {number(value, 3)} ({interval(span)})</title>"
        kind = "tick" if published else "small"
        shown = name if len(name) <= 30 else name[:29] + "…"
        parts.append(f'<text class="{kind}" x="0" y="{y + 4}">{Markup.escape(shown)}{about}</text>')
        if span:
            ends = [to_x(axis.inside(limit)) for limit in span]
            parts.append(f'<path class="line {stroke}" d="M{ends[0]:.1f} {y}H{ends[1]:.1f}">{about}</path>')
        parts.append(f'<circle class="{mark}" cx="{to_x(value):.1f}" cy="{y}" r="4">{about}</circle>')
    caption = "How the optimal model grows, N ∝ C^a; at 0.5 model and data grow alike"
    return Markup(
        f'<figure><figcaption>{caption}</figcaption><svg class="chart" role="img" aria-label="{caption}" '
        f'viewBox="0 0 {width} {height}">{"".join(parts)}</svg></figure>'
    )


def _minima(fit: Mapping[str, Any], approach: str) -> list[dict[str, float]]:
    part = fit.get(f"approach_{approach}")
    rows = part.get("minima") if isinstance(part, Mapping) else None
    fields = ("flops", "params", "tokens", "loss")
    usable = [
        r for r in rows or () if isinstance(r, Mapping) and all(isinstance(r.get(f), int | float) for f in fields)
    ]
    return [{f: float(r[f]) for f in fields} for r in usable if all(r[f] > 0 for f in fields)]


def _flops(value: float) -> str:
    return power(value, 1) if math.log10(value) % 1 < 1e-9 else power(value, 2)
