"""Fits of E + A/N^α + B/D^β: ours beside the usual SciPy loops, at equal or better optimum.

    python -m benchmarks.fits                    # 240 points, 4,500 starts, 4,000 resamples
    python -m benchmarks.fits --data FOLDER      # and the objective on the set-ups of two published files

Points are synthetic, of Epoch's law with heavy-tailed noise. SciPy's sides minimise the same summed Huber loss from
the 4,500 starts of Hoffmann et al. 2022, then every resample from the optimum they found, which is the least a
bootstrap can cost. They run on a `--share` of both, drawn at random, and their time is scaled to the whole; the
share is in the results. One process, one thread; processor time is the figure, since others use the machine.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares, minimize

from benchmarks.measuring import circumstances, record, say, spent, versions
from tasks.scaling.approach2 import fit_approach_2
from tasks.scaling.estimate import resamples
from tasks.scaling.fit import fit_approach_3, fit_over_training
from tasks.scaling.forms import chinchilla
from tasks.scaling.newton import DELTA, minimise, refit
from tasks.scaling.point_files import Columns, read_points
from tasks.scaling.points import Points, points_of

FILE = "fits.json"
STARTS = list(
    itertools.product(range(0, 30, 5), range(0, 30, 5), (-1, -0.5, 0, 0.5, 1), (0, 0.5, 1, 1.5, 2), (0, 0.5, 1, 1.5, 2))
)
RESAMPLES = 4000
TIGHT = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 10_000, "maxfun": 100_000, "maxcor": 30}
"""L-BFGS-B to the end: with the default memory of 10 it takes longer and stops earlier."""


def synthetic(count: int = 240) -> Points:
    rng = np.random.default_rng(0)
    params = np.exp(rng.uniform(np.log(4e7), np.log(1.6e10), count))
    tokens = np.exp(rng.uniform(np.log(1e9), np.log(5e11), count))
    loss = (1.8172 + 482.01 / params**0.3478 + 2085.43 / tokens**0.3658) * np.exp(0.004 * rng.standard_t(4, count))
    return points_of(loss, params=params, tokens=tokens)


class Usual:
    """The objective as it is usually written: (a, b, e, α, β), logarithms not centred."""

    def __init__(self, points: Points, weights: np.ndarray | None = None) -> None:
        self.x, self.y, self.target = np.log(points.params), np.log(points.tokens), np.log(points.loss)
        self.weights = np.ones(len(points)) if weights is None else weights

    def residual(self, theta: np.ndarray) -> np.ndarray:
        a, b, e, alpha, beta = theta
        return self.target - np.logaddexp(np.logaddexp(a - alpha * self.x, b - beta * self.y), e)

    def value(self, theta: np.ndarray) -> float:
        residual = self.residual(theta)
        psi = np.clip(residual, -DELTA, DELTA)
        return float(self.weights @ (psi * (residual - psi / 2)))

    def both(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        a, b, e, alpha, beta = theta
        first, second = a - alpha * self.x, b - beta * self.y
        top = np.maximum(np.maximum(first, second), e)
        p, q, r = np.exp(first - top), np.exp(second - top), np.exp(e - top)
        total = p + q + r
        residual = self.target - top - np.log(total)
        psi = np.clip(residual, -DELTA, DELTA)
        scaled = self.weights * psi / total
        p, q = p * scaled, q * scaled
        slope = np.array([p.sum(), q.sum(), scaled @ r, -(p @ self.x), -(q @ self.y)])
        return float(self.weights @ (psi * (residual - psi / 2))), -slope

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        a, b, e, alpha, beta = theta
        z = np.stack([a - alpha * self.x, b - beta * self.y, np.full_like(self.x, e)])
        p = np.exp(z - np.logaddexp.reduce(z))
        return -np.stack([p[0], p[1], p[2], -p[0] * self.x, -p[1] * self.y], 1) * np.sqrt(self.weights)[:, None]


Solver = Callable[[Usual, Any], tuple[float, np.ndarray]]


def lbfgs(*, gradient: bool, tight: bool) -> Solver:
    options = TIGHT if tight else {}

    def solve(usual: Usual, start: Any) -> tuple[float, np.ndarray]:
        found = minimize(
            usual.both if gradient else usual.value, start, jac=gradient, method="L-BFGS-B", options=options
        )
        return float(found.fun), found.x

    return solve


def trust_region(usual: Usual, start: Any) -> tuple[float, np.ndarray]:
    """SciPy's own robust least squares, the same loss."""
    found = least_squares(
        lambda t: usual.residual(t) * np.sqrt(usual.weights), start, jac=usual.jacobian, loss="huber", f_scale=DELTA,
        ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=2000,
    )  # fmt: skip
    return usual.value(found.x), found.x


