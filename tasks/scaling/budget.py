"""What a budget buys: the compute-optimal model and data, over-trained ones of equal loss, time and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import BadConfig
from cluster.machines import Machine
from modeling.hardware import gpu as find_gpu
from tasks.scaling.laws import FAR, Law
from tasks.scaling.published import MODELS

SHRINK = (0.75, 0.5, 0.35, 0.25, 0.15, 0.1)
"""Over-trained options, as shares of the optimal size."""
DEAREST = 20.0
"""Options that cost more than so many times the budget are none."""


@dataclass(frozen=True)
class Budget:
    """FLOPs of training, and how they were counted."""

    flops: float
    said: str
    mfu: float
    precision: str


def gpu_flops(name: str, precision: str) -> float:
    """Peak FLOP/s of a GPU.

    Raises:
        BadConfig: it has no such precision.
    """
    found = find_gpu(name)
    if precision not in found.tflops:
        raise BadConfig(f"{found.name} has no peak for {precision}", f"known: {', '.join(found.tflops)}")
    return found.tflops[precision] * 1e12


def budget_of(
    *,
    flops: float | None = None,
    gpu: str | None = None,
    count: int = 1,
    days: float | None = None,
    hours: float | None = None,
    money: float | None = None,
    price: float | None = None,
    mfu: float = 0.4,
    precision: str = "bf16",
) -> Budget:
    """A budget in FLOPs, in GPU-time or in money.

    Args:
        flops: directly; with `gpu` it is said how long `count` of them take, and with `price` what they cost.
        gpu, count, days, hours: so many GPUs for so long, at `mfu` of their peak; with `price` at what cost.
        money, price: what may be spent, and what one GPU costs an hour, in one currency; `count` only says how
            long it takes.

    Raises:
        BadConfig: no budget, more than one, or numbers that are none.
    """
    numbers = {"flops": flops, "count": count, "days": days, "hours": hours, "money": money, "price": price, "mfu": mfu}
    for name, value in numbers.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise BadConfig(f"--{name} is {value}, expected a positive number")
    if mfu > 1:
        raise BadConfig(f"--mfu is {mfu}, expected a share of the peak, at most 1", "0.4 is common for large models")
    time = days is not None or hours is not None
    given = [
        n for n, v in (("--flops", flops is not None), ("--days or --hours", time), ("--money", money is not None)) if v
    ]
    if len(given) != 1:
        raise BadConfig(
            f"{len(given)} budgets are given{': ' + ', '.join(given) if given else ''}; one is needed",
            "say --flops C, or --gpu h100 --count 8 --days 3, or --money 10000 --gpu h100 --price 2.5",
        )
    if flops is not None and gpu is None:
        if count != 1 or price is not None:
            raise BadConfig("--count and --price need --gpu", "name the GPU, such as --gpu h100")
        return Budget(flops, f"{flops:.3g} FLOPs", mfu, precision)
    if gpu is None:
        raise BadConfig(f"{given[0]} needs --gpu", "name the GPU, such as --gpu h100")
    peak, name = gpu_flops(gpu, precision), find_gpu(gpu).name
    rate = f"MFU {mfu:g} of {peak / 1e12:g} {precision} TFLOP/s"
    if flops is not None:
        gpu_hours = flops / (3600 * peak * mfu)
        said = f"{flops:.3g} FLOPs: {_taken(gpu_hours, count, name, price)}, {rate}"
        return Budget(flops, said, mfu, precision)
    if money is not None:
        if price is None:
            raise BadConfig("--money needs --price", "say what one GPU costs an hour, in the same currency")
        gpu_hours = money / price
        said = f"{money:g} at {price:g} a GPU-hour: {_taken(gpu_hours, count, name)}"
    else:
        gpu_hours = count * (24 * (days or 0.0) + (hours or 0.0))
        said = f"{count} {name} for {gpu_hours / count:g} hours"
        said += f" at {price:g} each: {gpu_hours * price:,.0f}" if price is not None else ""
    return Budget(gpu_hours * 3600 * peak * mfu, f"{said}, {rate}", mfu, precision)


def _taken(gpu_hours: float, count: int, name: str, price: float | None = None) -> str:
    """How long so many GPUs take, and what that costs."""
    many = f", {gpu_hours / count:,.1f} hours on {count}" if count > 1 else ""
    cost = f", {gpu_hours * price:,.0f} at {price:g} a GPU-hour" if price is not None else ""
    return f"{gpu_hours:,.0f} hours of {name}{many}{cost}"


def plan_budget(
    law: Law, budget: Budget, *, machines: Sequence[Machine] = (), prices: Mapping[str, float] | None = None,
    architecture: str = "decoder",
) -> dict[str, Any]:  # fmt: skip
    """Everything `triptych budget --json` prints for one law.

    Args:
        law: the scaling law.
        budget: what may be spent.
        machines: node types of a cluster, for time and cost.
        prices: {node type: USD an hour} that stand for theirs.
        architecture: of the presets among which the nearest is looked for.
    """
    params, tokens = (float(v) for v in law.optimum(budget.flops))
    loss = law.optimal_loss(budget.flops)
    warnings = []
    if law.largest_flops and budget.flops > FAR * law.largest_flops:
        times = budget.flops / law.largest_flops
        warnings.append(
            f"{times:,.0f} times the largest compute the law was fitted to ({law.largest_flops:.2g}): extrapolated"
        )
    if not law.draws:
        warnings.append("no interval: the source gives none that can be used")
    elif not law.has_surface and law.loss_line is None:
        warnings.append("this law predicts no loss, so there are no over-trained options: take a fit of approach 3")
    optimum = {
        "params": params,
        "tokens": tokens,
        "tokens_per_param": tokens / params,
        "params_ci95": law.interval(lambda d: law.optimum(budget.flops, d)[0]),
        "tokens_ci95": law.interval(lambda d: law.optimum(budget.flops, d)[1]),
        "loss": None if loss is None else float(loss),
        "loss_ci95": law.interval(lambda d: law.optimal_loss(budget.flops, d)) if law.has_surface else None,
    }
    return {
        "law": law.name,
        "source": law.source,
        "counts": law.counts,
        "unit": law.unit or None,
        "budget": {"flops": budget.flops, "said": budget.said, "mfu": budget.mfu, "precision": budget.precision},
        "optimum": optimum,
        "exponent_N": float(exponent(law)),
        "over_trained": over_trained(law, budget.flops) if law.has_surface else [],
        "nearest_preset": nearest_preset(params, architecture, embeddings="without" not in law.counts),
        "machines": [row for m in machines if (row := on_machine(m, budget, prices or {}))],
        "warnings": warnings,
    }


def exponent(law: Law) -> float:
    v = law.values
    return v["beta"] / (v["alpha"] + v["beta"]) if law.has_surface else v["exponent_N"]


def over_trained(law: Law, flops: float) -> list[dict[str, float]]:
    """Smaller models trained longer, to the loss of the optimal one.

    `pays_after_tokens`: generated or read tokens after which the smaller model was cheaper in all; each costs a third
    of a training token's FLOPs, which are `law.flops_factor` · N.
    """
    best, _ = law.optimum(flops)
    target = law.optimal_loss(flops)
    out = []
    for share in SHRINK:
        params = float(share * best)
        tokens = float(law.tokens_for(params, target))
        cost = law.flops_factor * params * tokens
        if not cost <= DEAREST * flops:
            break
        out.append(
            {
                "params": params,
                "tokens": tokens,
                "tokens_per_param": tokens / params,
                "flops": cost,
                "extra_compute": cost / flops - 1,
                "loss": float(target),
                "pays_after_tokens": float((cost - flops) / (law.flops_factor / 3 * (best - params))),
            }
        )
    return out


def nearest_preset(params: float, architecture: str, *, embeddings: bool = True) -> dict[str, Any] | None:
    """The preset of an architecture whose parameters are nearest, by their ratio, with its published vocabulary.

    Args:
        params: wanted.
        architecture: decoder, encoder, encoder-decoder or prefix-lm.
        embeddings: whether the count has them.
    """
    from modeling.architecture import PRESETS, TransformerConfig
    from modeling.flops import is_embedding
    from modeling.published import PUBLISHED
    from modeling.shapes import count, parameter_shapes

    best: tuple[float, str, int] | None = None
    for name in PRESETS:
        fields = dict(PRESETS.load(name))
        if fields.get("architecture", "encoder") != architecture or name not in PUBLISHED:
            continue
        config = TransformerConfig(**{**fields, "vocab_size": PUBLISHED[name].vocab_size})
        shapes = parameter_shapes(config, {"name": PUBLISHED[name].head, "settings": {}})
        if not embeddings:
            shapes = {n: s for n, s in shapes.items() if not is_embedding(n)}
        size = count(shapes)
        distance = abs(float(np.log(size / params)))
        if best is None or distance < best[0]:
            best = (distance, name, size)
    return None if best is None else {"name": best[1], "params": best[2], "times_optimal": best[2] / params}


def on_machine(machine: Machine, budget: Budget, prices: Mapping[str, float]) -> dict[str, Any] | None:
    """Days and cost of the budget on a node type: one machine, and as many as the cluster may have."""
    if not machine.gpu or not machine.gpus:
        return None
    try:
        speed = gpu_flops(machine.gpu, budget.precision) * machine.gpus * budget.mfu
    except BadConfig:
        return None
    hours = budget.flops / speed / 3600
    price = prices.get(machine.name, machine.usd_per_hour) or None
    return {
        "machine": machine.name,
        "gpu": f"{machine.gpus} {machine.gpu}",
        "days": hours / 24,
        "at_most": machine.most,
        "days_at_most": hours / 24 / machine.most,
        "gpu_hours": hours * machine.gpus,
        "usd_per_hour": price,
        "usd": hours * price if price else None,
    }


def table(laws: Sequence[Law]) -> list[dict[str, Any]]:
    """What the budgets of well-known models should have bought, by each law (Hoffmann et al. 2022, tables 1 and 3)."""
    rows = []
    for name, known in MODELS.items():
        flops = 6 * known.params * known.tokens
        row: dict[str, Any] = {
            "model": name,
            "params": known.params,
            "tokens": known.tokens,
            "flops": flops,
            "optimal": {},
        }
        for law in laws:
            params, tokens = (float(v) for v in law.optimum(flops))
            part: dict[str, Any] = {"params": params, "tokens": tokens, "params_ci95": law.interval(
                lambda d, law=law, flops=flops: law.optimum(flops, d)[0])}  # fmt: skip
            if law.has_surface:
                part["loss"] = float(law.optimal_loss(flops))
                part["loss_as_trained"] = float(law.loss(known.params, known.tokens))
            row["optimal"][law.name] = part
        rows.append(row)
    return rows
