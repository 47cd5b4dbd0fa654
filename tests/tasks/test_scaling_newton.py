"""The batched minimiser: exact derivatives, and optima that SciPy's L-BFGS does not beat."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from tasks.scaling import forms
from tasks.scaling.newton import DELTA, LogSumExp, Term, minimise, refit
from tests.tasks.scaling_data import scatter

POINTS = scatter(60, 0, 0.02)


@pytest.mark.parametrize("form", [forms.chinchilla, forms.over_training, forms.kaplan_joint])
def test_gradient_and_hessian_are_those_of_the_objective(form: object) -> None:
    model = form(POINTS).model  # type: ignore[operator]
    theta = form(POINTS).starts[:1]  # type: ignore[operator]
    weights = np.random.default_rng(0).integers(0, 3, (1, len(POINTS))).astype(float)
    wide = 10.0  # no residual is at the loss's corner, where differences would see both sides
    _, g, H = model.derivatives(theta, weights, wide)
    step = 1e-5
    for i in range(model.parameters):
        shift = np.zeros_like(theta)
        shift[0, i] = step
        up, down = (model.derivatives(theta + s * shift, weights, wide) for s in (1, -1))
        # central differences: error step² of third derivatives, 1e-10, over rounding 1e-16/step
        np.testing.assert_allclose(g[0, i], (up[0] - down[0])[0] / (2 * step), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(H[0, i], (up[1] - down[1])[0] / (2 * step), rtol=1e-5, atol=1e-6 * np.abs(H).max())


def test_a_straight_line_ends_where_linear_programming_does() -> None:
    """δ → 0 is least absolute deviations, whose optimum is a vertex: no curvature to go by."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=40), rng.standard_t(2, 40)
    design = np.column_stack([np.ones(40), x])
    delta = 1e-7
    ends = minimise(
        LogSumExp([Term((0, 1), design)], y, 2), np.zeros((1, 2)), delta=delta, homotopy=(1, 0.1, 1e-2, 1e-4)
    )
    size = len(y)
    bounds = [(None, None)] * 2 + [(0, None)] * size
    found = linprog(
        np.r_[0, 0, np.ones(size)],
        np.block([[-design, -np.eye(size)], [design, -np.eye(size)]]),
        np.r_[-y, y],
        bounds=bounds,
    )
    # the Huber loss lies below δ·|r| by at most δ²/2 a point
    assert ends.objective[0] / delta == pytest.approx(found.fun, abs=size * delta)


def scipy_best(*, mean: bool, gradient: bool, tight: bool) -> float:
    """The usual loop: (a, b, e, α, β) of LSE(a − α·ln N, b − β·ln D, e) by L-BFGS-B, from some of the usual grid."""
    x, y, target = np.log(POINTS.params), np.log(POINTS.tokens), np.log(POINTS.loss)
    size = len(target) if mean else 1

    def both(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a, b, e, alpha, beta = theta
        z = np.stack([a - alpha * x, b - beta * y, np.full_like(x, e)])
        value = np.logaddexp.reduce(z)
        p, residual = np.exp(z - value), target - value
        psi = np.clip(residual, -DELTA, DELTA)
        by = p @ np.diag(psi)
        slope = np.array([by[0].sum(), by[1].sum(), by[2].sum(), -by[0] @ x, -by[1] @ y])
        return float((psi * (residual - psi / 2)).sum()) / size, -slope / size

    options = {"ftol": 1e-16, "gtol": 1e-13, "maxiter": 5000, "maxfun": 50_000, "maxcor": 30} if tight else {}
    starts = [(5, 5, 0, 0.5, 0.5), (10, 5, 0.5, 0.5, 0.5), (5, 10, 0, 0.5, 1), (10, 10, 1, 1, 0.5)]
    found = [
        minimize(both if gradient else lambda t: both(t)[0], s, jac=gradient, method="L-BFGS-B", options=options).fun
        for s in starts
    ]
    return size * min(found)


def test_lbfgs_is_never_better_and_its_usual_settings_stop_early() -> None:
    """The trap of Hoffmann et al.'s fit: a mean loss under default tolerances looks converged and is not."""
    form = forms.chinchilla(POINTS)
    best = float(minimise(form.model, form.starts).objective.min())
    tight = scipy_best(mean=False, gradient=True, tight=True)
    assert best <= tight * (1 + 1e-9)
    assert tight <= best * (1 + 1e-3)  # it is the same problem
    assert scipy_best(mean=True, gradient=False, tight=False) > 1.03 * best
    # a sum alone is not enough either
    assert scipy_best(mean=False, gradient=False, tight=False) > best * (1 + 1e-3)


def test_starts_agree_and_resamples_start_from_there() -> None:
    form = forms.chinchilla(POINTS)
    assert form.tried >= 4500
    ends = minimise(form.model, form.starts)
    assert (ends.objective <= ends.objective.min() * (1 + 1e-9)).mean() > 0.8
    theta = ends.theta[ends.objective.argmin()]
    weights = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), 5).astype(float)
    warm = refit(form.model, theta, weights)
    for i in range(5):
        cold = minimise(form.model, form.starts, weights=np.repeat(weights[i][None], len(form.starts), 0))
        assert warm.objective[i] <= cold.objective.min() * (1 + 1e-6)


def test_a_term_whose_best_size_is_zero_gets_there() -> None:
    """Losses of a pure power law in N and D: E is nought, and its logarithm has no bottom."""
    points = scatter(40, 3, 0.0)
    from tasks.scaling.points import points_of

    points = points_of(20 * points.params**-0.1 + 300 * points.tokens**-0.3, params=points.params, tokens=points.tokens)
    form = forms.chinchilla(points)
    ends = minimise(form.model, form.starts)
    named = form.named(ends.theta[ends.objective.argmin()][None])
    assert named["E"][0] < 1e-3 and named["alpha"][0] == pytest.approx(0.1, abs=1e-3)
