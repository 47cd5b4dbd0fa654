"""The composition of a mixture as SVG: what its categories share, and each component's raw and effective size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from pipelines.report.numbers import count, number, percent, size, ticks

WIDTH, LABEL, RIGHT = 920, 190, 170  # pixels: of the picture, of the names, of the figures beside the bars
COLOURS = 8  # classes k0 … k7 of the style sheet
CHAR = 6.9  # pixels of a character at 12 px, nearly


def shortened(text: str, pixels: float, char: float = CHAR) -> str:
    """A text cut to what fits, with an ellipsis."""
    most = max(1, int(pixels / char))
    return text if len(text) <= most else text[: most - 1] + "…"


def groups(components: Sequence[Mapping[str, Any]], field: str) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """(category, its components), the largest first by `field`; without categories each component is its own."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in components:
        found.setdefault(str(row.get("category") or row.get("name") or "component"), []).append(row)
    for rows in found.values():
        rows.sort(key=lambda row: -_amount(row, field))
    return sorted(found.items(), key=lambda item: (-sum(_amount(row, field) for row in item[1]), item[0]))


def picture(components: Sequence[Mapping[str, Any]]) -> Markup:
    """Categories' shares as one bar; below it a pale bar (raw) and a full one (in the mixture) for each component.

    In tokens where they are counted, in bytes otherwise. Nothing where no component has a size.
    """
    tokens = bool(components) and all(_amount(row, "effective_tokens") for row in components)
    raw, effective = ("tokens", "effective_tokens") if tokens else ("bytes", "effective_bytes")
    shown = count if tokens else size
    total = sum(_amount(row, effective) for row in components)
    if not total:
        return Markup("")
    parts: list[str] = []
    grouped = groups(components, effective)
    left = 0.0
    for index, (category, rows) in enumerate(grouped):
        share = sum(_amount(row, effective) for row in rows) / total
        width = share * WIDTH
        title = f"<title>{escape(category)}: {percent(share)}</title>"
        parts.append(
            f'<rect class="k{index % COLOURS}" x="{left:.1f}" y="0" width="{max(0.5, width - 1):.1f}" height="26">'
            f"{title}</rect>"
        )
        text = f"{category} {percent(share)}"
        if len(text) * CHAR < width - 8:
            parts.append(f'<text class="on" x="{left + 6:.1f}" y="17">{escape(text)}</text>')
        left += width
    largest = max(max(_amount(row, raw), _amount(row, effective)) for row in components)
    scale = ticks(0.0, largest, 5)
    bars = WIDTH - LABEL - RIGHT
    y = 46.0
    names = [(category, rows) for category, rows in grouped if len(rows) > 1 or rows[0].get("category")]
    for index, (category, rows) in enumerate(grouped):
        if names:
            label = shortened(category, LABEL + bars, 7.2)
            parts.append(f'<text class="name" x="0" y="{y + 12:.1f}">{escape(label)}</text>')
            y += 20
        for row in rows:
            name = str(row.get("name") or "component")
            parts.append(f'<rect class="k{index % COLOURS}" x="0" y="{y + 7:.1f}" width="9" height="9"/>')
            parts.append(
                f'<text x="15" y="{y + 16:.1f}">{escape(shortened(name, LABEL - 22))}'
                f"<title>{escape(name)}</title></text>"
            )
            for field, top, kind in ((raw, 1, "raw "), (effective, 13, "")):
                width = _amount(row, field) / scale[-1] * bars
                what = "raw" if kind else "in the mixture"
                about = f"<title>{escape(name)}, {what}: {shown(_amount(row, field))}</title>"
                parts.append(
                    f'<rect class="{kind}k{index % COLOURS}" x="{LABEL}" y="{y + top:.1f}" height="10" '
                    f'width="{max(0.5, width):.1f}">{about}</rect>'
                )
            epochs = row.get("epochs")
            said = f"{number(epochs, 3)} epoch{'' if epochs == 1 else 's'}" if isinstance(epochs, int | float) else ""
            part = percent(_amount(row, effective) / total)
            parts.append(f'<text class="tick" x="{WIDTH - RIGHT + 12}" y="{y + 16:.1f}">{said}</text>')
            parts.append(f'<text class="last" x="{WIDTH}" y="{y + 16:.1f}" text-anchor="end">{part}</text>')
            y += 30
        y += 6 if names else 0
    grid = []
    for tick in scale:
        x = LABEL + tick / scale[-1] * bars
        grid.append(f'<line class="grid" x1="{x:.1f}" y1="40" x2="{x:.1f}" y2="{y:.1f}"/>')
        grid.append(f'<text class="tick" x="{x:.1f}" y="{y + 15:.1f}" text-anchor="middle">{shown(tick)}</text>')
    unit = "tokens" if tokens else "bytes of text"
    caption = f"Training text by category, and each component as it is (pale) and in the mixture (full), {unit}"
    return Markup(
        f"<figure><figcaption>{caption}</figcaption>"
        f'<svg class="picture" role="img" aria-label="{caption}" viewBox="0 0 {WIDTH} {y + 22:.0f}">'
        f"{''.join(grid)}{''.join(parts)}</svg></figure>"
    )


def _amount(row: Mapping[str, Any], field: str) -> float:
    value = row.get(field)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    return float(value) if usable else 0.0  # type: ignore[arg-type]
