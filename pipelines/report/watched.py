"""What was watched while a model trained, as SVG: where a step's time goes, memory by part, updates of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from pipelines.report.composition import shortened
from pipelines.report.numbers import count, duration, number, percent, size
from tasks.samples import spaced

STEP_PARTS = ("data", "forward", "backward", "optimizer", "communication", "other")
MEMORY_PARTS = ("parameters", "gradients", "master_weights", "optimizer_state", "buffers")
WIDTH, LABEL, RIGHT = 920, 170, 66  # pixels: of a picture, of names at the left, of figures at the right
COLUMNS = 100
"""Steps that a map of updates shows at most."""


def step_time(timings: Mapping[str, Any]) -> Markup:
    """A bar of a step's parts from a manifest's timings (`step_<part>_seconds`); nothing where there are none."""
    parts = _amounts({part: timings.get(f"step_{part}_seconds") for part in STEP_PARTS})
    total = sum(parts.values())
    if not total:
        return Markup("")
    caption = f"Where the time of a step goes: medians on rank 0, {_time(total)} together"
    return _bar(caption, parts, total, _time)


def memory(timings: Mapping[str, Any]) -> Markup:
    """A bar of what the engine held, from a manifest's timings (`memory/<part>`); nothing where there is none."""
    parts = _amounts({part.replace("_", " "): timings.get(f"memory/{part}") for part in MEMORY_PARTS})
    total = sum(parts.values())
    if not total:
        return Markup("")
    peaks = [("process", timings.get("memory/peak_rss")), ("GPU", timings.get("memory/peak_cuda"))]
    told = "".join(f"; peak of the {name} {size(value)}" for name, value in peaks if _usable(value))
    return _bar(
        f"Memory that the engine holds, of the fullest worker: {size(total)} together{told}", parts, total, size
    )


def _bar(caption: str, parts: Mapping[str, float], total: float, shown: Any) -> Markup:
    drawn, left = [], 0.0
    for index, (part, amount) in enumerate(parts.items()):
        width = amount / total * WIDTH
        about = f"<title>{escape(part)}: {shown(amount)}, {percent(amount / total)}</title>"
        drawn.append(
            f'<rect class="k{index}" x="{left:.1f}" y="0" width="{max(0.3, width - 1):.1f}" height="26">{about}</rect>'
        )
        left += width
    x, y = 0.0, 48
    for index, (part, amount) in enumerate(parts.items()):
        text = f"{part} {shown(amount)}, {percent(amount / total)}"
        needed = 15 + 6.9 * len(text) + 22
        if x and x + needed > WIDTH:
            x, y = 0.0, y + 20
        drawn.append(f'<rect class="k{index}" x="{x:.1f}" y="{y - 9}" width="9" height="9"/>')
        drawn.append(f'<text x="{x + 15:.1f}" y="{y}">{escape(text)}</text>')
        x += needed
    return _figure(caption, y + 10, drawn)


