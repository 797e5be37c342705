"""Compares two recipes: the compute of one in terms of the other's, how that changes with scale, and where they cross.

Chinchilla's law is fitted to each recipe. Along its compute-optimal sizes the loss is E + K (C / k)^-g with
g = alpha beta / (alpha + beta), so the compute at which one reaches the other's loss has a closed form.
"""

import math

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from bigmodel.errors import UserError
from bigmodel.laws import chinchilla, reach, summary
from bigmodel.laws.facts import Interval, LawFit, finite
from bigmodel.laws.points import Points

SCALES = 5  # budgets at which the multiplier is printed
DRAWN = 40  # budgets of the curves on the page
REACH = 1e3  # how far a crossing is searched for, as a factor below the smallest and above the largest budget


class ComparedBudget(msgspec.Struct, frozen=True, kw_only=True):
  """The losses at a budget, and B's compute in A's terms: None where A's law never reaches B's loss."""

  C: float
  loss_a: float
  loss_b: float
  multiplier: float | None
  interval90: Interval
  beyond: bool  # larger than the largest run of one of them


class Growth(msgspec.Struct, frozen=True):
  """The exponent with which the multiplier grows with C."""

  exponent: float
  interval90: Interval


class Crossing(msgspec.Struct, frozen=True):
  """The compute at which both have the same loss, None if they do not cross; the interval is of draws that cross."""

  C: float | None
  interval90: Interval | None
  share_of_draws: float


class Band(msgspec.Struct, frozen=True):
  """Values along the compute of `Curves`, with intervals."""

  value: list[float | None]
  interval90: list[Interval]


class Curves(msgspec.Struct, frozen=True):
  """The losses of both recipes at their optima, and the multiplier, along the compute C."""

  C: list[float]
  a: Band
  b: Band
  multiplier: Band


class ComparedRuns(msgspec.Struct, frozen=True):
  """The runs of one recipe."""

  C: list[float]
  loss: list[float]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
  """Recipe B in terms of recipe A; `points` and `laws` are those of A and of B."""

  rows: list[ComparedBudget]
  growth: Growth
  crossing: Crossing
  verdict: str
  curves: Curves
  points: tuple[ComparedRuns, ComparedRuns]
  laws: tuple[LawFit, LawFit]
  warnings: list[str] = []


def frontier(fit: chinchilla.Fit) -> np.ndarray:
  """(E, K, g) of the compute-optimal loss, for the fit and for every draw [1 + S, 3]."""
  k = fit.flops_per_nd
  log_a, log_b, log_e, alpha, beta = np.vstack([fit.theta, fit.draws]).T
  with np.errstate(all="ignore"):
    log_g = (np.log(alpha) + log_a - np.log(beta) - log_b) / (alpha + beta)
    g = alpha * beta / (alpha + beta)
    K = (np.exp(log_a - alpha * log_g) + np.exp(log_b + beta * log_g)) * k**g
  return np.stack([np.exp(log_e), K, g], axis=-1)


def loss(law: np.ndarray, C: ArrayLike) -> np.ndarray:
  """The loss [S, budgets] of frontiers (E, K, g) [S, 3] at budgets C."""
  E, K, g = (law[:, i : i + 1] for i in range(3))
  return E + K * np.asarray(C, np.float64) ** -g


def multiplier(law: np.ndarray, reference: np.ndarray, C: ArrayLike) -> np.ndarray:
  """Compute with which `reference` reaches the loss of `law` at C, over C; infinite where it never does."""
  E, K, g = (reference[:, i : i + 1] for i in range(3))
  with np.errstate(all="ignore"):
    needed = (K / (loss(law, C) - E)) ** (1 / g)
  return np.where(loss(law, C) > E, needed, np.inf) / np.asarray(C)


