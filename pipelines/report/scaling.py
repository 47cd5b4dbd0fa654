"""The report's section on scaling laws: each variant's fit with the runs it cites, predictions, variants compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.report import scaling_charts as charts
from pipelines.report.numbers import amount, number, power, signed_percent
from pipelines.report.scaling_charts import Dot, Predicted

UNIT = "nats per token"
REFERENCES = ("chinchilla-1", "chinchilla-2", "chinchilla-3", "epoch", "kaplan")


def scaling_section(view: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the template shows of `scaling` and `scaling_comparison`; an empty dict where the run has neither."""
    sweeps = [item for item in _list(view.get("scaling")) if isinstance(item, Mapping)]
    comparison = _map(view.get("scaling_comparison"))
    if not sweeps and not comparison:
        return {}
    names = {str(stage.get("name")) for stage in stages}
    units = {str(sweep.get("variant")): str(sweep.get("unit") or "") for sweep in sweeps}
    predictions = [_prediction(row, names) for row in _mappings(comparison.get("predictions"))]
    for row in predictions:
        row["unit"] = row["unit"] or units.get(row["variant"], "")
    shared = {unit for unit in units.values() if unit}
    variants = [_variant(sweep, predictions, names) for sweep in sweeps]
    exponents = list(_exponents(variants, comparison))
    published = list(_published()) if exponents else []
    drawn = [(f"{r['variant']}, approach {r['approach']}", r["value"], r["span"], False) for r in exponents]
    drawn += [(row["law"], row["value"], row["span"], True) for row in published]
    pairs = [pair for row in _mappings(comparison.get("pairs")) if (pair := _pair(row))]
    return {
        "variants": variants,
        "exponents": exponents,
        "published": published,
        "forest": charts.forest(drawn),
        # two objectives' losses may share a unit and still say nothing of each other
        "frontiers": _frontiers(variants) if comparison.get("comparable") is True else [],
        "predictions": predictions,
        "pairs": pairs,
        "unit": str(comparison.get("unit") or (min(shared) if len(shared) == 1 else "")),
        "winners": [_winner(row) for row in _mappings(comparison.get("winners"))] if len(pairs) > 1 else [],
        "said": [str(text) for name in ("assumed", "warnings") for text in _list(comparison.get(name))],
    }


def headline(section: Mapping[str, Any]) -> str:
    """What came out, in a sentence or two: the exponent of each variant and how far off the predictions were."""
    first: dict[str, str] = {}
    for row in section.get("exponents", ()):
        first.setdefault(row["variant"], f"{row['variant']}: N ∝ C^{number(row['value'], 3)}")
    said = [f"{', '.join(first.values())}."] if first else []
    made = [row for row in section.get("predictions", ()) if row["error"] is not None]
    if made:
        worst = max(made, key=lambda row: abs(row["error"]))
        of = {1: "the run", 2: "both runs"}.get(len(made), f"all {len(made)} runs")
        said.append(f"The loss of {of} beyond the sweep was predicted within {abs(worst['error']) * 100:.2g} %.")
    return " ".join(said)


def _variant(sweep: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], names: set[str]) -> dict[str, Any]:
    name = str(sweep.get("variant") or sweep.get("stage") or "sweep")
    unit = str(sweep.get("unit") or UNIT)
    fit = _map(sweep.get("fit"))
    rows = [_row(point, names) for point in _mappings(sweep.get("points"))]
    rows.sort(key=lambda row: (row["flops"] or 0, row["params"] or 0))
    dots = [_dot(row, unit) for row in rows if _positive(row, "params", "tokens", "flops", "loss")]
    following = _map(sweep.get("next"))
    ahead = [p for p in predictions if p["variant"] == name] or ([_prediction(following, names)] if following else [])
    beyond = [_predicted(p, unit) for p in ahead if _positive(p, "flops", "params", "tokens", "predicted_loss")]
    main, small = charts.charts(dots, fit, beyond, unit)
    parts = {key: _map(part) for key, part in fit.items()}
    return {
        "name": name,
        "unit": unit,
        "about": ", ".join(str(sweep[k]) for k in ("architecture", "objective") if sweep.get(k) and sweep[k] != name),
        "stage": sweep.get("stage"),
        "key": str(sweep.get("key") or ""),
        "href": _href(sweep, names),
        "page": _map(sweep.get("maker")),
        "charts": main,
        "residuals": small,
        "fit": fit,
        "dots": dots,
        "rows": rows,
        "models": len({row["run"] for row in rows if row["run"]}),
        "changed": [row for row in rows if row["changed"]],
        "refused": [(key, part["refused"], part.get("remedy")) for key, part in parts.items() if part.get("refused")],
        "warnings": list(dict.fromkeys(str(w) for part in parts.values() for w in _list(part.get("warnings")))),
        "quality": [row for key, part in parts.items() if (row := _quality(key, part))],
        "left_out": _mappings(sweep.get("left_out")),
        "why_left_out": _reasons(_mappings(sweep.get("left_out"))),
        "stopped": str(sweep.get("stopped") or ""),
        "next": following,
    }


