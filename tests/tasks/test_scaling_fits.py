"""The fits on data whose law is known: recovered within their intervals, which cover; refused where nothing decides."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cluster.errors import BadConfig, BadData, UserError
from tasks.scaling.approach2 import fit_approach_2
from tasks.scaling.data_constrained import fit_data_constrained
from tasks.scaling.estimate import Fit, NotIdentified
from tasks.scaling.fit import as_json, fit_all, fit_approach_3, fit_names
from tasks.scaling.plots import pictures
from tasks.scaling.points import Points, points_of
from tests.tasks.scaling_data import EXPONENT_N, TRUE, isoflops, law, scatter


def one(points: Points, name: str, **settings: Any) -> Fit:
    return fit_all(points, [name], **{"bootstrap": 300, **settings})[0][name]


def inside(fit: Fit, true: dict[str, float]) -> list[bool]:
    return [fit.ci95[name][0] <= value <= fit.ci95[name][1] for name, value in true.items()]


def test_approach_3_recovers_a_law_exactly_where_there_is_no_noise() -> None:
    fit = one(scatter(60, 0, 0.0), "approach_3", bootstrap=0)
    for name, value in TRUE.items():
        assert fit.params[name] == pytest.approx(value, rel=1e-4)  # valleys are flat: the objective is 1e-14 there
    assert fit.derived["exponent_N"] == pytest.approx(EXPONENT_N, rel=1e-4)
    assert fit.derived["exponent_N"] + fit.derived["exponent_D"] == pytest.approx(1)


def test_intervals_cover() -> None:
    """Of 20 data sets the 95 % intervals hold the truth in 19 on average; fewer than 15 has a chance of 3e-4."""
    true = {**TRUE, "exponent_N": EXPONENT_N}
    fits = [one(scatter(60, seed), "approach_3", bootstrap=200) for seed in range(20)]
    covered = np.mean([inside(fit, true) for fit in fits], axis=0)
    assert (covered >= 15 / 20).all(), covered
    # intervals that are too wide cover as well: the middle half of the resamples must miss now and then
    halves = [[np.quantile(fit.draws[name], [0.25, 0.75]) for name in true] for fit in fits]
    half = np.mean([[low <= v <= high for (low, high), v in zip(h, true.values(), strict=True)] for h in halves])
    assert 0.25 < half < 0.85


@pytest.mark.parametrize("bootstrap", [0, 1, 20])
def test_pictures_are_drawn_without_intervals_where_resamples_are_too_few(bootstrap: int) -> None:
    points = isoflops()
    found, _ = fit_all(points, fit_names("all", points), bootstrap=bootstrap)
    drawn = dict(pictures(points, found))
    assert {"isoflop.svg", "envelope.svg", "contours.svg", "allocation.svg"} < set(drawn)


@pytest.mark.parametrize("name", ["approach_1", "approach_2", "approach_3"])
def test_approaches_agree_on_isoflop_lines(name: str) -> None:
    fit = one(isoflops(), name)
    assert inside(fit, {"exponent_N": EXPONENT_N, "exponent_D": 1 - EXPONENT_N}) == [True, True]
    # approach 1 sees each model size once here, and bins of budget
    assert fit.derived["exponent_N"] == pytest.approx(EXPONENT_N, abs=0.05 if name == "approach_1" else 0.02)


def test_approach_1_reads_curves_and_leaves_out_budgets_whose_best_model_is_an_edge() -> None:
    sizes, tokens = np.meshgrid(np.geomspace(3e7, 3e9, 14), np.geomspace(2e8, 2e11, 25), indexing="ij")
    points = points_of(law(sizes, tokens).ravel(), params=sizes.ravel(), tokens=tokens.ravel())
    fit = one(points, "approach_1")
    assert fit.derived["exponent_N"] == pytest.approx(EXPONENT_N, abs=0.02)
    assert fit.diagnostics["curves"] == 14
    # the same points as two runs of a size each: a curve is a run's
    runs = Points(**{**points.__dict__, "run": np.array([f"{n:.0f}-{i % 2}" for i, n in enumerate(points.params)])})
    assert one(runs, "approach_1").diagnostics["curves"] == 28
    assert one(runs, "approach_1").derived["exponent_N"] == pytest.approx(EXPONENT_N, abs=0.02)
    small = points.take(np.flatnonzero(points.params < 4e8))
    assert any("at an edge" in w for w in one(small, "approach_1").warnings)
    assert one(small, "approach_1").derived["exponent_N"] == pytest.approx(EXPONENT_N, abs=0.05)


def test_names_of_runs_that_make_no_curves_do_not_make_other_ones() -> None:
    """A name a row is no curve, and a seed's name on all sizes is not one curve of a size between them."""
    sizes, tokens = np.meshgrid(np.geomspace(3e7, 3e9, 14), np.geomspace(2e8, 2e11, 25), indexing="ij")
    points = points_of(law(sizes, tokens).ravel(), params=sizes.ravel(), tokens=tokens.ravel())
    expected = one(points, "approach_1")
    for name in ("own-{}", "seed-0", ""):
        run = np.array([name.format(i) for i in range(len(points))])
        fit = one(Points(**{**points.__dict__, "run": run}), "approach_1")
        assert fit.diagnostics["curves"] == 14 and fit.derived == expected.derived
    seeds = np.array([f"seed-{i % 4}" for i in range(len(points))])
    fit = one(Points(**{**points.__dict__, "run": seeds}), "approach_1")
    assert fit.diagnostics["curves"] == 4 * 14
    assert fit.derived["exponent_N"] == pytest.approx(EXPONENT_N, abs=0.02)


