"""Optima under limits, the least compute to a loss, and which run to do next."""

import dataclasses

import numpy as np
import pytest

from bigmodel.errors import UserError
from bigmodel.laws import chinchilla, design, fitting, forecast, forms, optimum
from bigmodel.laws.optimum import Limits
from bigmodel.laws.points import Points

PARAMS = {"A": 480.0, "B": 2100.0, "E": 1.8, "alpha": 0.35, "beta": 0.37}


def loss(N, D):
  return PARAMS["E"] + PARAMS["A"] / N ** PARAMS["alpha"] + PARAMS["B"] / D ** PARAMS["beta"]


def runs(seed=0, noise=2e-3, top=1e20):
  C = np.repeat(np.geomspace(1e17, top, 6), 7)
  N = 0.1 * np.sqrt(C) * np.tile(np.geomspace(0.2, 5, 7), 6)
  D = C / 6 / N
  return Points(N, D, C, loss(N, D) * np.exp(noise * np.random.default_rng(seed).normal(size=len(C))))


def of_one_law(base, points, noise=2e-3, discrepancy=0.0):
  return forecast.Forecaster(points, (base,), np.ones(1), forecast.Spread(noise, discrepancy, 6))


@pytest.fixture(scope="module")
def fit():
  return chinchilla.fit(runs(), 200)


@pytest.fixture(scope="module")
def forecaster(fit):
  return of_one_law(fit.base, fit.points)


@pytest.fixture(scope="module")
def true(fit):
  """The forecaster whose law is the true one."""
  theta = chinchilla.LAW.theta(PARAMS)
  return of_one_law(dataclasses.replace(fit.base, theta=theta, draws=theta[None]), fit.points)


@pytest.mark.parametrize("C", [1e18, 1e24])
def test_without_limits_it_is_the_closed_form(fit, forecaster, C):
  size = optimum.best(forecaster, C)
  assert pytest.approx(fit.optimum(C), rel=1e-6) == (size.N, size.D)
  assert optimum.compute(forecaster, size.loss) == pytest.approx(C, rel=1e-9)


@pytest.mark.parametrize(
  "limits", [Limits(params=1e9), Limits(tokens=1e11), Limits(served=2e12), Limits(3e9, 1e12, 1e11)]
)
def test_no_size_within_the_limits_is_better(limits, true):
  """Against a fine grid of sizes; the other way, from the loss back to the compute, agrees."""
  C, k = 1e23, 6.0
  size = optimum.best(true, C, limits)
  sizes = np.geomspace(1e6, limits.params if np.isfinite(limits.params) else 1e14, 40_001)
  data = np.minimum(C / (k * sizes) - limits.served / 3, limits.tokens)
  grid = np.where(data > 0, loss(sizes, np.maximum(data, 1)), np.inf)
  assert size.loss <= grid.min() * (1 + 1e-12)
  assert size.loss == pytest.approx(grid.min(), rel=1e-5)
  assert limits.params >= size.N
  assert limits.tokens * (1 + 1e-12) >= size.D
  spent = k * size.N * (size.D + limits.served / 3)
  assert spent <= C * (1 + 1e-9)
  assert optimum.compute(true, size.loss, limits) == pytest.approx(spent, rel=1e-6)


def test_a_model_that_will_be_served_is_smaller_and_trained_longer(true):
  """Sardana et al. 2024: the more is served, the smaller and the longer trained."""
  sizes = [optimum.least(true, 2.1, Limits(served=served)) for served in (0.0, 1e11, 1e12, 1e13)]
  total, N, D = (np.array([getattr(size, name) for size in sizes]) for name in "CND")
  assert (np.diff(total) > 0).all()
  assert (np.diff(N) < 0).all()
  assert (np.diff(D) > 0).all()
  assert loss(N, D) == pytest.approx(2.1, rel=1e-9)


