"""IsoFLOP profiles: a parabola in log N at each budget, and how its minimum moves with C.

Hoffmann et al. 2022, section 3.2 (their approach 2).
"""

import dataclasses
import math
from typing import Any

import numpy as np

from bigmodel.laws.points import Points

LEAST = 4  # points a budget needs: one more than a parabola has coefficients


@dataclasses.dataclass(frozen=True)
class Profile:
  """One budget: loss = c0 + c1 x + c2 x^2 with x = ln N, and its minimum."""

  C: float
  coefficients: tuple[float, ...]
  N: float
  D: float
  loss: float
  inside: bool  # a minimum between the smallest and the largest size, in most resamples too
  N_interval90: tuple[float, ...]
  D_interval90: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Fit:
  """Profiles by budget, and N* = k_n C^a, D* = k_d C^b through the minima that lie inside."""

  profiles: list[Profile]
  points: int
  exponent_n: float
  exponent_d: float
  intervals: dict[str, list[float]]

  @property
  def params(self) -> dict[str, float]:
    return {"a": self.exponent_n, "b": self.exponent_d}


def fit(points: Points, bootstraps: int = 400, seed: int = 0) -> Fit:
  """Fits a parabola to every budget with enough points; intervals by the Bayesian bootstrap."""
  rng = np.random.default_rng(seed)
  budgets = points.budgets()
  profiles, minima = [], []
  for budget in np.unique(budgets):
    own = points[budgets == budget]
    if len(own) < LEAST:
      continue
    draws = [_minimum(own, rng.exponential(size=len(own))) for _ in range(bootstraps)]
    profiles.append(_profile(own, float(budget), draws))
    minima.append(draws)
  slopes = [_slope([(p.C, p.N, p.D) for p in profiles if p.inside])]
  for draw in range(bootstraps):
    sample = [(p.C, *m[draw][:2]) for p, m in zip(profiles, minima, strict=True) if p.inside and m[draw]]
    slopes.append(_slope(sample))
  exponents = np.array(slopes, np.float64)
  interval = lambda x: [float(v) for v in np.nanquantile(x, [0.05, 0.95])] if np.isfinite(x).any() else [math.nan] * 2
  return Fit(
    profiles=profiles,
    points=len(points),
    exponent_n=float(exponents[0, 0]),
    exponent_d=float(exponents[0, 1]),
    intervals={"a": interval(exponents[1:, 0]), "b": interval(exponents[1:, 1])},
  )


def _parabola(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Coefficients (c0, c1, c2) of weighted least squares."""
  root = np.sqrt(weights)
  return np.linalg.lstsq(np.vander(x, 3, increasing=True) * root[:, None], y * root, rcond=None)[0]


def _minimum(points: Points, weights: np.ndarray) -> Any:
  """(N*, D*, coefficients, x*) of a weighted parabola, or None where it has no minimum near the sizes."""
  x = np.log(points.N)
  center = x.mean()
  c0, c1, c2 = _parabola(x - center, points.loss, weights)
  if c2 <= 0:
    return None
  best = -c1 / (2 * c2)
  # The parabola says nothing far away from the sizes that it was fitted to.
  reach = x.max() - x.min()
  if not x.min() - center - reach <= best <= x.max() - center + reach:
    return None
  slope, at_mean = np.polyfit(x, np.log(points.D), 1)
  N = math.exp(best + center)
  D = math.exp(at_mean + slope * (best + center))
  # Back from x - center to x.
  coefficients = (c0 - c1 * center + c2 * center**2, c1 - 2 * c2 * center, c2)
  return N, D, coefficients, c0 - c1**2 / (4 * c2)


def _profile(points: Points, budget: float, draws: list[Any]) -> Profile:
  found = _minimum(points, np.ones(len(points)))
  good = [draw for draw in draws if draw]
  if found is None or not good:
    nan = math.nan
    return Profile(budget, (nan, nan, nan), nan, nan, nan, False, (nan, nan), (nan, nan))
  N, D, coefficients, loss = found
  interval = lambda column: tuple(np.quantile([draw[column] for draw in good], [0.05, 0.95]).tolist())
  # A minimum that one resample in ten does not have is none.
  inside = points.N.min() < N < points.N.max() and len(good) >= 0.9 * len(draws)
  return Profile(budget, tuple(map(float, coefficients)), N, D, float(loss), bool(inside), interval(0), interval(1))


def _slope(minima: list[tuple[float, float, float]]) -> tuple[float, float]:
  """Exponents of N* and D* in C by least squares on logs; NaN with fewer than two budgets."""
  if len(minima) < 2:
    return math.nan, math.nan
  log_c, log_n, log_d = np.log(np.array(minima)).T
  return float(np.polyfit(log_c, log_n, 1)[0]), float(np.polyfit(log_c, log_d, 1)[0])
