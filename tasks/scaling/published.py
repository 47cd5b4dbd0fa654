"""Published laws, and the large models of their time.

Intervals are what the papers print. Where a paper gives a range of the exponent only, N_opt is taken as known in the
middle of the paper's budgets, `CENTRE`, and fans out from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cluster.errors import BadConfig
from tasks.scaling.laws import DRAWN, Law

PF_DAY = 86_400e15
"""FLOPs of a petaFLOP/s-day, Kaplan et al.'s unit of compute."""
CENTRE = 1e20
"""FLOPs: about the geometric middle of Hoffmann et al.'s runs, 6e18 to 3e21."""


NATS = "nats per token"


class Known(NamedTuple):
    """A model as it was trained."""

    params: float
    tokens: float


MODELS = {
    # Hoffmann et al. 2022, table 1
    "LaMDA": Known(137e9, 168e9),
    "GPT-3": Known(175e9, 300e9),
    "Jurassic": Known(178e9, 300e9),
    "Gopher": Known(280e9, 300e9),
    "MT-NLG": Known(530e9, 270e9),
    "Chinchilla": Known(70e9, 1.4e12),
}


def _fan(params: float, exponent: float, low: float, high: float) -> dict[str, np.ndarray]:
    """Draws of a line through (CENTRE, params) whose exponent has that 95 % range, not always symmetric."""
    rng = np.random.Generator(np.random.Philox(0))
    z = rng.standard_normal(DRAWN)
    drawn = exponent + np.where(z < 0, exponent - low, high - exponent) / 1.96 * z
    return {"exponent_N": drawn, "k_N": params / CENTRE**drawn}


def _line(name: str, source: str, ends: tuple[float, float, float, float], low: float, high: float) -> Law:
    """A line through two rows of a table: (N, C, N, C)."""
    n0, c0, n1, c1 = ends
    exponent = float(np.log(n1 / n0) / np.log(c1 / c0))
    k = n0 / c0**exponent
    middle = k * CENTRE**exponent
    draws = _fan(middle, exponent, min(low, exponent), max(high, exponent))
    return Law(name, source, {"k_N": k, "exponent_N": exponent}, draws, largest_flops=3e21)


def _chinchilla_1() -> Law:
    source = "Hoffmann et al. 2022, approach 1: table 3, exponent 0.50 (0.488, 0.502)"
    return _line("chinchilla-1", source, (400e6, 1.92e19, 10e12, 1.30e28), 0.488, 0.502)


def _chinchilla_2() -> Law:
    source = "Hoffmann et al. 2022, approach 2: table A3, exponent 0.49 (0.462, 0.534)"
    return _line("chinchilla-2", source, (400e6, 1.84e19, 10e12, 1.75e28), 0.462, 0.534)


def _chinchilla_3() -> Law:
    # The paper prints 1.69, 406.4, 410.7, 0.34, 0.28; its TeX source has two digits more, and the rounded exponents
    # move the optimum by a fifth (Besiroglu et al. 2024, appendix A).
    values = {"E": 1.6934, "A": 406.4, "B": 410.7, "alpha": 0.3392, "beta": 0.2849}
    source = "Hoffmann et al. 2022, approach 3: equation 10, exponents with the digits of its TeX source"
    return Law("chinchilla-3", source, values, largest_flops=3e21, unit=NATS)


def _epoch() -> Law:
    values = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
    se = 0.02  # of alpha and of beta, as printed; that of the exponent is 0.02, too
    rng = np.random.Generator(np.random.Philox(0))
    alpha = values["alpha"] + se * rng.standard_normal(DRAWN)
    beta = values["beta"] + se * rng.standard_normal(DRAWN)
    # Prefactors and exponents compensate, and only their own errors are printed: so every draw has the same optimum and
    # the same reducible loss at CENTRE, where α·A/N^α = β·B/D^β.
    params, tokens = Law("epoch", "", values).optimum(CENTRE)
    reducible = values["A"] * params ** -values["alpha"] + values["B"] * tokens ** -values["beta"]
    draws = {
        "E": values["E"] + 0.03 * rng.standard_normal(DRAWN),
        "alpha": alpha,
        "beta": beta,
        "A": reducible * beta / (alpha + beta) * params**alpha,
        "B": reducible * alpha / (alpha + beta) * tokens**beta,
    }
    source = "Besiroglu et al. 2024 (Epoch): approach 3 on the points of Hoffmann et al.'s figure 4"
    return Law("epoch", source, values, draws, largest_flops=3e21, unit=NATS)


def _kaplan() -> Law:
    # N_opt = 1.3e9 · (C_min in PF-days)^0.73 and L = (3.1e8/C_min)^0.050
    values = {"k_N": 1.3e9 / PF_DAY**0.73, "exponent_N": 0.73}
    source = "Kaplan et al. 2020, table 6 and equation 1.3: early stopping, N without embeddings"
    return Law(
        "kaplan", source, values, counts="parameters without embeddings", largest_flops=3.6e21,
        loss_line=(3.1e8 * PF_DAY, 0.050), unit=NATS,
    )  # fmt: skip


LAWS: dict[str, Callable[[], Law]] = {
    "chinchilla-1": _chinchilla_1,
    "chinchilla-2": _chinchilla_2,
    "chinchilla-3": _chinchilla_3,
    "epoch": _epoch,
    "kaplan": _kaplan,
}


def published(name: str) -> Law:
    """A published law; `chinchilla` is its first approach, which the paper's own model followed.

    Raises:
        BadConfig: no such law.
    """
    wanted = {"chinchilla": "chinchilla-1"}.get(name, name)
    if wanted not in LAWS:
        raise BadConfig(f"--law {name!r} is not known", f"known: chinchilla, {', '.join(LAWS)}")
    return LAWS[wanted]()