def test_a_loss_below_the_irreducible_one_is_never_reached(forecaster, true):
  said = optimum.least(forecaster, 1.2)
  assert said.C is None
  assert said.reached_in == 0
  assert optimum.least(forecaster, 2.5).reached_in == 1
  assert optimum.compute(true, 2.1, Limits(tokens=1e9)) == np.inf  # E + B / D^beta alone is more


def test_other_sizes_cost_compute_and_intervals_contain_the_truth(forecaster, true):
  said = optimum.at(forecaster, 1e21)
  assert said.N_interval90 is not None
  low, high = said.N_interval90
  assert low is not None
  assert high is not None
  assert low < optimum.best(true, 1e21).N < high
  assert [row.times for row in said.off] == list(optimum.OFF)
  cost = [row.compute for row in said.off]
  assert cost[0] < cost[1] < 1 > cost[2] > cost[3]
  for row in said.off:  # so much of the compute, spent well, is as good
    assert optimum.best(forecaster, row.compute * 1e21).loss == pytest.approx(row.loss, rel=1e-9)


def test_intervals_of_best_sizes_count_draws_by_the_weights_of_their_fits(true):
  """Of two fits whose best sizes are far apart, 3% of the weight does not widen a 90% interval, and 30% does."""
  (fit,) = true.fits
  theta = chinchilla.LAW.theta({**PARAMS, "A": 4800.0})
  fits = (fit, dataclasses.replace(fit, theta=theta, draws=theta[None]))
  ends = {}
  for share in (1e-4, 0.03, 0.3, 0.97):
    both = dataclasses.replace(true, fits=fits, weights=np.array([1 - share, share]))
    draws = optimum.drawn(both, optimum.Budget(1e21, 6.0), 1e9)
    ends[share] = optimum.weighted_interval(draws.log_n, draws.weights)
    assert len(draws.log_n) == (1 if share == 1e-4 else 2)
  low, high = ends[0.03]
  assert low == high
  assert low == pytest.approx(np.log(optimum.best(true, 1e21).N), abs=1e-3)
  assert ends[0.97][0] == ends[0.97][1] > low + 1
  assert ends[0.3] == (low, ends[0.97][1])


def of_named_law(name):
  points = runs(noise=0.0)
  law = forms.LAWS[name]
  base = fitting.fit(law, [getattr(points, column) for column in law.columns], points.loss)
  return of_one_law(dataclasses.replace(base, draws=base.theta[None]), points)


@pytest.mark.parametrize(("name", "fewer"), [("separable", "parameters"), ("kaplan_n", "tokens"), ("farseer", "")])
def test_the_best_size_is_not_where_nothing_was_measured(name, fewer):
  """Laws whose loss falls towards a single parameter or token have a minimum near the runs, or no best size."""
  forecaster = of_named_law(name)
  if fewer:
    with pytest.raises(UserError, match=f"by {name} the loss falls the fewer {fewer} there are"):
      optimum.at(forecaster, 1e22)
    return
  said = optimum.at(forecaster, 1e20)
  assert 1e-4 < said.N / said.D < 1e2
  assert said.N_interval90 == pytest.approx((said.N, said.N), rel=1e-2)
  assert all(0 < row.compute < 1 for row in said.off)


def test_a_run_lowers_the_variance_as_predicted(true):
  """Of 100 data sets, with and without the run: the spread of forecasts, against the prediction from one data set."""
  noise, C = 1e-3, 1e22
  fit = chinchilla.fit(runs(noise=noise), 400)
  forecaster = of_one_law(fit.base, fit.points, noise)
  size = optimum.best(true, C)
  N, D = size.N, size.D
  before, after = [], []
  for seed in range(100):
    points = runs(seed, noise)
    measured = loss(N, D) * np.exp(noise * np.random.default_rng(1000 + seed).normal())
    before.append(points)
    with_run = [np.append(old, new) for old, new in ((points.N, N), (points.D, D), (points.C, C))]
    after.append(Points(with_run[0], with_run[1], with_run[2], np.append(points.loss, measured)))
  sets = fitting.stack([((own.N, own.D), own.loss, None) for own in before + after])
  thetas, _, _ = fitting.best(chinchilla.LAW, sets, fitting.Loss(), starts=fit.base.theta[None])
  errors = np.log(fit.base.predict(N, D, theta=thetas)) - np.log(loss(N, D))
  found = np.mean(np.square(errors[100:])) / np.mean(np.square(errors[:100]))
  added = Points(np.array([N]), np.array([D]), np.array([C]), np.ones(1))
  (predicted,) = design.variance_with(forecaster, forecast.Scale(N, D, C), added).parameters
  predicted /= design.variance(forecaster, forecast.Scale(N, D, C)).parameters[0]
  assert 0.2 < predicted < 0.8
  assert found == pytest.approx(predicted, abs=0.2)


