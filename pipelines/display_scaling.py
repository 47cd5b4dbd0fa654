"""Fits and budgets as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def short(value: float | None) -> str:
    """A count as people say it: 70.2B, 1.41T."""
    if value is None:
        return "–"
    if abs(value) >= 1e3:
        value = float(f"{value:.3g}")  # 999,900 is 1M, not 1e+03K
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}" if abs(value) < 1000 * limit else f"{value:.3g}"
    return f"{value:.4g}"


def fit_lines(points: Any, result: Mapping[str, Any]) -> Iterator[str]:
    """`triptych fit` for a person: each fit's estimates with their intervals, how good it is, and its warnings."""
    unit = f", losses in {points.unit}" if points.unit else ""
    yield f"{points.source}: {len(points)} points, {points.flops.min():.2g} to {points.flops.max():.2g} FLOPs{unit}"
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


def comparison_lines(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Variants compared, for a person: exponents, losses at budgets, crossovers, what is assumed."""
    assumed: dict[str, None] = {}
    for approach, part in found.items():
        for pair in part["pairs"]:
            drawn = ", resampled together" if pair["paired"] else ""
            yield f"\n{pair['a']} against {pair['b']}: {approach.replace('_', ' ')}{drawn}"
            yield from _exponent_lines(pair)
            yield from _loss_lines(pair)
            yield from _crossover_lines(pair)
        if len(part["variants"]) > 2 and part["winners"]:
            yield f"\nlowest of all: {approach.replace('_', ' ')}"
            yield from _winner_lines(part)
        for warning in part["warnings"]:
            yield f"  warning: {warning}"
        assumed |= dict.fromkeys(part["assumed"])
    yield "\nassumed: " + "; ".join(assumed)


def _exponent_lines(pair: Mapping[str, Any]) -> Iterator[str]:
    a, b = pair["a"], pair["b"]
    wide = max(10, len(a), len(b)) + 2
    yield f"  {'':<12}{a:>{wide}}{b:>{wide}}{'difference':>13}  {'95 %':<22}{'P(first larger)':<17}larger"
    for name, row in pair["exponents"].items():
        values = "".join(f"{row['values'][n]:>{wide}.4g}" for n in (a, b))
        yield f"  {name:<12}{values}{row['difference']:>+13.3g}  {_sure(row, 'probability_larger', 17)}"


def _loss_lines(pair: Mapping[str, Any]) -> Iterator[str]:
    a, b = pair["a"], pair["b"]
    if not pair["losses"]:
        return
    wide = max(10, len(a), len(b)) + 2
    yield "  optimal loss at a budget"
    yield f"  {'FLOPs':<12}{a:>{wide}}{b:>{wide}}{'difference':>13}  {'95 %':<22}{'P(first lower)':<17}lower"
    for row in pair["losses"]:
        values = "".join(f"{row['values'][n]:>{wide}.4g}" for n in (a, b))
        flops = f"{row['flops']:.3g}" + ("*" if row["extrapolated"] else "")
        yield f"  {flops:<12}{values}{row['difference']:>+13.3g}  {_sure(row, 'probability_lower', 17)}"
        behind, ahead = (a, b) if row["difference"] > 0 else (b, a)
        times = row["compute_multiplier"][behind]
        value = "never reaches" if times["value"] is None else f"needs {times['value']:.3g} times the compute for"
        span = f" ({_open(times['ci95'])})" if times["ci95"] else ""
        yield f"  {'':<12}{behind} {value} the loss of {ahead}{span}"
    if any(row["extrapolated"] for row in pair["losses"]):
        yield "  * beyond ten times the largest compute that both were measured at: extrapolated"


def _crossover_lines(pair: Mapping[str, Any]) -> Iterator[str]:
    if (crossover := pair["crossover"]) is None:
        return
    low, high = crossover["searched"]
    range_ = f"between {low:.2g} and {high:.2g} FLOPs"
    for cross in crossover["found"]:
        told = [f"95 %: {_open(cross['ci95'])}"] if cross["ci95"] and any(cross["ci95"]) else []
        told += [f"in {100 * cross['share']:.0f} % of the draws"] if cross["share"] is not None else []
        if cross["flops"] is None:
            yield f"  crossover to {cross['after']}: not by the best estimates; {', '.join(told)} {range_}"
        else:
            told += ["extrapolated"] if cross["extrapolated"] else []
            yield f"  crossover: {cross['after']} is lower from {cross['flops']:.3g} FLOPs on ({', '.join(told)})"
    if not crossover["found"]:
        share = "" if crossover["share"] is None else f" (in {100 * crossover['share']:.0f} % of the draws)"
        yield f"  no crossover {range_}{share}"


def _winner_lines(part: Mapping[str, Any]) -> Iterator[str]:
    far = {row["flops"] for row in part["budgets"] if row["extrapolated"]}
    for row in part["winners"]:
        flops = f"{row['flops']:.3g}" + ("*" if row["flops"] in far else "")
        shares = sorted((row["probability"] or {}).items(), key=lambda item: -item[1])
        told = ", ".join(f"{name} {share:.2f}" for name, share in shares)
        yield f"  {flops:<12}{row['lowest']:<14}{row['loss']:>10.4g}   P: {told or '–'}   {row['verdict']}"


def _sure(row: Mapping[str, Any], probability: str, wide: int) -> str:
    span = "–" if row["ci95"] is None else f"{row['ci95'][0]:.3g} to {row['ci95'][1]:.3g}"
    share = "–" if row[probability] is None else f"{row[probability]:.3f}"
    return f"{span:<22}{share:<{wide}}{row['verdict']}"


def _open(pair: Sequence[float | None]) -> str:
    """An interval whose ends may lie below all that was searched, or at no compute at all."""
    low, high = pair
    first = ("never" if high is None else "below the range") if low is None else f"{low:.3g}"
    second = "never" if high is None else f"{high:.3g}"
    return first if first == second else f"{first} to {second}"


def sweep_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A sweep's comparison for a person: exponents by variant, then what was predicted and what came."""
    for name, variant in found["variants"].items():
        low, high = variant["flops"]
        yield (
            f"{name} ({variant['architecture']}, {variant['objective']}): {variant['points']} runs of "
            f"{variant['models']} sizes, {low:.2g} to {high:.2g} FLOPs"
        )
        for approach, exponents in variant["exponents"].items():
            said = (
                f"{'N' if key == 'exponent_N' else 'D'} ∝ C^{each['value']:.3f}"
                + (f" ({each['ci95'][0]:.3f} to {each['ci95'][1]:.3f})" if each["ci95"] else "")
                for key, each in exponents.items()
            )
            yield f"  {approach:<12}{', '.join(said)}"
    for each in found["predictions"]:
        yield (
            f"{each['variant']} at {each['times_largest']:.1f} times the largest compute "
            f"({short(each['params'])} on {short(each['tokens'])} tokens): predicted {each['predicted_loss']:.4f}"
            + (f" ({each['ci95'][0]:.4f} to {each['ci95'][1]:.4f})" if each["ci95"] else "")
            + f", measured {each['measured_loss']:.4f} {each['unit']}: {100 * each['error']:+.2f} %"
        )
        told = {name: error for name, error in (each.get("held_out") or {}).items() if error is not None}
        told = {name: error for name, error in told.items() if name in each["by_form"]}
        if told:
            yield "  weighted by errors on the sweep's largest budget, foretold without it:"
        for name in sorted(told, key=lambda name: -each["weights"][name]):
            loss, weight = each["by_form"][name], each["weights"][name]
            yield f"    {loss:.4f}  weight {weight:.2f}, error {100 * told[name]:.1f} %  {name}"
    for warning in found["warnings"]:
        yield f"warning: {warning}"


def budget_lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """`triptych budget` for a person."""
    said, flops = found[0]["budget"]["said"], f"{found[0]['budget']['flops']:.3g} FLOPs"
    yield said if said.startswith(flops) else f"{said}: {flops}"
    for each in found:
        best = each["optimum"]
        yield f"\n{each['law']} ({each['source']})"
        yield f"  parameters  {short(best['params'])}{_span(best['params_ci95'])}   ({each['counts']})"
        ratio = f"{best['tokens_per_param']:.3g} per parameter"
        yield f"  tokens      {short(best['tokens'])}{_span(best['tokens_ci95'])}, {ratio}"
        if best["loss"] is not None:
            span = best["loss_ci95"]
            unit = f" {each['unit']}" if each["unit"] else ""
            told = f"   95 %: {span[0]:.3f} to {span[1]:.3f}" if span else ""
            yield f"  loss        {best['loss']:.3f}{unit}{told}"
        if preset := each["nearest_preset"]:
            times = f"{preset['times_optimal']:.3g} times the optimum"
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
