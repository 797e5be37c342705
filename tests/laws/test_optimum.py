"""Optima under limits, the least compute to a loss, and which run to do next."""

import dataclasses

import numpy as np
import pytest

from bigmodel.laws import chinchilla, design, fitting, forecast, optimum
from bigmodel.laws.optimum import Limits
from bigmodel.laws.points import Points

PARAMS = {"A": 480.0, "B": 2100.0, "E": 1.8, "alpha": 0.35, "beta": 0.37}
THETA = np.array([np.log(PARAMS["A"]), np.log(PARAMS["B"]), np.log(PARAMS["E"]), 0.35, 0.37])


def loss(N, D):
  return PARAMS["E"] + PARAMS["A"] / N ** PARAMS["alpha"] + PARAMS["B"] / D ** PARAMS["beta"]


def runs(seed=0, noise=2e-3, top=1e20):
  C = np.repeat(np.geomspace(1e17, top, 6), 7)
  N = 0.1 * np.sqrt(C) * np.tile(np.geomspace(0.2, 5, 7), 6)
  D = C / 6 / N
  return Points(N, D, C, loss(N, D) * np.exp(noise * np.random.default_rng(seed).normal(size=len(C))))


@pytest.fixture(scope="module")
def fit():
  return chinchilla.fit(runs(), 200)


@pytest.mark.parametrize("C", [1e18, 1e24])
def test_without_limits_it_is_the_closed_form(fit, C):
  N, D, low = optimum.best(fit.theta[None], C, 6.0)
  assert (N[0], D[0]) == pytest.approx(fit.optimum(C), rel=1e-6)
  assert optimum.reach(fit.theta[None], low, 6.0)[0][0] == pytest.approx(C, rel=1e-9)


@pytest.mark.parametrize(
  "limits", [Limits(params=1e9), Limits(tokens=1e11), Limits(served=2e12), Limits(3e9, 1e12, 1e11)]
)
def test_no_size_within_the_limits_is_better(limits):
  """Against a fine grid of sizes; the other way, from the loss back to the compute, agrees."""
  C, k = 1e23, 6.0
  N, D, low = optimum.best(THETA[None], C, k, limits)
  sizes = np.geomspace(1e6, limits.params if np.isfinite(limits.params) else 1e14, 40_001)
  data = np.minimum(C / (k * sizes) - limits.served / 3, limits.tokens)
  grid = np.where(data > 0, loss(sizes, np.maximum(data, 1)), np.inf)
  assert low[0] <= grid.min() * (1 + 1e-12)
  assert low[0] == pytest.approx(grid.min(), rel=1e-5)
  assert N[0] <= limits.params
  assert D[0] <= limits.tokens * (1 + 1e-12)
  spent = k * N[0] * (D[0] + limits.served / 3)
  assert spent <= C * (1 + 1e-9)
  needed, _, _ = optimum.reach(THETA[None], low, k, limits)
  assert needed[0] == pytest.approx(spent, rel=1e-6)


def test_a_model_that_will_be_served_is_smaller_and_trained_longer():
  """Sardana et al. 2024: the more is served, the smaller and the longer trained."""
  sizes = [optimum.reach(THETA[None], 2.1, 6.0, Limits(served=served)) for served in (0.0, 1e11, 1e12, 1e13)]
  total, N, D = (np.array(column).ravel() for column in zip(*sizes, strict=True))
  assert (np.diff(total) > 0).all()
  assert (np.diff(N) < 0).all()
  assert (np.diff(D) > 0).all()
  assert loss(N, D) == pytest.approx(2.1, rel=1e-9)


def test_a_loss_below_the_irreducible_one_is_never_reached(fit):
  said = optimum.least(fit, 1.2)
  assert said.C is None
  assert said.reached_in == 0
  assert optimum.least(fit, 2.5).reached_in == 1
  assert optimum.reach(THETA[None], 2.1, 6.0, Limits(tokens=1e9))[0][0] == np.inf  # E + B / D^beta alone is more


def test_other_sizes_cost_compute_and_intervals_contain_the_truth(fit):
  said = optimum.at(fit, 1e21)
  N, _, _ = optimum.best(THETA[None], 1e21, 6.0)
  assert said.N_interval90 is not None
  low, high = said.N_interval90
  assert low is not None
  assert high is not None
  assert low < N[0] < high
  assert [row.times for row in said.off] == list(optimum.OFF)
  cost = [row.compute for row in said.off]
  assert cost[0] < cost[1] < 1 > cost[2] > cost[3]
  for row in said.off:  # so much of the compute, spent well, is as good
    assert optimum.best(fit.theta[None], row.compute * 1e21, 6.0)[2][0] == pytest.approx(row.loss, rel=1e-9)


def test_a_run_lowers_the_variance_as_predicted():
  """Of 100 data sets, with and without the run: the spread of forecasts, against the prediction from one data set."""
  noise, C = 1e-3, 1e22
  fit = chinchilla.fit(runs(noise=noise), 400)
  forecaster = forecast.Forecaster(fit.points, (fit.base,), np.ones(1), forecast.Spread(noise, 0.0, 1))
  N, D = (float(x[0]) for x in optimum.best(THETA[None], C, 6.0)[:2])
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
  def forecaster(discrepancy):
    return forecast.Forecaster(fit.points, (fit.base,), np.ones(1), forecast.Spread(2e-3, discrepancy, 6))

  wide = design.design(fit, forecaster(0.02), 1e22, 1e21)
  assert wide.next is not None
  assert fit.points.C.max() < wide.next.C
  assert max(row.reduction for row in wide.candidates) == wide.candidates[-1].reduction
  assert all(edge.inside for edge in wide.edges)
  small = dataclasses.replace(fit, points=fit.points[0.1 * np.sqrt(fit.points.C) > fit.points.N])
  assert not any(edge.inside for edge in design.edges(small.points))
  none = design.design(fit, forecaster(0.0), 1e20, 1e17)
  assert none.next is None or none.next.reduction >= design.WORTH
