"""The report's pictures as files of their own, for MLflow's artifacts: of a run's data and of its training."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.report import watched
from pipelines.report.data import data_section
from pipelines.report.scaling import scaling_section

_MARGIN = 14  # pixels around a picture
_BACKGROUND = f'<rect x="-{_MARGIN}" y="-{_MARGIN}" width="110%" height="110%" fill="#ffffff"/>'


def data_pictures(view: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(file name, SVG) of each picture that the report's section on data has."""
    stages = [
        {"name": str(stage.get("name")), "inputs": [str(name) for name in stage.get("inputs") or ()]}
        for stage in view.get("stages") or ()
    ]
    data = data_section(view, stages)
    for item in data["compositions"]:
        if item["picture"]:
            yield f"plots/composition-{item['stage']}.svg", standalone(item["picture"])
    for item in data["funnels"]:
        if item["picture"]:
            yield f"plots/funnel-{item['stage']}.svg", standalone(item["picture"])
    for item in data["comparisons"]:
        for number, chart in enumerate(item["charts"], start=1):
            yield f"plots/{item['stage']}-{number}.svg", standalone(chart)


def training_pictures(view: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(file name, SVG) of what was watched in each training: a step's time, memory, updates of layers."""
    for item in view.get("training") or ():
        timings, updates = item.get("timings") or {}, item.get("updates") or []
        found = {
            "step-time": watched.step_time(timings),
            "memory": watched.memory(timings),
            "updates": watched.updates(updates),
        }
        for kind, picture in found.items():
            if picture:
                yield f"plots/{kind}-{item['stage']}.svg", standalone(picture)


def scaling_pictures(view: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(file name, SVG) of each picture that the report's section on scaling laws has; links to MLflow stay."""
    section = scaling_section(view, ())
    for item in section.get("variants", ()):
        for number, chart in enumerate([*item["charts"], *item["residuals"]], start=1):
            yield f"plots/scaling-{item['name']}-{number}.svg", standalone(chart)
    for name in ("forest", "frontiers"):
        found = section.get(name) or ()
        for number, chart in enumerate([found] if isinstance(found, str) and found else found, start=1):
            yield f"plots/scaling-{name}-{number}.svg", standalone(chart)


def standalone(markup: str) -> str:
    """The `<svg>` in a figure as a file: with its name space, the page's light colours and a background."""
    markup = str(markup)  # as markup it would escape what is put into it
    start = markup.index("<svg")
    inside = markup.index(">", start) + 1
    head = markup[start:inside].replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    width, height = map(float, head.split('viewBox="0 0 ')[1].split('"')[0].split())
    size = f'{width + 2 * _MARGIN:.0f} {height + 2 * _MARGIN:.0f}"'
    head = f'{head.split("viewBox=")[0]}viewBox="-{_MARGIN} -{_MARGIN} {size}>'
    body = markup[inside : markup.index("</svg>")]
    return f"{head}<style>{_style()}</style>{_BACKGROUND}{body}</svg>\n"


@functools.cache
def _style() -> str:
    """The page's style sheet without what dark screens, small ones and printers change."""
    text = (Path(__file__).parent / "style.css.j2").read_text(encoding="utf-8")
    kept, depth, skipping = [], 0, False
    for line in text.splitlines():
        skipping = skipping or (depth == 0 and line.startswith("@media"))
        depth += line.count("{") - line.count("}")
        if not skipping:
            kept.append(line)
        skipping = skipping and depth > 0
    return "\n".join(kept).replace("color-scheme: light dark;", "").replace("<", "&lt;")
