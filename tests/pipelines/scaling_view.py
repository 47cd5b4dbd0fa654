"""A view of a sweep of two variants whose law is known, with numbers of the size that a laptop's sweep has."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tasks.scaling.fit import as_json, fit_all
from tasks.scaling.points import points_of

LAW = {"E": 2.1, "A": 120.0, "B": 900.0, "alpha": 0.35, "beta": 0.37}
SERVER = "http://tracking.example:5000"
WIDTHS = (32, 48, 64, 96, 128, 192, 256)


def loss_of(params: Any, tokens: Any, better: float = 1.0) -> Any:
    return LAW["E"] + better * LAW["A"] / params ** LAW["alpha"] + LAW["B"] / tokens ** LAW["beta"]


def optimum(flops: float) -> float:
    ratio = LAW["alpha"] * LAW["A"] / (LAW["beta"] * LAW["B"])
    total = LAW["alpha"] + LAW["beta"]
    return float(ratio ** (1 / total) * (flops / 6) ** (LAW["beta"] / total))


def points_of_sweep(variant: str, better: float, seed: int) -> list[dict[str, Any]]:
    """IsoFLOP lines of a few sizes about the optimum; one size serves several budgets, as with WSD."""
    rng = np.random.default_rng(seed)
    points = []
    for line, flops in enumerate(np.geomspace(1.2e13, 1.2e15, 5), start=2):
        for size, width in enumerate(WIDTHS):
            params = 12.0 * max(2, width // 32) * width**2
            tokens = flops / (6 * params)
            if abs(np.log(params / optimum(flops))) > np.log(7):
                continue
            name = f"{variant}-w{width}-c{line}"
            loss = float(loss_of(params, tokens, better) * np.exp(0.002 * rng.standard_normal()))
            points.append(
                {
                    "stage": name,
                    "key": f"{(line * 97 + size * 31 + seed) % 2**32:040x}",
                    "run": f"w{width}",
                    "line": line,
                    "layers": max(2, width // 32),
                    "width": width,
                    "params": params,
                    "tokens": tokens,
                    "flops": float(flops),
                    "loss": loss,
                    "learning_rate": 6e-3 * (64 / width) ** 0.5,
                    "batch_tokens": 8192,
                    "steps": int(tokens / 8192),
                    "seconds": float(flops / 4e12),
                    "maker": {
                        "run": "scaling-20300131",
                        "mlflow_run": f"{line:02d}{width:030d}",
                        "experiment_id": "3",
                        "fragment": f"#/experiments/3/runs/{line:02d}{width:030d}",
                        "url": f"{SERVER}/#/experiments/3/runs/{line:02d}{width:030d}" if variant == "decoder" else "",
                    },
                }
            )
    return points


@functools.cache
def _fitted(variant: str, better: float, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows = points_of_sweep(variant, better, seed)
    columns = {name: [row[name] for row in rows] for name in ("params", "tokens", "flops", "loss")}
    points = points_of(columns.pop("loss"), **columns, run=np.array([row["run"] for row in rows]))
    found, refused = fit_all(points, ["approach_1", "approach_2", "approach_3"], bootstrap=300)
    return rows, as_json(points, found, refused)


def scaling_view() -> dict[str, Any]:
    sweeps, stages, predictions = [], [], []
    for variant, objective, better, seed in (("decoder", "causal", 1.0, 1), ("prefix-lm", "prefix", 1.03, 2)):
        rows, fit = _fitted(variant, better, seed)
        flops = 8 * max(row["flops"] for row in rows)
        params = optimum(flops)
        tokens = flops / (6 * params)
        expected = float(loss_of(params, tokens, better))
        maker = dict(rows[0]["maker"])
        following = {"flops": flops, "params": params, "tokens": tokens, "layers": 10, "width": 320}
        sweeps.append(
            {
                "stage": f"fit-{variant}",
                "key": f"{seed:040x}",
                "maker": maker,
                "variant": variant,
                "architecture": variant,
                "objective": objective,
                "unit": "nats per token",
                "points": [dict(row) for row in rows],
                "left_out": [
                    {"stage": f"{variant}-w512-c6", "reason": "the 95 % interval of exponent_N is narrow enough"}
                ],
                "stopped": "the 95 % interval of exponent_N is 0.03 wide",
                "next": {**following, "predicted_loss": expected, "ci95": [expected * 0.995, expected * 1.006]},
                "fit": fit,
            }
        )
        predictions.append(
            {
                **{"variant": variant, "stage": f"{variant}-8x", "key": f"{seed + 9:040x}", **following},
                "predicted_loss": expected,
                "ci95": [expected * 0.995, expected * 1.006],
                "measured_loss": expected * 1.004,
                "error": 0.004,
                "times_largest": 8.0,
                "maker": maker,
            }
        )
        for row in rows:
            stages.append({"name": row["stage"], "task": "Pretrain", "state": "done", "inputs": [], "key": row["key"]})
            stages[-1] |= {"seconds": row["seconds"], "maker": row["maker"], "metrics": {"loss": row["loss"]}}
        stages.append({"name": f"fit-{variant}", "task": "ScalingFit", "state": "done", "key": f"{seed:040x}"})
        stages[-1]["inputs"] = [row["stage"] for row in rows]
    stages.append(
        {"name": "compare", "task": "CompareScaling", "state": "done", "inputs": [s["stage"] for s in sweeps]}
    )
    verdict = {"values": {"decoder": 0.514, "prefix-lm": 0.52}, "difference": -0.006, "ci95": [-0.02, 0.01]}
    lost = {"values": {"decoder": 2.61, "prefix-lm": 2.65}, "difference": -0.04, "ci95": [-0.05, -0.03]}
    pair = {
        "a": "decoder",
        "b": "prefix-lm",
        "exponents": {"exponent_N": {**verdict, "probability_larger": 0.2, "verdict": "undecided"}},
        "losses": [
            {"flops": c, **lost, "probability_lower": 0.99, "verdict": "decoder", "extrapolated": c > 1e16}
            for c in (1.6e15, 1.6e16, 1.6e17)
        ],
        "crossover": {
            "searched": [1e12, 1e21],
            "share": 0.1,
            "found": [
                {"flops": None, "ci95": [3e18, None], "share": 0.1, "before": "decoder", "after": "prefix-lm"},
            ],
        },
    }
    return {
        "run": {"name": "wide-heron", "recipe": "scaling", "state": "done", "seconds": 5000.0},
        "stages": stages,
        "scaling": sweeps,
        "scaling_comparison": {
            "stage": "compare",
            "key": f"{7:040x}",
            "comparable": True,
            "variants": {"encoder": {"unit": "nats per token", "points": 21, "models": 6, "flops": [1e13, 2e15],
                "exponents": {"approach_3": {"exponent_N": {"value": 0.47, "ci95": [0.4, 0.53]},
                                             "exponent_D": {"value": 0.53, "ci95": [0.47, 0.6]}}}}},
            "predictions": predictions,
            "pairs": [pair, {**pair, "b": "encoder", "losses": [], "crossover": None}],
            "winners": [{"flops": 1.6e15, "lowest": "decoder", "loss": 2.61, "verdict": "decoder",
                         "probability": {"decoder": 0.99, "prefix-lm": 0.01}}],
            "assumed": ["each variant is at its own compute-optimal size"],
        },
    }  # fmt: skip
