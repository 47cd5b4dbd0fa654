"""The funnel of a cleaned corpus as SVG: documents and bytes after each step, and what the step took away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from pipelines.report.composition import shortened
from pipelines.report.numbers import count, percent, size

WIDTH, LABEL, GAP, FIGURES, ROW = 920, 176, 22, 150, 27  # pixels; FIGURES beside the bars of each half


def picture(steps: Sequence[Mapping[str, Any]]) -> Markup:
    """A row for each step: a bar of the documents that are left and one of their bytes; what went is red.

    steps: rows of `funnel` in `corpus.json`, the first the input. Nothing where there is no size.
    """
    if len(steps) < 2 or not _amount(steps[0], "documents"):
        return Markup("")
    half = (WIDTH - LABEL - GAP) / 2
    bars = half - FIGURES
    top, parts = 22.0, []
    for column, (field, title, shown) in enumerate(
        (("documents", "documents after the step", count), ("bytes", "text after the step", size))
    ):
        x = LABEL + column * (half + GAP)
        parts.append(f'<text class="tick" x="{x:.1f}" y="12">{title}</text>')
        most = max(_amount(step, field) for step in steps) or 1.0
        before = _amount(steps[0], field)
        for number, step in enumerate(steps):
            y = top + number * ROW
            left = _amount(step, field)
            width, lost = left / most * bars, max(0.0, before - left) / most * bars
            name = str(step.get("step") or "step")
            label = f"<title>{escape(name)}: {shown(left)}</title>"
            parts.append(
                f'<rect class="kept" x="{x:.1f}" y="{y:.1f}" width="{max(0.5, width):.1f}" height="18">{label}</rect>'
            )
            if lost > 0:
                label = f"<title>{escape(name)} took away {shown(before - left)}</title>"
                parts.append(
                    f'<rect class="gone" x="{x + width:.1f}" y="{y:.1f}" width="{max(1.0, lost):.1f}" height="18">'
                    f"{label}</rect>"
                )
            parts.append(f'<text class="last" x="{x + bars + 8:.1f}" y="{y + 13:.1f}">{shown(left)}</text>')
            if number and left != before:
                change = (left - before) / before if before else 0.0
                said = ("−" if change < 0 else "+") + percent(abs(change)) if abs(change) >= 1e-4 else "<0.01 %"
                parts.append(
                    f'<text class="tick" x="{x + half:.1f}" y="{y + 13:.1f}" text-anchor="end">{escape(said)}</text>'
                )
            before = left
    for number, step in enumerate(steps):
        name = str(step.get("step") or "step")
        parts.append(
            f'<text x="0" y="{top + number * ROW + 13:.1f}">{escape(shortened(name, LABEL - 8))}'
            f"<title>{escape(name)}</title></text>"
        )
    return Markup(
        f'<svg class="picture" role="img" aria-label="documents and bytes after each cleaning step" '
        f'viewBox="0 0 {WIDTH} {top + len(steps) * ROW:.0f}">{"".join(parts)}</svg>'
    )


def visible(text: Any) -> str:
    """A sample as a person can see it: characters that print nothing or turn the line around get a name."""
    return "".join(_named(c) for c in str(text if text is not None else ""))


def _named(c: str) -> str:
    code = ord(c)
    if c in "\n\t" or 0x20 <= code < 0x7F:
        return c
    if code < 0x20:
        return chr(0x2400 + code)  # the picture of a control character: ␀ for NUL
    invisible = (
        code in (0x7F, 0xAD, 0x061C, 0xFEFF)
        or 0x80 <= code < 0xA0
        or 0x200B <= code <= 0x200F
        or 0x2028 <= code <= 0x202E
        or 0x2060 <= code <= 0x206F
        or 0xFFF0 <= code <= 0xFFFB
        or 0xD800 <= code < 0xE000
    )
    return f"⟨U+{code:04X}⟩" if invisible else c


def _amount(row: Mapping[str, Any], field: str) -> float:
    value = row.get(field)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0.0
