"""Curves: extrapolation intervals cover held-out curves, and curves with too few points are refused."""

import numpy as np
import pytest

from bigmodel.errors import UserError
from bigmodel.laws import curves

RNG = np.random.default_rng(0)


def made(count=24, points=40, noise=0.01, seed=0):
  """Returns curves of several kinds: `{name: (x, y, later x, later y)}`, up to twice the scale."""
  rng, found = np.random.default_rng(seed), {}
  for i in range(count):
    x = np.geomspace(1e6, 2e9, points + 8)
    a, c, bend = rng.uniform(0.1, 0.5), rng.uniform(0.2, 0.6), rng.uniform(0, 0.03)
    y = a + 0.5 * (x / 1e7) ** -c * np.exp(-bend * np.log(x / 1e7) ** 2 / 4)
    y *= np.exp(noise * rng.normal(size=len(x)))
    below = x <= 1e9
    found[f"curve {i}"] = (x[below], y[below], x[~below], y[~below])
  return found


def test_a_power_law_is_extrapolated_in_any_units():
  """Exactly without an offset, which both forms can fit. With one, the mean is half-way to the form without it."""
  x, beyond = np.geomspace(1e3, 1e6, 20), np.array([1.5e6, 2e6])
  units = ((1, 1), (1e-3, 1), (1e6, 100))
  for offset, within in ((0.0, 1e-4), (0.2, 1e-2)):
    data = {f"{u}": (u[0] * x, u[1] * (offset + 3 * x**-0.3)) for u in units}
    for curve, (by_x, by_y) in zip(curves.fit(data), units, strict=True):
      said = curve.predict(by_x * beyond, curves.BENCHMARK).predicted
      np.testing.assert_allclose(said, by_y * (offset + 3 * beyond**-0.3), rtol=within)


def test_rows_in_any_order_and_rows_that_are_stored_twice_change_nothing():
  x, y, beyond, _ = made(1)["curve 0"]
  order = RNG.permutation(np.tile(np.arange(len(x)), 3))
  one, other = (curves.fit({"": data})[0].logs(beyond) for data in ((x, y), (x[order], y[order])))
  np.testing.assert_allclose(one, other)


def test_intervals_widen_with_level_and_with_distance():
  x, y, _, _ = made(1)["curve 0"]
  (curve,) = curves.fit({"": (x, y)})
  said = curve.predict(np.array([1.1, 1.5, 3.0, 10.0]) * x.max(), curves.BENCHMARK).intervals
  widths = np.array([np.log(high / low) for low, high in said.values()])
  assert (np.diff(widths, axis=0) > 0).all()
  assert (np.diff(widths[:, 1:], axis=1) > 0).all()


def test_intervals_cover_held_out_curves():
  """Of 40 curves 90% +- 9% are covered (two standard deviations of a binomial), each calibrated on the others."""
  data = made(40)
  fitted = curves.fit({name: own[:2] for name, own in data.items()})
  scored = {curve.name: curves.scores(curve, *data[curve.name][2:]) for curve in fitted}
  held = []
  for curve in fitted:
    known = curves.multiples([own for name, own in scored.items() if name != curve.name])
    low, high = curve.predict(data[curve.name][2], known).intervals[0.9]
    held.append(np.mean((low <= data[curve.name][3]) & (data[curve.name][3] <= high)))
  assert 0.81 <= np.mean(held) <= 0.99


def test_many_curves_are_calibrated_by_themselves_and_few_by_the_benchmark():
  few, many = made(5), made(24)
  points = lambda data: {name: own[:2] for name, own in data.items()}
  assert curves.calibrated(points(few)) == curves.BENCHMARK
  own = curves.calibrated(points(many))
  assert own != curves.BENCHMARK
  assert list(own.values()) == sorted(own.values())


def test_a_curve_of_few_points_is_named():
  with pytest.raises(UserError, match="curve b: 3 points of different x; an extrapolation needs 5"):
    curves.fit({"a": made(1)["curve 0"][:2], "b": (np.array([1.0, 2, 3, 3]), np.ones(4))})