def updates(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """A map of ‖Δw‖/‖w‖: a line for each layer, a column for each measured step (`updates.jsonl`); darker is more."""
    usable = [row for row in rows if isinstance(row.get("layers"), Mapping) and _usable(row.get("step"))]
    if len(usable) > COLUMNS:
        usable = [usable[round(i * (len(usable) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]
    layers = list(dict.fromkeys(str(layer) for row in usable for layer in row["layers"]))
    ratios = {
        (layer, column): float(figures[0])
        for column, row in enumerate(usable)
        for layer, figures in row["layers"].items()
        if isinstance(figures, Sequence) and figures and _usable(figures[0])
    }
    positive = [ratio for ratio in ratios.values() if ratio > 0]
    if not positive:
        return Markup("")
    low, high = math.log10(min(positive)), math.log10(max(positive))
    cell, row_height = (WIDTH - LABEL - RIGHT) / len(usable), 17
    drawn = []
    for line, layer in enumerate(layers):
        y = line * row_height
        drawn.append(f'<text x="0" y="{y + 13}">{escape(shortened(layer, LABEL - 10))}</text>')
        for column, row in enumerate(usable):
            ratio = ratios.get((layer, column), 0.0)
            if ratio > 0:
                shade = 0.08 + 0.92 * (math.log10(ratio) - low) / ((high - low) or 1)
                about = f"<title>{escape(layer)}, step {count(row['step'])}: {number(ratio, 3)}</title>"
                drawn.append(
                    f'<rect class="k0" fill-opacity="{shade:.2f}" x="{LABEL + column * cell:.1f}" y="{y}" '
                    f'width="{cell + 0.2:.1f}" height="{row_height - 2}">{about}</rect>'
                )
        last = ratios.get((layer, len(usable) - 1))
        if last is not None:
            drawn.append(f'<text class="last" x="{WIDTH}" y="{y + 13}" text-anchor="end">{number(last, 2)}</text>')
    y = len(layers) * row_height + 14
    for column, anchor in ((0, "start"), (len(usable) - 1, "end")) if len(usable) > 1 else ((0, "start"),):
        x = LABEL + (column + (anchor == "end")) * cell
        step = f"step {count(usable[column]['step'])}"
        drawn.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{step}</text>')
    told = f"{number(10**low, 2)} (pale) to {number(10**high, 2)} (full), the last one at the right"
    return _figure(f"How far an update moves each layer, ‖Δw‖ / ‖w‖: {told}", y + 6, drawn)


def samples(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`samples.json` for the template: [{step, samples}], the newest first; places know whether they are right."""
    found = []
    for row in rows:
        kept = [_sample(sample) for sample in row.get("samples") or [] if isinstance(sample, Mapping)]
        if kept:
            found.append({"step": row.get("step"), "samples": kept})
    return found[::-1]


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    if "pieces" not in sample:
        return {name: str(sample.get(name, "")) for name in ("prompt", "written", "truth")}
    pieces = []
    known = [p if isinstance(p, Mapping) and {"truth", "token"} & set(p) else str(p) for p in sample["pieces"]]
    for space, piece in spaced(known):
        if not isinstance(piece, Mapping):
            pieces.append({"text": space + piece})
        else:
            pieces.append({"space": space, **(_judged(piece) if "token" in piece else _predicted(piece))})
    return {"pieces": pieces}


def _predicted(piece: Mapping[str, Any]) -> dict[str, Any]:
    """A masked place: the model's first choice, and the truth where it is another."""
    (first, share), *rest = piece.get("top") or [["", 0.0]]
    others = ", ".join(f"{token} {percent(p)}" for token, p in rest)
    right = first == piece.get("truth")
    about = {"text": first, "share": percent(share), "others": others, "right": right, "masked": True}
    return {**about, "truth": None if right else piece.get("truth")}


def _judged(piece: Mapping[str, Any]) -> dict[str, Any]:
    """A token that may be a replacement: the discriminator's probability, and the original where it is one."""
    share, truth = piece.get("replaced") or 0.0, piece.get("truth")
    told = truth is not None or share >= 0.5
    about = {"text": piece["token"], "share": percent(share), "others": "" if told else percent(share), "masked": told}
    return {**about, "right": (share >= 0.5) == (truth is not None), "truth": truth, "judged": True}


def _figure(caption: str, height: float, drawn: Sequence[str]) -> Markup:
    return Markup(
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<svg class="picture" role="img" aria-label="{escape(caption)}" viewBox="0 0 {WIDTH} {height:.0f}">'
        f"{''.join(drawn)}</svg></figure>"
    )


def _time(seconds: float) -> str:
    return f"{number(1000 * seconds, 3)} ms" if seconds < 10 else duration(seconds)


def _amounts(found: Mapping[str, Any]) -> dict[str, float]:
    return {part: float(amount) for part, amount in found.items() if _usable(amount)}


def _usable(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