def test_resamples_without_a_line_leave_no_interval() -> None:
    """Bins of budget of which three have a minimum, just so."""
    rng = np.random.default_rng(3)
    for _ in range(40):
        params, tokens = np.exp(rng.uniform(14, 23, 16)), np.exp(rng.uniform(16, 25, 16))
        try:
            fit = one(points_of(law(params, tokens), params=params, tokens=tokens), "approach_1", bootstrap=1)
        except NotIdentified:
            continue
        if not len(fit.draws.get("exponent_N", ())):
            assert fit.ci95 == {} and "0 of 1 resamples have three budgets with a minimum" in fit.warnings[-1]
            return
    raise AssertionError("all resamples had a line")


def test_a_wide_isoflop_line_does_not_pull_its_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap: a parabola over a grid that is wide and off centre is biased; only models near its minimum count."""
    points = isoflops(noise=0.0, sizes=17, wide=30.0)
    centre = np.log(points.params) - np.log(points.tokens) / 2
    lopsided = points.take(np.flatnonzero(centre < np.quantile(centre, 0.75)))
    near = abs(fit_approach_2(lopsided, bootstrap=0).derived["exponent_N"] - EXPONENT_N)
    monkeypatch.setattr("tasks.scaling.approach2.WINDOW", 1e6)
    assert near < 0.02 and near < abs(fit_approach_2(lopsided, bootstrap=0).derived["exponent_N"] - EXPONENT_N)


def test_exponents_of_rough_isoflop_lines_make_one() -> None:
    """Sizes × tokens, of which those within a tenth of one budget are a line: N·D grows as C on it, too."""
    sizes, tokens = np.meshgrid(np.geomspace(3e7, 3e9, 14), np.geomspace(2e8, 2e11, 25), indexing="ij")
    fit = one(points_of(law(sizes, tokens).ravel(), params=sizes.ravel(), tokens=tokens.ravel()), "approach_2")
    assert any("the lines are rough" in w for w in fit.warnings)
    assert fit.derived["exponent_N"] + fit.derived["exponent_D"] == pytest.approx(1, abs=1e-6)
    assert 6 * fit.params["k_N"] * fit.params["k_D"] == pytest.approx(1, abs=1e-4)


def test_isoflop_lines_without_a_minimum_are_left_out() -> None:
    points = isoflops(noise=0.0)
    budgets = np.unique(points.flops)
    cut = points.take(np.flatnonzero((points.flops > budgets[1] * 1.01) | (points.params > 2.5e8)))
    fit = fit_approach_2(cut, bootstrap=0)
    assert any("have no minimum" in w for w in fit.warnings)
    assert fit.derived["exponent_N"] == pytest.approx(EXPONENT_N, abs=0.02)


def test_kaplan_forms_recover_their_own_laws() -> None:
    rng = np.random.default_rng(0)
    params, tokens = np.exp(rng.uniform(14, 23, 80)), np.exp(rng.uniform(17, 25, 80))
    n_c, d_c, alpha_n, alpha_d = 6.4e13, 1.8e13, 0.076, 0.103  # Kaplan et al. 2020, table 2
    noise = np.exp(0.002 * rng.standard_normal(80))
    joint = ((n_c / params) ** (alpha_n / alpha_d) + d_c / tokens) ** alpha_d * noise
    fit = one(points_of(joint, params=params, tokens=tokens), "kaplan_ND")
    assert all(inside(fit, {"N_c": n_c, "D_c": d_c, "alpha_N": alpha_n, "alpha_D": alpha_d}))
    alone = points_of((8.8e13 / params) ** 0.076, params=params, tokens=np.full(80, 1e12))
    fit = one(alone, "kaplan_N", bootstrap=0)
    assert fit.params == {"N_c": pytest.approx(8.8e13, rel=1e-6), "alpha_N": pytest.approx(0.076, rel=1e-6)}
    alone = points_of((5.4e13 / tokens) ** 0.095, params=np.full(80, 1e12), tokens=tokens)
    fit = one(alone, "kaplan_D", bootstrap=0)
    assert fit.params == {"D_c": pytest.approx(5.4e13, rel=1e-6), "alpha_D": pytest.approx(0.095, rel=1e-6)}
    alone = points_of((1e26 / (6 * params * tokens)) ** 0.05, params=params, tokens=tokens)
    assert one(alone, "kaplan_C", bootstrap=0).params["alpha_C"] == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("factor", [6.0, 3.0])
def test_over_training_is_chinchilla_with_one_exponent(factor: float) -> None:
    """Gadre et al. 2024, equation 4: E + (a·M^η + b·M^−η)·C^−η; C as the file counts it."""
    rng = np.random.default_rng(0)
    params, ratio = np.exp(rng.uniform(16, 22, 60)), np.exp(rng.uniform(2, 6, 60))
    flops = factor * params**2 * ratio
    loss = 1.7 + (160 * ratio**0.13 + 280 * ratio**-0.13) * flops**-0.13
    given = {} if factor == 6 else {"flops": flops}
    fit = one(points_of(loss, params=params, tokens=ratio * params, **given), "over_training", bootstrap=0)
    assert fit.params == {
        "E": pytest.approx(1.7, rel=1e-4),
        "a": pytest.approx(160, rel=1e-3),
        "b": pytest.approx(280, rel=1e-3),
        "eta": pytest.approx(0.13, rel=1e-4),
    }


def repeated(epochs: tuple[float, ...], seed: int = 0, noise: float = 0.002) -> Points:
    """Runs by Muennighoff et al.'s law with R_D* = 15.4, R_N* = 5.3."""
    params, unique, times = (
        g.ravel() for g in np.meshgrid(np.geomspace(5e6, 2e9, 7), np.geomspace(1e8, 2e10, 5), epochs)
    )
    a, b = TRUE["alpha"], TRUE["beta"]
    base = np.minimum(params, (a * TRUE["A"] / (b * TRUE["B"]) * unique**b) ** (1 / a))
    n = base * (1 + 5.3 * (1 - np.exp(-(params / base - 1) / 5.3)))
    d = unique * (1 + 15.4 * (1 - np.exp(-(times - 1) / 15.4)))
    n = np.where(times > 1, n, params)
    loss = law(n, d) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(params)))
    return points_of(loss, params=params, tokens=unique * times, unique_tokens=unique)


