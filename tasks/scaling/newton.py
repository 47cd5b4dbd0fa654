"""Thousands of small robust fits at once: a batched Newton method on Huber losses of log-sum-exp models.

Every law of this package but the data-constrained one is, in logarithms, a scaled log-sum-exp of linear forms:
Chinchilla's E + A/N^α + B/D^β is LSE(e, a − α·ln N, b − β·ln D), Kaplan's L(N, D) is α_D times such a thing. So one
kernel has the exact gradient and Hessian of them all, and works on a whole batch of starts or bootstrap resamples:
matrix products over the points, a vectorised factorisation over the batch.

With δ = 1e-3 (Hoffmann et al. 2022, section 3.3) most residuals are in the Huber loss's linear part, where it has no
curvature of its own: quasi-Newton methods crawl there and stop early. Newton with the exact Hessian, damped for each
problem by itself, and δ lowered in steps, ends at the optimum in some dozens of iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CHUNK = 1 << 15
"""Numbers in one temporary array: a batch is cut so that they stay in the cache."""
DELTA = 1e-3
"""Where the Huber loss turns from square to linear, in log loss (Hoffmann et al. 2022, section 3.3)."""
HOMOTOPY = (0.03, 0.008, 0.002)
"""Wider δ first: far from the optimum they leave curvature to go by."""
INNER = 20
"""Steps at each wider δ."""
LEAST_SHARE = 0.02
"""Of a term in the loss, where a resample starts."""
LONGEST = 20.0
"""Largest change of a parameter in one step."""
TOLERANCE = 1e-14
"""Predicted gain of a step over the objective at which a fit has ended."""


class Term(NamedTuple):
    """One linear form z = design @ θ[index] + offset."""

    index: tuple[int, ...]
    design: np.ndarray
    """[points, len(index)]"""
    offset: np.ndarray | None = None
    """[points]"""


class Ends(NamedTuple):
    """Where a batch of minimisations ended."""

    theta: np.ndarray
    """[batch, parameters]"""
    objective: np.ndarray
    """[batch]: Σ Huber(residual), weighted."""
    converged: np.ndarray
    """[batch] bool"""


class LogSumExp:
    """log of a law: `scale` · log Σ_k exp(z_k), fitted to `target` = log loss.

    Args:
        terms: the linear forms; terms may share parameters (over-training's one exponent).
        target: [points] log loss.
        parameters: how many there are in θ.
        scale: the index in θ of a factor before the log-sum-exp; None: 1.
        prefactors: indices in θ of logarithms of what multiplies a term.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        target: np.ndarray,
        parameters: int,
        *,
        scale: int | None = None,
        prefactors: tuple[int, ...] = (),
    ) -> None:
        self.terms = list(terms)
        self.target = target
        self.parameters = parameters
        self.scale = scale
        self.prefactors = prefactors
        self._pairs = [
            (j, k, np.einsum("ni,nj->nij", first.design, second.design).reshape(len(target), -1))
            for j, first in enumerate(self.terms)
            for k, second in enumerate(self.terms)
            if j <= k
        ]

    def _forms(self, theta: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """log Σ exp(z_k) and the shares p_k, each [batch, points]."""
        z = [theta[:, list(term.index)] @ term.design.T for term in self.terms]
        for form, term in zip(z, self.terms, strict=True):
            if term.offset is not None:
                form += term.offset
        if len(z) == 1:
            return z[0], [np.ones_like(z[0])]
        top = np.maximum(z[0], z[1])
        for other in z[2:]:
            np.maximum(top, other, out=top)
        for form in z:
            form -= top
            np.exp(form, out=form)
        total = z[0] + z[1]
        for other in z[2:]:
            total += other
        for form in z:
            form /= total
        np.log(total, out=total)
        total += top
        return total, z

    def take(self, chosen: np.ndarray) -> LogSumExp:
        """The same model of some of the points."""
        terms = [Term(t.index, t.design[chosen], None if t.offset is None else t.offset[chosen]) for t in self.terms]
        return LogSumExp(terms, self.target[chosen], self.parameters, scale=self.scale, prefactors=self.prefactors)

    def shares(self, theta: np.ndarray) -> np.ndarray:
        """[terms, points]: the part of each term in the law's value, at one θ."""
        return np.stack([p[0] for p in self._forms(theta[None])[1]])

    def predict(self, theta: np.ndarray) -> np.ndarray:
        """[batch, points] of the law's logarithm."""
        value, _ = self._forms(theta)
        return value if self.scale is None else theta[:, self.scale, None] * value

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """[points, parameters] of `predict` at one θ."""
        value, p = self._forms(theta[None])
        factor = 1.0 if self.scale is None else theta[self.scale]
        out = np.zeros((len(self.target), self.parameters))
        for share, term in zip(p, self.terms, strict=True):
            for column, index in enumerate(term.index):
                out[:, index] += factor * share[0] * term.design[:, column]
        if self.scale is not None:
            out[:, self.scale] += value[0]
        return out

    def objective(self, theta: np.ndarray, weights: np.ndarray | None = None, delta: float = DELTA) -> np.ndarray:
        """[batch] of Σ w · Huber_δ(target − predict)."""
        out = np.empty(len(theta))
        for part in self._cuts(len(theta)):
            residual = self.target - self.predict(theta[part])
            psi = np.clip(residual, -delta, delta)
            rho = psi * (residual - psi / 2)
            out[part] = rho.sum(1) if weights is None else np.einsum("bn,bn->b", rho, weights[part])
        return out

    def _cuts(self, batch: int) -> list[slice]:
        step = max(1, CHUNK // max(1, len(self.target)))
        return [slice(i, i + step) for i in range(0, batch, step)]

    def derivatives(
        self, theta: np.ndarray, weights: np.ndarray | None, delta: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Objective [batch], gradient [batch, parameters] and Hessian [batch, parameters, parameters]."""
        batch, size = theta.shape
        f, g, H = np.empty(batch), np.zeros((batch, size)), np.zeros((batch, size, size))
        for part in self._cuts(batch):
            f[part] = self._chunk(theta[part], None if weights is None else weights[part], delta, g[part], H[part])
        return f, g, H

    def _chunk(
        self, theta: np.ndarray, weights: np.ndarray | None, delta: float, g: np.ndarray, H: np.ndarray
    ) -> np.ndarray:
        value, p = self._forms(theta)
        factor = None if self.scale is None else theta[:, self.scale, None]
        residual = self.target - (value if factor is None else factor * value)
        psi = np.clip(residual, -delta, delta)
        inside = (psi == residual).astype(float)
        residual -= psi / 2
        residual *= psi
        if weights is not None:
            residual *= weights
            inside *= weights
            psi *= weights
        f = residual.sum(1)
        first = psi if factor is None else psi * factor
        both = inside + first if factor is None else inside * factor**2 + first
        curved = [first * share for share in p]
        for k, term in enumerate(self.terms):
            part = curved[k] @ term.design
            for column, index in enumerate(term.index):
                g[:, index] -= part[:, column]
        for j, k, features in self._pairs:
            mix = both * p[j]
            mix *= p[k]
            if j == k:
                mix -= curved[k]
            block = (mix @ features).reshape(len(theta), len(self.terms[j].index), -1)
            for row, left in enumerate(self.terms[j].index):
                for column, right in enumerate(self.terms[k].index):
                    H[:, left, right] += block[:, row, column]
                    if j != k:
                        H[:, right, left] += block[:, row, column]
        if self.scale is not None and factor is not None:
            g[:, self.scale] -= np.einsum("bn,bn->b", psi, value)
            H[:, self.scale, self.scale] += np.einsum("bn,bn->b", inside, value**2)
            cross = inside * factor * value - psi
            for share, term in zip(p, self.terms, strict=True):
                part = (cross * share) @ term.design
                for column, index in enumerate(term.index):
                    H[:, self.scale, index] += part[:, column]
                    H[:, index, self.scale] += part[:, column]
        return f


def minimise(
    model: LogSumExp,
    starts: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    delta: float = DELTA,
    homotopy: Sequence[float] = HOMOTOPY,
    iterations: int = 600,
    tolerance: float = TOLERANCE,
) -> Ends:
    """The local optimum below each start.

    Args:
        model: what is fitted.
        starts: [batch, parameters].
        weights: [batch, points] or None: how often each point counts in each problem (a bootstrap's draws).
        delta: δ of the Huber loss.
        homotopy: larger δ to begin with, a few steps each.
        iterations: at most so many steps at the last δ.
        tolerance: a step's predicted gain over the objective at which a fit has ended.
    """
    theta = np.array(starts, dtype=float)
    wider = [d for d in homotopy if d > delta]
    for wide in wider:
        theta, _, _ = _descend(model, theta, weights, wide, INNER, 1e-3)
    return Ends(*_descend(model, theta, weights, delta, iterations, tolerance))


def refit(
    model: LogSumExp, theta: np.ndarray, weights: np.ndarray, *, delta: float = DELTA, tolerance: float = 1e-10
) -> Ends:
    """The optimum of each resample, from that of the whole.

    Most are some steps away; the few that are not get the whole treatment.

    Args:
        theta: [parameters] to begin with.
        weights: [batch, points]: how often each point counts.
        tolerance: a resample's own spread is many orders wider than this.
    """
    theta = theta.copy()
    for term, share in zip(model.terms, model.shares(theta).max(1), strict=True):
        # a term that is nothing in the whole has no slope to come back by, where a resample wants it
        if (prefactor := term.index[0]) in model.prefactors and share < LEAST_SHARE:
            theta[prefactor] += np.log(LEAST_SHARE / max(share, 1e-300))
    starts = np.repeat(theta[None], len(weights), 0)
    ends = minimise(model, starts, weights=weights, delta=delta, homotopy=(), iterations=40, tolerance=tolerance)
    if (late := np.flatnonzero(~ends.converged)).size:
        more = minimise(model, starts[late], weights=weights[late], delta=delta, tolerance=tolerance)
        better = more.converged | (more.objective < ends.objective[late])
        late, more = late[better], Ends(*(part[better] for part in more))
        for whole, part in zip(ends, more, strict=True):
            whole[late] = part
    return ends


def _descend(
    model: LogSumExp, theta: np.ndarray, weights: np.ndarray | None, delta: float, iterations: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Damped Newton steps for each problem of the batch until it has ended; those that have leave the batch."""
    f, g, H = model.derivatives(theta, weights, delta)
    theta, f_all, done = theta.copy(), f.copy(), np.zeros(len(theta), bool)
    live, damping, stuck = np.arange(len(theta)), np.full(len(theta), 1e-4), np.zeros(len(theta), int)
    here, w = theta.copy(), weights
    for _ in range(iterations):
        trial, gain = _newton_step(model, here, g, H, damping)
        f_new, g_new, H_new = model.derivatives(trial, w, delta)
        better = f_new < f
        ratio = np.where(better, (f - f_new) / np.maximum(gain, 1e-300), 0.0)
        # a step that promises nothing any more, or one that rounding no longer lets improve, is the end
        arrived = (gain <= tolerance * f + 1e-300) & (damping < 1.0)
        stuck = np.where(better, 0, stuck + 1)
        arrived |= (stuck > 3) & (gain <= 1e-11 * f)
        ended = arrived | (stuck > 40)
        here = np.where(better[:, None], trial, here)
        f = np.where(better, f_new, f)
        g = np.where(better[:, None], g_new, g)
        H = np.where(better[:, None, None], H_new, H)
        damping = np.where(ratio > 0.75, damping / 8, np.where(ratio > 0.25, damping, damping * 5))
        np.clip(damping, 1e-12, 1e12, out=damping)
        theta[live], f_all[live], done[live] = here, f, arrived
        if ended.any():
            keep = ~ended
            live, here, f, g, H = live[keep], here[keep], f[keep], g[keep], H[keep]
            damping, stuck = damping[keep], stuck[keep]
            w = None if w is None else w[keep]
            if not len(live):
                break
    return theta, f_all, done


def _newton_step(
    model: LogSumExp, theta: np.ndarray, g: np.ndarray, H: np.ndarray, damping: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where −(H + λ·diag)⁻¹g leads each problem, and what the quadratic model says it gains.

    L·D·Lᵀ with |D|: where H is not positive definite the step still goes down (Gill and Murray 1974). Prefactors move
    along the value they are logarithms of, in which the law is linear: valleys are straighter there, and one whose best
    value is zero gets there in a few steps.
    """
    size = g.shape[1]
    A = np.moveaxis(H, 0, -1).copy()  # [size, size, batch]
    prefactors = list(model.prefactors)
    A[prefactors, prefactors] -= g.T[prefactors]  # d²/dc² = (d²/d(ln c)² − d/d(ln c)) / c², with c = 1
    diagonal = np.abs(np.einsum("iib->ib", A))
    # where no residual is within δ the Hessian may vanish: then a step's length is to be of the order of one
    diagonal = np.maximum(diagonal, np.abs(g.T)) + 1e-300
    top = diagonal.max(0)
    diagonal = np.maximum(diagonal, 1e-10 * top)
    for i in range(size):
        A[i, i] += damping * diagonal[i]
    floor = 1e-14 * top
    b = -g.T.copy()
    D = np.empty((size, A.shape[-1]))
    with np.errstate(over="ignore", invalid="ignore"):  # a step that is no number is refused like any bad one
        for i in range(size):
            D[i] = np.maximum(np.abs(A[i, i]), floor)
            for r in range(i + 1, size):
                factor = A[r, i] / D[i]
                A[r, i] = factor
                for c in range(i + 1, r + 1):
                    A[r, c] -= factor * D[i] * A[c, i] if c < r else factor**2 * D[i]
                b[r] -= factor * b[i]
        x = b / D
        gain = 0.5 * np.einsum("ib,ib->b", b, x)
        for i in range(size - 1, -1, -1):
            for r in range(i + 1, size):
                x[i] -= A[r, i] * x[r]
        x *= np.minimum(1.0, LONGEST / np.maximum(np.abs(x).max(0), 1e-300))
    x[prefactors] = np.log1p(np.maximum(x[prefactors], -0.9))
    return theta + x.T, gain