PEERS: dict[str, Solver] = {
    "L-BFGS-B, defaults, numeric gradient": lbfgs(gradient=False, tight=False),
    "L-BFGS-B, defaults, analytic gradient": lbfgs(gradient=True, tight=False),
    "L-BFGS-B, tight, analytic gradient": lbfgs(gradient=True, tight=True),
    "least_squares, Huber, analytic Jacobian": trust_region,
}


def ours(points: Points) -> tuple[float, np.ndarray]:
    """Starts, optimum and resamples; the objective."""
    form = chinchilla(points)
    ends = minimise(form.model, form.starts)
    best = ends.theta[ends.objective.argmin()]
    more = refit(form.model, best, resamples(len(points), RESAMPLES, 0))
    return float(ends.objective.min()), more.objective


def peer(points: Points, solve: Solver, share: float) -> dict[str, Any]:
    """Time of the whole, scaled from a share of it, and the optimum that was found."""
    rng = np.random.default_rng(1)
    starts = [STARTS[i] for i in rng.permutation(len(STARTS))[: max(1, round(share * len(STARTS)))]]
    best: list[tuple[float, np.ndarray]] = []

    def search() -> None:
        with np.errstate(all="ignore"):
            best.append(min((solve(Usual(points), start) for start in starts), key=lambda found: found[0]))

    searched = spent(search)
    rows = resamples(len(points), RESAMPLES, 0)[: max(1, round(share * RESAMPLES))]
    objective: list[float] = []

    def bootstrap() -> None:
        for weights in rows:
            objective.append(solve(Usual(points, weights), best[0][1])[0])

    drawn = spent(bootstrap)
    return {
        "share": share,
        "starts_cpu_seconds": round(searched.cpu * len(STARTS) / len(starts), 1),
        "resamples_cpu_seconds": round(drawn.cpu * RESAMPLES / len(rows), 1),
        "cpu_seconds": round(searched.cpu * len(STARTS) / len(starts) + drawn.cpu * RESAMPLES / len(rows), 1),
        "objective": best[0][0],
        "resample_objectives": objective,
    }


def speed(share: float, repeats: int) -> dict[str, Any]:
    points = synthetic()
    times, found = [], ours(points)
    sides: dict[str, Any] = {}
    for name, solve in PEERS.items():
        for _ in range(repeats):
            times.append(spent(lambda: ours(points)))
        say(f"ours: {[round(t.cpu, 2) for t in times[-repeats:]]} s of processor time")
        sides[name] = peer(points, solve, share)
        say(f"{name}: {sides[name]['cpu_seconds']} s")
    middle = statistics.median(t.cpu for t in times)
    best, resampled = found
    for side in sides.values():
        theirs = np.array(side.pop("resample_objectives"))
        side["times_ours"] = round(side["cpu_seconds"] / middle, 1)
        side["objective_over_ours_minus_1"] = float(side["objective"] / best - 1)
        gap = theirs / resampled[: len(theirs)] - 1
        side["resamples_where_ours_is_worse"] = round(float((gap < -1e-6).mean()), 4)
        side["resamples_where_theirs_is_worse"] = round(float((gap > 1e-6).mean()), 4)
    return {
        "points": len(points),
        "starts": len(STARTS),
        "resamples": RESAMPLES,
        "triptych": {
            "cpu_seconds": round(middle, 3),
            "all_cpu_seconds": [round(t.cpu, 3) for t in times],
            "objective": best,
        },
        "scipy": sides,
    }