def compare(a: Points, b: Points, bootstraps: int = 400, level: float = 0.9) -> Comparison:
  """B's compute in terms of A's: multipliers by budget, their growth with scale, and the crossing."""
  if a.convention != b.convention:
    raise UserError(f"compare: A counts FLOPs as {a.convention}, B as {b.convention}")
  fit_a, fit_b = (chinchilla.fit(points, bootstraps, seed) for seed, points in enumerate((a, b)))
  law_a, law_b = frontier(fit_a), frontier(fit_b)
  C = np.geomspace(max(a.C.min(), b.C.min()), max(a.C.max(), b.C.max()), SCALES)
  worth = multiplier(law_b, law_a, C)
  loss_a, loss_b = loss(law_a, C)[0], loss(law_b, C)[0]
  rows = [
    ComparedBudget(
      C=C[i],
      loss_a=loss_a[i],
      loss_b=loss_b[i],
      multiplier=worth[0, i],
      interval90=_interval(worth[1:, i], level),
      beyond=bool(C[i] > min(a.C.max(), b.C.max())),
    )
    for i in range(SCALES)
  ]
  with np.errstate(all="ignore"):
    exponents = np.log(worth[:, -1] / worth[:, 0]) / np.log(C[-1] / C[0])
  exponents = np.where(np.isnan(exponents), 0.0, exponents)  # where B's loss is reached at neither end
  growth = Growth(exponents[0], _interval(exponents[1:], level))
  comparison = Comparison(
    rows=rows,
    growth=growth,
    crossing=_crossing(law_a, law_b, C, level),
    verdict=verdict(rows[-1], growth),
    curves=_curves(law_a, law_b, C, level),
    points=(ComparedRuns(a.C.tolist(), a.loss.tolist()), ComparedRuns(b.C.tolist(), b.loss.tolist())),
    laws=(summary.chinchilla_law(fit_a), summary.chinchilla_law(fit_b)),
  )
  return finite(comparison)


def far_apart(a: Points, b: Points) -> list[str]:
  """A note if the compute of one recipe's largest run lies far beyond that of the other's, as it does in other units.

  Raises `UserError` if it lies too far beyond.
  """
  larger, smaller = (a, b) if a.C.max() > b.C.max() else (b, a)
  names = ("A", "B") if larger is a else ("B", "A")
  times = larger.C.max() / smaller.C.max()
  if times <= reach.WARNED:
    return []
  text = f"the largest run of {names[0]} has {times:.2g} times the compute of that of {names[1]}"
  if times > reach.REFUSED:
    raise UserError(f"compare: {text}: are they in the same units? COLUMN*1e6 in --n, --d or --c converts both")
  return [f"{text}; there the comparison rests on an extrapolation"]


def _crossing(law_a: np.ndarray, law_b: np.ndarray, C: np.ndarray, level: float) -> Crossing:
  grid = np.geomspace(C[0] / REACH, C[-1] * REACH, 400)
  b_is_better = loss(law_a, grid) > loss(law_b, grid)
  crossings = [float(grid[np.flatnonzero(np.diff(row))[-1]]) if np.diff(row).any() else math.inf for row in b_is_better]
  of_draws = [C for C in crossings[1:] if math.isfinite(C)]
  interval = _interval(np.array(of_draws), level) if of_draws else None
  return Crossing(crossings[0], interval, len(of_draws) / max(len(crossings) - 1, 1))


def _curves(law_a: np.ndarray, law_b: np.ndarray, C: np.ndarray, level: float) -> Curves:
  drawn = np.geomspace(C[0], C[-1], DRAWN)

  def band(values: np.ndarray) -> Band:
    return Band([float(x) for x in values[0]], [_interval(x, level) for x in values[1:].T])

  return Curves(
    drawn.tolist(), band(loss(law_a, drawn)), band(loss(law_b, drawn)), band(multiplier(law_b, law_a, drawn))
  )


def _interval(draws: np.ndarray, level: float) -> tuple[float, float]:
  """The central interval of draws, some of which may be infinite, so that none are interpolated."""
  low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="nearest")
  return float(low), float(high)


def verdict(largest: ComparedBudget, growth: Growth) -> str:
  """One sentence: which recipe is ahead at the largest budget, and whether its lead changes with scale."""
  low, high = (math.inf if x is None else x for x in largest.interval90)
  times = math.inf if largest.multiplier is None else largest.multiplier
  C = largest.C
  if low > 1 and math.isinf(times):
    first = f"B is worth {low:.3g} times its compute and more in A's terms at {C:.3g} FLOPs: A's law never gets there"
  elif low > 1:
    first = f"B is worth {times:.3g} times its compute in A's terms at {C:.3g} FLOPs"
  elif high < 1:
    first = f"B is worth only {times:.3g} times its compute in A's terms at {C:.3g} FLOPs"
  else:
    first = f"no difference beyond the noise at {C:.3g} FLOPs"
  least, most = (0.0 if x is None else x for x in growth.interval90)
  if least > 0:
    return f"{first}; what it is worth grows with scale"
  if most < 0:
    return f"{first}; what it is worth shrinks with scale"
  return f"{first}; no significant change with scale"