def test_repeated_data_is_worth_what_it_was() -> None:
    fit = fit_data_constrained(repeated((1, 2, 4, 8, 16, 40)), bootstrap=100)
    assert all(inside(fit, {**TRUE, "R_D": 15.4, "R_N": 5.3}))
    assert fit.params["R_D"] == pytest.approx(15.4, rel=0.15)


def test_repetition_that_was_not_run_is_not_identified() -> None:
    with pytest.raises(NotIdentified, match="0 runs repeat data"):
        fit_data_constrained(repeated((1,)), bootstrap=0)
    with pytest.raises(BadData, match="--unique-tokens"):
        fit_data_constrained(scatter(30, 0), bootstrap=0)


# ---------------------------------------------------------------- refusals and doubts


def cut(points: Points, **columns: np.ndarray) -> Points:
    params, tokens = columns.get("params", points.params), columns.get("tokens", points.tokens)
    noise = np.exp(0.005 * np.random.default_rng(5).standard_normal(len(params)))
    return points_of(law(params, tokens) * noise, params=params, tokens=tokens)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (scatter(5, 0), "5 points cannot tell 5 parameters"),
        (cut(scatter(40, 0), params=np.full(40, 1e8)), "params has 1 distinct value"),
        (cut(scatter(40, 0), tokens=np.repeat([1e9, 1e11], 20)), "tokens has 2 distinct values"),
        (cut(scatter(40, 0), tokens=20 * scatter(40, 0).params), "move together.*alpha and beta"),
    ],
)
def test_data_that_cannot_tell_a_parameter_are_refused(points: Points, said: str) -> None:
    with pytest.raises(NotIdentified, match=said):
        fit_approach_3(points, bootstrap=0)
    with pytest.raises(UserError):
        fit_all(points, ["approach_1", "approach_2", "approach_3", "kaplan_C"], bootstrap=0)