def files(folder: Path, share: float) -> list[dict[str, Any]]:
    """The set-ups of both files: exponents, and our optimum against L-BFGS-B's, tight, from the usual starts."""
    gadre, porian = folder / "gadre_models.csv", folder / "porian_isoflop_points.csv"
    groups = ("file", "dataset", "hparams", "warmup", "decay", "param_count", "val")
    with porian.open() as lines:
        setups = sorted({tuple(row[g] for g in groups) for row in csv.DictReader(lines)})
    cases: list[tuple[str, Points]] = []
    for name in ("c4_original", "rpj", "rw_original"):
        cases.append((f"gadre {name}", read_points(gadre, where=[f"dataset={name}", "val_data=*c4_val*"])))
    for setup in setups:
        where = [f"{g}={value}" for g, value in zip(groups, setup, strict=True)]
        cases.append((f"porian {' '.join(setup[1:])}", read_points(porian, Columns("n", "t"), where)))
    rng = np.random.default_rng(1)
    starts = [STARTS[i] for i in rng.permutation(len(STARTS))[: max(1, round(share * len(STARTS)))]]
    out = []
    for name, points in cases:
        fit = fit_approach_3(points, bootstrap=1000)
        with np.errstate(all="ignore"):
            theirs = min(PEERS["L-BFGS-B, tight, analytic gradient"](Usual(points), s)[0] for s in starts)
        row = {
            "set-up": name,
            "points": len(points),
            "objective": fit.objective,
            "scipy_over_ours_minus_1": theirs / fit.objective - 1,
            "scipy_starts": len(starts),
            "approach_3": fit.derived["exponent_N"],
            "approach_3_ci95": fit.ci95["exponent_N"],
        }
        if name.startswith("porian"):
            two = fit_approach_2(points, bootstrap=1000)
            row |= {"approach_2": two.derived["exponent_N"], "approach_2_ci95": two.ci95["exponent_N"]}
        out.append(row)
        say(f"{name}: {row['scipy_over_ours_minus_1']:.1e}, N ∝ C^{row['approach_3']:.3f}")
    return out


def over_trained(folder: Path) -> list[dict[str, Any]]:
    """Gadre et al. 2024: the law of five small runs (20 tokens a parameter, and 320 for the smallest), and what it says
    of the large ones."""
    out = []
    for name in ("c4_original", "rpj", "rw_original"):
        points = read_points(folder / "gadre_models.csv", where=[f"dataset={name}", "val_data=*c4_val*"])
        ratio = points.tokens / points.params
        small = (points.params < 5e8) & (np.abs(np.log(ratio / 20)) < 0.2)
        small |= (points.params < 2e7) & (np.abs(np.log(ratio / 320)) < 0.2)
        law = fit_over_training(points.take(np.flatnonzero(small)), bootstrap=0).params
        large = points.take(np.flatnonzero(points.params > 1e9))
        ratio = large.tokens / large.params
        spread = law["a"] * ratio ** law["eta"] + law["b"] * ratio ** -law["eta"]
        told = law["E"] + spread * (6 * large.params * large.tokens) ** -law["eta"]
        rows = [
            {"params": float(n), "tokens": float(d), "loss": float(loss), "error": float(guess / loss - 1)}
            for n, d, loss, guess in zip(large.params, large.tokens, large.loss, told, strict=True)
        ]
        out.append({"dataset": name, "runs": int(small.sum()), "law": law, "predicted": rows})
        say(f"{name}: {law}, errors {[round(100 * row['error'], 2) for row in rows]} %")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.1, help="of SciPy's starts and resamples that are run")
    parser.add_argument("--repeats", type=int, default=2, help="of ours, before each of SciPy's sides")
    parser.add_argument("--data", type=Path, help="folder of gadre_models.csv and porian_isoflop_points.csv")
    parser.add_argument("--part", choices=("speed", "files", "all"), default="all")
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    call = parser.parse_args()
    about = {**circumstances(), "versions": versions("numpy", "scipy", "triptych")}
    if call.part != "files":
        values = {**about, **speed(call.share, call.repeats)}
        print(values)
        if not call.dry:
            record("speed", values, FILE)
    if call.data and call.part != "speed":
        predicted, rows = over_trained(call.data), files(call.data, call.share)
        if not call.dry:
            record("over_training", {**about, "datasets": predicted}, FILE)
            record("files", {**about, "share": call.share, "setups": rows}, FILE)


if __name__ == "__main__":
    main()