def test_the_next_run_is_large_if_the_discrepancy_dominates_and_edges_are_listed(fit):
  wide = design.design(of_one_law(fit.base, fit.points, discrepancy=0.02), 1e22, 1e21)
  assert wide.next is not None
  assert fit.points.C.max() < wide.next.C
  assert max(row.reduction for row in wide.candidates) == wide.candidates[-1].reduction
  assert all(edge.inside for edge in wide.edges)
  small = dataclasses.replace(fit, points=fit.points[0.1 * np.sqrt(fit.points.C) > fit.points.N])
  assert not any(edge.inside for edge in design.edges(small.points))
  none = design.design(of_one_law(fit.base, fit.points), 1e20, 1e17)
  assert none.next is None or none.next.reduction >= design.WORTH


DESIGNS = 60


def best_size(C, A, B, alpha, beta):
  """The best N of Chinchilla's law (Hoffmann et al. 2022, equation 4)."""
  return (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (C / 6) ** (beta / (alpha + beta))


def simulated(seed):
  """An isoFLOP design with a random law of Chinchilla's form, and the best N at 8 times its largest budget."""
  rng = np.random.default_rng(seed)
  budgets, sizes = ((5, 5), (4, 6), (6, 7), (5, 7), (5, 4), (8, 4))[seed % 6]
  top, noise = 10 ** rng.uniform(17, 20), (0.002, 0.005, 0.01)[seed % 3]
  alpha, beta, E = rng.uniform(0.25, 0.45), rng.uniform(0.25, 0.45), rng.uniform(1.5, 2.2)
  C = np.repeat(np.geomspace(top / (16, 32, 64)[seed // 6 % 3], top, budgets), sizes)
  n, d = np.sqrt(C[0] / 120), np.sqrt(C[0] / 120) * 20
  A = rng.uniform(0.1, 0.3) * E * n**alpha  # at that size the term of N is 10 to 30% of E
  B = A * n**-alpha * alpha / beta * d**beta  # and that size is the best one for its budget
  spread = np.tile(np.geomspace(1 / 3, 3, sizes), budgets) * np.exp(rng.uniform(-0.5, 0.5))
  N = best_size(C, A, B, alpha, beta) * spread
  D = C / 6 / N
  measured = (E + A / N**alpha + B / D**beta) * np.exp(noise * rng.normal(size=len(C)))
  return Points(N, D, C, measured), best_size(8 * top, A, B, alpha, beta)


@pytest.mark.slow
def test_intervals_of_the_best_size_at_eight_times_the_largest_budget_cover_the_truth():
  """Over simulated isoFLOP designs of 20 to 42 runs: of true laws of Chinchilla's form, with noise of 0.2 to 1%."""
  inside, widths = [], []
  for seed in range(DESIGNS):
    points, truth = simulated(seed)
    found = optimum.at(forecast.fit(points, bootstraps=100), 8 * points.C.max())
    assert found.N_interval90 is not None
    low, high = found.N_interval90
    assert low is not None
    assert high is not None
    inside.append(low <= truth <= high)
    widths.append(np.log(high / low))
  assert 0.8 <= np.mean(inside) <= 0.97
  assert np.median(widths) < np.log(6)  # more would say hardly anything about the size