def test_losses_that_say_nothing_are_refused() -> None:
    points = scatter(60, 2)
    where = {"params": points.params, "tokens": points.tokens}
    with pytest.raises(NotIdentified, match="all losses are equal"):
        fit_all(points_of(np.full(60, 3.0), **where), fit_names("all"), bootstrap=0)
    with pytest.raises(NotIdentified, match="(alpha|beta) is -.* the loss does not fall"):
        fit_approach_3(points_of(1 / points.loss, **where), bootstrap=0)


def test_few_points_get_asymptotic_intervals() -> None:
    """Of six points hardly a resample has six: a bootstrap of what is left would say nothing."""
    fit = one(scatter(6, 0), "approach_3", bootstrap=50)
    assert set(fit.se) == set(fit.ci95) == {*TRUE, "exponent_N", "exponent_D"}
    assert any("asymptotic" in w for w in fit.warnings) and any("6 points for 5 parameters" in w for w in fit.warnings)


def test_what_is_beyond_any_number_is_not_printed() -> None:
    """Losses that hardly fall: N_c = N·L^(1/α) is no float for α = 0.001; JSON has no infinity."""
    params, tokens = np.geomspace(1e7, 1e9, 8), np.geomspace(1e9, 1e10, 8) ** 1.1
    flat = points_of(3 * params**-0.001, params=params, tokens=tokens)
    with pytest.raises(NotIdentified, match="N_c is beyond any number"):
        one(flat, "kaplan_N", bootstrap=0)
    rng = np.random.default_rng(0)
    for _ in range(30):
        few = points_of(np.exp(rng.uniform(0, 3, 8)), params=rng.permutation(params), tokens=rng.permutation(tokens))
        try:
            fit = one(few, "kaplan_ND", bootstrap=0)
        except NotIdentified:
            continue
        json.dumps(fit.as_json(), allow_nan=False, default=float)