def _reasons(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """The commonest reasons, with how many runs each is of; a run that another one stood before has that one's."""
    counts = Counter(str(row.get("reason") or "no reason told").rpartition("which is not made: ")[2] for row in rows)
    return counts.most_common(2)


def _row(point: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """A point with every field that the page shows; None where it is missing or no number."""
    fields = ("line", "layers", "width", "params", "tokens", "flops", "loss", "learning_rate", "batch_tokens", "steps")
    return {
        **{field: _number(point.get(field)) for field in (*fields, "seconds")},
        **{field: str(point.get(field) or "") for field in ("stage", "run", "key", "changed")},
        "href": _href(point, names),
        "page": _map(point.get("maker")),
    }


def _dot(row: Mapping[str, Any], unit: str) -> Dot:
    size = f"\n{row['layers']:.0f} layers of width {row['width']:.0f}" if row["layers"] and row["width"] else ""
    about = (
        f"{row['stage']}{size}\nN = {amount(row['params'])} parameters, D = {amount(row['tokens'])} tokens, "
        f"C = {power(row['flops'])} FLOPs\nloss {number(row['loss'])} {unit}"
    )
    return Dot(row["params"], row["tokens"], row["flops"], row["loss"], row["run"], about, row["href"])


def _prediction(row: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    fields = ("flops", "params", "tokens", "layers", "width", "predicted_loss", "measured_loss", "error")
    found: dict[str, Any] = {field: _number(row.get(field)) for field in (*fields, "times_largest")}
    if found["error"] is None and found["measured_loss"] and found["predicted_loss"]:
        found["error"] = found["measured_loss"] / found["predicted_loss"] - 1
    span = _span(row.get("ci95"))
    inside = None
    if span and found["measured_loss"] is not None:
        inside = span[0] <= found["measured_loss"] <= span[1]
    more = {name: str(row.get(name) or "") for name in ("variant", "stage", "key", "changed", "unit")}
    return {**found, **more, "span": span, "inside": inside, "href": _href(row, names), "page": _map(row.get("maker"))}


def _predicted(row: Mapping[str, Any], unit: str) -> Predicted:
    low, high = row["span"] or (row["predicted_loss"], row["predicted_loss"])
    about = f"{row['stage'] or 'the next run'}\nN = {amount(row['params'])} parameters, "
    about += f"D = {amount(row['tokens'])} tokens, "
    about += f"C = {power(row['flops'])} FLOPs"
    about += f"\npredicted {number(row['predicted_loss'])} ({number(low)} to {number(high)}) {unit}"
    if row["measured_loss"] is not None:
        about += f"\nmeasured {number(row['measured_loss'])}, {signed_percent(row['error'])}"
    return Predicted(
        flops=row["flops"], params=row["params"], tokens=row["tokens"], low=low, high=high, loss=row["predicted_loss"],
        measured=row["measured_loss"], about=about, href=row["href"],
    )  # fmt: skip


def _exponents(variants: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each variant and approach, from its fit; from the comparison where the fit is not of this run."""
    seen = set()
    for variant in variants:
        flops = [dot.flops for dot in variant["dots"]]
        for approach in ("3", "2", "1"):
            part = _map(variant["fit"].get(f"approach_{approach}"))
            if _finite(part.get("exponent_N")):
                seen.add(variant["name"])
                span = _map(part.get("ci95"))
                yield {
                    "variant": variant["name"],
                    "approach": approach,
                    "value": float(part["exponent_N"]),
                    "span": _span(span.get("exponent_N")),
                    "data": _number(part.get("exponent_D")),
                    "data_span": _span(span.get("exponent_D")),
                    "points": len(variant["dots"]),
                    "models": variant["models"],
                    "flops": [min(flops), max(flops)] if flops else None,
                }
    for name, found in _map(comparison.get("variants")).items():
        for approach, part in _map(_map(found).get("exponents")).items() if name not in seen else ():
            size, data = _map(_map(part).get("exponent_N")), _map(_map(part).get("exponent_D"))
            if _finite(size.get("value")):
                yield {
                    "variant": str(name),
                    "approach": str(approach).removeprefix("approach_"),
                    "value": float(size["value"]),
                    "span": _span(size.get("ci95")),
                    "data": _number(data.get("value")),
                    "data_span": _span(data.get("ci95")),
                    "points": _number(found.get("points")),
                    "models": _number(found.get("models")),
                    "flops": _span(found.get("flops")),
                }


def _published() -> Iterator[dict[str, Any]]:
    from tasks.scaling.budget import exponent
    from tasks.scaling.published import published

    for name in REFERENCES:
        law = published(name)
        own = "exponent_N" in law.draws
        span = (
            law.interval(lambda d: d["exponent_N"])
            if own
            else law.interval(lambda d: d["beta"] / (d["alpha"] + d["beta"]))
        )
        yield {
            "law": name,
            "source": law.source,
            "value": float(exponent(law)),
            "span": _span(span),
            "counts": law.counts,
        }


def _frontiers(variants: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A picture for each unit that several variants share."""
    found = []
    for unit in dict.fromkeys(variant["unit"] for variant in variants):
        rows = [(v["name"], v["dots"], charts.laws(v["fit"]).get("3")) for v in variants if v["unit"] == unit]
        if picture := charts.frontiers(rows, unit):
            found.append(picture)
    return found


def _pair(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Two variants, as `tasks.scaling.compare` says it."""
    a, b = str(row.get("a") or ""), str(row.get("b") or "")
    if not a or not b:
        return None
    exponents = _map(row.get("exponents"))
    size = _map(exponents.get("exponent_N"))
    losses = [
        {
            "flops": _number(at.get("flops")),
            "first": _number(_map(at.get("values")).get(a)),
            "second": _number(_map(at.get("values")).get(b)),
            "difference": _number(at.get("difference")),
            "span": _span(at.get("ci95")),
            "probability": _number(at.get("probability_lower")),
            "verdict": str(at.get("verdict") or ""),
            "extrapolated": bool(at.get("extrapolated")),
        }
        for at in _mappings(row.get("losses"))
    ]
    crossings = [
        {
            "flops": _number(at.get("flops")),
            "span": at.get("ci95") if any(_list(at.get("ci95"))) else None,
            "share": _number(at.get("share")),
            "before": at.get("before"),
            "after": at.get("after"),
            "extrapolated": bool(at.get("extrapolated")),
        }
        for at in _mappings(_map(row.get("crossover")).get("found"))
    ]
    return {
        "a": a,
        "b": b,
        "difference": _number(size.get("difference")),
        "span": _span(size.get("ci95")),
        "probability": _number(size.get("probability_larger")),
        "verdict": str(size.get("verdict") or ""),
        "losses": losses,
        "crossings": crossings,
    }


def _winner(row: Mapping[str, Any]) -> dict[str, Any]:
    shares = _map(row.get("probability"))
    return {
        "flops": _number(row.get("flops")),
        "lowest": row.get("lowest"),
        "loss": _number(row.get("loss")),
        "shares": [(str(name), share) for name, share in shares.items() if _finite(share)],
        "decided": row.get("verdict") == row.get("lowest"),
    }


def _quality(name: str, part: Mapping[str, Any]) -> dict[str, Any] | None:
    """How well a fit's form holds: its residuals, and what they still depend on."""
    residuals = _map(part.get("residuals"))
    if not part.get("params"):
        return None
    return {
        "name": name.replace("_", " "),
        "params": [(k, v, _span(_map(part.get("ci95")).get(k))) for k, v in _map(part.get("params")).items()],
        "rms": _number(residuals.get("rms")),
        "r2": _number(residuals.get("r2")),
        "objective": _number(part.get("objective")),
        "trends": [k.removeprefix("log_").replace("_", " ") for k, t in _map(residuals.get("trend_t")).items()
                   if _finite(t) and abs(t) > 3],
    }  # fmt: skip


def _href(item: Mapping[str, Any], names: set[str]) -> str:
    """The MLflow page of what made it; without a server the stage's row on this page."""
    url = str(_map(item.get("maker")).get("url") or "")
    if url.startswith(("http://", "https://")):
        return url
    stage = str(item.get("stage") or "")
    return f"#stage-{stage}" if stage in names else ""


def _positive(row: Mapping[str, Any], *fields: str) -> bool:
    return all(row[field] is not None and row[field] > 0 for field in fields)


def _number(value: Any) -> float | None:
    return float(value) if _finite(value) else None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _span(value: Any) -> list[float] | None:
    if isinstance(value, list | tuple) and len(value) == 2 and all(_finite(v) for v in value):
        return [float(v) for v in value]
    return None


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in _list(value) if isinstance(item, Mapping)]


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
