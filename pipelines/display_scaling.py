"""Fits and budgets as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def short(value: float | None) -> str:
    """A count as people say it: 70.2B, 1.41T."""
    if value is None:
        return "–"
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}" if abs(value) < 1000 * limit else f"{value:.3g}"
    return f"{value:.4g}"


def fit_lines(points: Any, result: Mapping[str, Any]) -> Iterator[str]:
    """`triptych fit` for a person: each fit's estimates with their intervals, how good it is, and its warnings."""
    yield f"{points.source}: {len(points)} points, {points.flops.min():.2g} to {points.flops.max():.2g} FLOPs"
    told = set()
    for name, part in result.items():
        if "refused" in part:
            continue
        yield f"\n{name}"
        values = {**{k: part[k] for k in ("exponent_N", "exponent_D") if k in part}, **part["params"]}
        for key, value in values.items():
            low, high = part["ci95"].get(key, (None, None))
            span = f"   95 %: {low:.4g} to {high:.4g}" if low is not None and high is not None else ""
            error = f" ± {part['se'][key]:.2g}" if key in part["se"] else ""
            yield f"  {key:<12}{value:>12.4g}{error:<12}{span}"
        rms, r2 = 100 * part["residuals"]["rms"], part["residuals"]["r2"]
        line = f"  objective {part['objective']:.6g}, residuals {rms:.2g} % rms, R² {r2:.4f}"
        if "starts" in part:
            starts = part["starts"]
            line += f"; {starts['at_optimum']} of {starts['followed']} starts at the optimum ({starts['tried']} tried)"
        yield line
        for warning in part["warnings"]:
            if warning not in told:
                told.add(warning)
                yield f"  warning: {warning}"
    for name, part in result.items():
        if "refused" in part:
            yield f"\n{name}: refused. {part['refused']}" + (f"; {part['remedy']}" if part["remedy"] else "")


def budget_lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """`triptych budget` for a person."""
    yield f"{found[0]['budget']['said']}: {found[0]['budget']['flops']:.3g} FLOPs"
    for each in found:
        best = each["optimum"]
        yield f"\n{each['law']} ({each['source']})"
        yield f"  parameters  {short(best['params'])}{_span(best['params_ci95'])}   ({each['counts']})"
        ratio = f"{best['tokens_per_param']:.3g} per parameter"
        yield f"  tokens      {short(best['tokens'])}{_span(best['tokens_ci95'])}, {ratio}"
        if best["loss"] is not None:
            span = best["loss_ci95"]
            yield f"  loss        {best['loss']:.3f}" + (f"   95 %: {span[0]:.3f} to {span[1]:.3f}" if span else "")
        if preset := each["nearest_preset"]:
            times = f"{preset['times_optimal']:.2f} times the optimum"
            yield f"  nearest     {preset['name']} ({short(preset['params'])}, {times})"
        if each["over_trained"]:
            yield "  smaller at equal loss:"
        for row in each["over_trained"]:
            size = f"{short(row['params']):>8} on {short(row['tokens']):>6} tokens"
            used = f"pays after {short(row['pays_after_tokens'])} tokens of use"
            yield (
                f"    {size} ({row['tokens_per_param']:,.0f} per parameter), "
                f"{100 * row['extra_compute']:.0f} % more compute; {used}"
            )
        for row in each["machines"]:
            cost = f", {row['usd']:,.0f} USD" if row["usd"] else ", price not known: --node-price or its label"
            many = f" ({row['days_at_most']:,.1f} on {row['at_most']})" if row["at_most"] > 1 else ""
            yield f"  {row['machine']:<12}{row['gpu']}: {row['days']:,.1f} days{many}{cost}"
        for warning in each["warnings"]:
            yield f"  warning: {warning}"


def _span(pair: Sequence[float] | None) -> str:
    return f" ({short(pair[0])} to {short(pair[1])})" if pair else ""


def table_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What well-known budgets should have bought, a column for each law."""
    laws = list(rows[0]["optimal"])
    yield f"{'model':<12}{'FLOPs':>10}  {'as trained':<16}" + "".join(f"{law:<18}" for law in laws)
    for row in rows:
        line = f"{row['model']:<12}{row['flops']:>10.3g}  {short(row['params']) + ' / ' + short(row['tokens']):<16}"
        for law in laws:
            part = row["optimal"][law]
            line += f"{short(part['params']) + ' / ' + short(part['tokens']):<18}"
        yield line
