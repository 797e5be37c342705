"""Comparison of two recipes: a known multiplier at every scale, a crossing, and no difference between equal recipes."""

import numpy as np
import pytest

from bigmodel.laws import chinchilla, compare
from bigmodel.laws.points import Points


def ends(interval):
  """Returns both ends of an interval, and checks that they are finite."""
  assert interval is not None
  low, high = interval
  assert low is not None
  assert high is not None
  return low, high


SHAPE = {"A": 400.0, "B": 1500.0, "E": 1.7, "alpha": 0.34, "beta": 0.36}


def points(params, seed, noise=0.001, save=1.0):
  """Returns runs of a law; `save` is the factor of compute that reaches the same loss without the recipe."""
  C = np.repeat(np.geomspace(1e17, 1e20, 6), 7)
  N = 0.1 * np.sqrt(C) * np.tile(np.geomspace(0.2, 5, 7), 6)
  D = C / 6 / N
  p = {**SHAPE, **params}
  n, d = N * save**0.5, D * save**0.5
  loss = p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]
  return Points(N, D, C, loss * np.exp(noise * np.random.default_rng(seed).normal(size=len(C))), "flops_6nd")


def test_a_known_multiplier_is_found_and_its_intervals_hold():
  """For 8 pairs x 5 budgets, most intervals contain the truth (14 pairs: 84%). The true multiplier does not grow."""
  held, flat = [], []
  for seed in range(8):
    found = compare.compare(points({}, 2 * seed), points({}, 2 * seed + 1, save=2.0), bootstraps=100)
    held += [low < 2 < high for low, high in (ends(row.interval90) for row in found.rows)]
    low, high = ends(found.growth.interval90)
    flat.append(low < 0 < high)
    assert [row.multiplier for row in found.rows] == pytest.approx([2] * 5, rel=0.15)
    assert found.verdict.startswith("B is worth")
  assert np.mean(held) > 0.65
  assert np.mean(flat) > 0.5


def test_a_recipe_and_itself_do_not_differ():
  found = compare.compare(points({}, 0), points({}, 0), bootstraps=100)
  assert [row.multiplier for row in found.rows] == pytest.approx([1] * 5)
  assert "no difference beyond the noise" in found.verdict


def test_a_lead_that_grows_and_a_crossing():
  """B has the higher loss at small scales and the lower one at large scales; the crossing is that of the true laws."""
  better = {"A": 700.0, "B": 3200.0, "alpha": 0.37, "beta": 0.395}
  found = compare.compare(points({}, 0), points(better, 1), bootstraps=200)
  exact = [compare.frontier(chinchilla.fit(points(p, 0, noise=0.0), 0))[:1] for p in ({}, better)]
  C = np.geomspace(1e14, 1e23, 20_000)
  behind = compare.loss(exact[0], C)[0] < compare.loss(exact[1], C)[0]
  true = C[np.flatnonzero(np.diff(behind))[-1]]
  low, high = ends(found.crossing.interval90)
  assert low < true < high
  assert ends(found.growth.interval90)[0] > 0
  assert "worth grows with scale" in found.verdict


def test_the_frontier_is_the_loss_at_the_optimum():
  fit = chinchilla.fit(points({}, 0), 0)
  for C in (1e18, 1e22):
    assert compare.loss(compare.frontier(fit), [C])[0, 0] == pytest.approx(
      float(fit.predict(*fit.optimum(C))), rel=1e-9
    )