def test_starts_that_disagree_at_one_objective_are_refused() -> None:
    """A loss that does not depend on tokens: B and beta may be anything."""
    points = scatter(50, 0)
    flat = points_of(TRUE["E"] + TRUE["A"] / points.params ** TRUE["alpha"], params=points.params, tokens=points.tokens)
    with pytest.raises(NotIdentified, match="(beta|B|E).*(identified|apart)"):
        fit_approach_3(flat, bootstrap=0)


def test_losses_below_the_irreducible_one_and_outliers_are_told() -> None:
    points = scatter(80, 0)
    loss = points.loss.copy()
    loss[7] = 1.5
    fit = one(points_of(loss, params=points.params, tokens=points.tokens), "approach_3")
    assert any("1 losses lie below the irreducible loss" in w and "line 9" in w for w in fit.warnings)
    assert fit.diagnostics["outliers"][0]["line"] == 9
    assert all(inside(fit, TRUE)), "one bad run of eighty does not move a robust fit"


def test_an_irreducible_loss_of_zero_is_told() -> None:
    """Losses of pure power laws: exponents are known, E is not."""
    points = scatter(60, 0)
    loss = 20 * points.params**-0.1 + 300 * points.tokens**-0.3
    fit = one(points_of(loss, params=points.params, tokens=points.tokens), "approach_3", bootstrap=0)
    assert any("E is not identified" in w for w in fit.warnings)
    assert fit.derived["exponent_N"] == pytest.approx(0.75, abs=1e-3)


def test_leverage_finds_the_point_that_holds_the_fit() -> None:
    points = scatter(60, 0)
    far = points_of(
        np.r_[points.loss, law(np.array([1e12]), np.array([1e13]))],
        params=np.r_[points.params, 1e12],
        tokens=np.r_[points.tokens, 1e13],
    )
    assert one(far, "approach_3", bootstrap=0).diagnostics["leverage"][0]["line"] == 62


def test_residuals_that_bend_are_seen() -> None:
    """A pure power law through data with an irreducible loss: the residuals' curvature says so."""
    fit = one(isoflops(), "kaplan_C", bootstrap=0)
    assert abs(fit.diagnostics["residuals"]["trend_t"]["log_C_squared"]) > 3


def test_json_has_the_named_keys_and_one_seed_gives_one_result() -> None:
    points = scatter(60, 0)
    found, refused = fit_all(points, fit_names("all"), bootstrap=100)
    result = as_json(points, found, refused)
    part = result["approach_3"]
    assert set(part["params"]) == {"E", "A", "B", "alpha", "beta"}
    assert {"exponent_N", "exponent_D", "objective", "ci95", "se", "warnings"} <= set(part)
    assert set(part["ci95"]) == set(part["se"]) == {*part["params"], "exponent_N", "exponent_D"}
    assert "exponent_N" in result["approach_1"] and "refused" in result["approach_2"]
    again = as_json(points, *fit_all(points, ["approach_3"], bootstrap=100))
    assert again["approach_3"] == part
    residual = np.log(points.loss) - np.log(law_of_params(points, part["params"]))
    psi = np.clip(residual, -1e-3, 1e-3)
    assert part["objective"] == pytest.approx(float((psi * (residual - psi / 2)).sum()), rel=1e-9)


def law_of_params(points: Points, p: dict[str, float]) -> np.ndarray:
    return p["E"] + p["A"] / points.params ** p["alpha"] + p["B"] / points.tokens ** p["beta"]


def test_standard_errors_without_a_bootstrap_are_of_its_size() -> None:
    points = scatter(240, 1)
    plain, drawn = (one(points, "approach_3", bootstrap=n) for n in (0, 300))
    assert inside(plain, {"alpha": TRUE["alpha"], "beta": TRUE["beta"]}) == [True, True]
    for name in ("alpha", "beta", "E"):  # asymptotic against resampled: of one order, not equal
        assert 0.4 < plain.se[name] / drawn.se[name] < 2.5


def test_an_unknown_approach_is_named() -> None:
    with pytest.raises(BadConfig, match="--approach '4' is not known"):
        fit_names("4")
