"""A fitted or published law as what a budget asks of it: the optimal model and data, the loss, and how sure that is.

Two kinds. A *surface* L = E + A/N^α + B/D^β predicts the loss of any model; its optimum for C = 6·N·D is closed
(Hoffmann et al. 2022, equation 4). A *line* N_opt = k·C^a (approaches 1 and 2, Kaplan et al.) knows optimal models
only.
Every law carries draws of its parameters: bootstrap resamples, or what a paper's intervals say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import BadConfig, BadData
from tasks.scaling.estimate import FEWEST_RESAMPLES, Fit, Resampled
from tasks.scaling.frontier import Frontier

DRAWN = 4000
"""Draws from a covariance."""
FAR = 10.0
"""Beyond so many times the largest measured compute a prediction is called an extrapolation."""


@dataclass(frozen=True)
class Law:
    """A law. `values` are its best parameters, `draws` arrays of the same names; empty: no interval is known."""

    name: str
    source: str
    values: Mapping[str, float]
    draws: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    counts: str = "all parameters"
    """What its N counts."""
    largest_flops: float | None = None
    """Of the models it was fitted to: beyond, it extrapolates."""
    loss_line: tuple[float, float] | None = None
    """(C_c, α) of L = (C_c/C)^α at the optimum, of a law that has no surface."""
    unit: str = ""
    """Of its losses, such as `bits per byte`; empty: not said."""
    resampled: Resampled | None = field(default=None, repr=False)
    """What the draws are fits to, where that is known."""
    flops_factor: float = 6.0
    """C / (N·D): 6 where N counts what every token meets; about 3 for an encoder-decoder, whose tokens meet half."""

    @property
    def has_surface(self) -> bool:
        return "alpha" in self.values

    def optimum(self, flops: Any, values: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
        """Parameters and tokens of the compute-optimal model of a budget."""
        v = self.values if values is None else values
        if self.has_surface:
            # with logarithms: A and B of a resample may be beyond what a product holds
            total = v["alpha"] + v["beta"]
            log_g = (np.log(v["alpha"]) + np.log(v["A"]) - np.log(v["beta"]) - np.log(v["B"])) / total
            params = np.exp(log_g + v["beta"] / total * np.log(flops / self.flops_factor))
        else:
            params = np.exp(np.log(v["k_N"]) + v["exponent_N"] * np.log(flops))
        return params, flops / (self.flops_factor * params)

    def loss(self, params: Any, tokens: Any, values: Mapping[str, Any] | None = None) -> Any:
        """Loss of a model; only of a surface."""
        v = self.values if values is None else values
        return v["E"] + v["A"] * params ** -v["alpha"] + v["B"] * tokens ** -v["beta"]

    def frontier(self, values: Mapping[str, Any] | None = None) -> Frontier | None:
        """The optimal loss as E + K·C^−γ; None where the law predicts no loss.

        At the optimum of a surface both its terms fall as C^−αβ/(α+β) (Hoffmann et al. 2022, equation 4).
        """
        v = self.values if values is None else values
        if self.has_surface:
            alpha, beta = v["alpha"], v["beta"]
            total = alpha + beta
            # with logarithms, as in `optimum`
            log_a, log_b = np.log(v["A"]), np.log(v["B"])
            log_g = (np.log(alpha) + log_a - np.log(beta) - log_b) / total
            gamma = alpha * beta / total
            log_k = np.logaddexp(log_a - alpha * log_g, log_b + beta * log_g) + gamma * np.log(self.flops_factor)
            return Frontier(v["E"], log_k, gamma)
        if self.loss_line is None:
            return None
        scale, exponent = self.loss_line
        return Frontier(0.0, exponent * np.log(scale), exponent)

    def optimal_loss(self, flops: Any, values: Mapping[str, Any] | None = None) -> Any:
        """Loss of the optimal model of a budget; None where the law predicts none."""
        found = self.frontier(values)
        return None if found is None else found.loss(flops)

    def tokens_for(self, params: Any, loss: Any, values: Mapping[str, Any] | None = None) -> Any:
        """Tokens at which a model of so many parameters reaches a loss; inf where it never does."""
        v = self.values if values is None else values
        left = np.asarray(loss - v["E"] - v["A"] * np.asarray(params, float) ** -v["alpha"])
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(left > 0, (v["B"] / np.where(left > 0, left, 1.0)) ** (1 / v["beta"]), np.inf)

    def interval(self, of: Any) -> list[float] | None:
        """95 % of what `of(draws)` gives over the draws."""
        if not self.draws:
            return None
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            values = np.asarray(of(self.draws), dtype=float)
        values = values[np.isfinite(values)]
        return [float(q) for q in np.quantile(values, [0.025, 0.975])] if len(values) >= FEWEST_RESAMPLES else None


def law_of(fit: Fit, source: str, largest_flops: float, unit: str = "", flops_factor: float = 6.0) -> Law:
    """The law that a fit found.

    Args:
        fit: of approach 1, 2 or 3.
        source: where its measurements are from.
        largest_flops: the largest compute among them.
        unit: of their losses, where it is known.
        flops_factor: their C / (N·D).

    Raises:
        BadConfig: a form that says nothing of the optimal size.
    """
    if fit.name == "approach_3":
        values, draws = dict(fit.params), {k: fit.draws[k] for k in fit.params if k in fit.draws}
    elif fit.name in ("approach_1", "approach_2"):
        values = {"k_N": fit.params["k_N"], **{k: fit.derived[k] for k in ("exponent_N", "exponent_D")}}
        draws = {k: fit.draws[k] for k in values if k in fit.draws}
    else:
        raise BadConfig(f"a fit of {fit.name} does not say which size is optimal", "take approach 1, 2 or 3")
    return Law(
        fit.name,
        source,
        values,
        draws,
        largest_flops=largest_flops,
        unit=unit,
        resampled=fit.resampled,
        flops_factor=flops_factor,
    )


def covariance(fit: Fit) -> dict[str, Any] | None:
    """The resamples in short, for `--json`: covariance of the parameters, prefactors as logarithms.

    None where they are too few to tell.
    """
    names = [n for n in (*fit.params, "exponent_N") if n in fit.draws and (n != "exponent_N" or "k_N" in fit.params)]
    if not names:
        return None
    columns = []
    for name in names:
        column = fit.draws[name]
        columns.append(np.log(np.maximum(column, 1e-300)) if _is_prefactor(name) else column)
    table = np.stack(columns)
    table = table[:, np.isfinite(table).all(0)]
    if table.shape[1] < FEWEST_RESAMPLES:
        return None
    return {"names": [f"log_{n}" if _is_prefactor(n) else n for n in names], "matrix": np.cov(table).tolist()}


def _is_prefactor(name: str) -> bool:
    return name in ("A", "B", "a", "b", "k_N", "k_D", "R_D", "R_N") or name.endswith("_c")


def read_law(path: Path, approach: str = "3") -> Law:
    """A law from what `triptych fit --json` printed.

    Raises:
        BadData: no such file, or it holds no fit of that approach.
    """
    try:
        return law_from(json.loads(path.read_text(encoding="utf-8")), approach, str(path))
    except OSError as error:
        raise BadData(
            f"{path}: {error.strerror or error}", "give a CSV file, or what `triptych fit --json` printed"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise BadData(
            f"{path} holds no fit of approach {approach}", "write it with: triptych fit FILE.csv --json > FIT.json"
        ) from None


def law_from(found: Mapping[str, Any], approach: str = "3", source: str = "") -> Law:
    """A law from the objects of `triptych fit --json`; its draws are normal, of the covariance there.

    Raises:
        KeyError, TypeError, ValueError: they hold no fit of that approach.
    """
    part = found[f"approach_{approach}"]
    params = part["params"]
    if "alpha" in params:
        values = {k: float(params[k]) for k in ("E", "A", "B", "alpha", "beta")}
    else:
        values = {"k_N": float(params["k_N"]), "exponent_N": float(part["exponent_N"])}
    draws = _draw(values, part.get("covariance"))
    factor = float(part.get("flops_factor", 6.0))
    counted = {"counts": str(part["counts"])} if "counts" in part else {}
    return Law(
        f"approach_{approach}", source, values, draws, largest_flops=part.get("largest_flops"),
        unit=str(part.get("unit") or ""), flops_factor=factor, **counted,
    )  # fmt: skip


def _draw(values: Mapping[str, float], found: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """Normal draws about the values."""
    if not found:
        return {}
    names = list(found["names"])
    rows = [i for i, n in enumerate(names) if n.removeprefix("log_") in values]
    matrix = np.asarray(found["matrix"], dtype=float)[np.ix_(rows, rows)]
    centre = [np.log(values[names[i][4:]]) if names[i].startswith("log_") else values[names[i]] for i in rows]
    rng = np.random.Generator(np.random.Philox(0))
    drawn = rng.multivariate_normal(centre, matrix, size=DRAWN, method="svd").T
    return {
        names[i].removeprefix("log_"): np.exp(column) if names[i].startswith("log_") else column
        for i, column in zip(rows, drawn, strict=True)
    }
