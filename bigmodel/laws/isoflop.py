"""IsoFLOP profiles: a parabola in log N at each budget, and how its minimum changes with C.

Hoffmann et al. 2022, section 3.2 (their approach 2).
"""

import dataclasses
import math

import numpy as np
from scipy import special

from bigmodel.laws.points import Points

WIDE = 16  # ratio of the largest to the smallest size of a budget from which on no parabola fits
BENT = 0.1  # significance level of `_lack_of_fit`: the share of fits to true parabolas that it rejects
LEAST = 4  # points that a budget needs: one more than a parabola has coefficients

Pair = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Profile:
  """One budget: loss = c0 + c1 x + c2 x^2 with x = ln N, and its minimum."""

  C: float
  coefficients: tuple[float, float, float]
  N: float
  D: float
  loss: float
  inside: bool  # the minimum lies within the trained sizes, and at least 90% of the draws have a minimum
  N_interval90: Pair
  D_interval90: Pair


@dataclasses.dataclass(frozen=True)
class Fit:
  """Profiles by budget, and N* = k_n C^a, D* = k_d C^b through the minima that lie inside."""

  profiles: list[Profile]
  points: int
  exponent_n: float
  exponent_d: float
  intervals: dict[str, Pair]
  caution: str | None = None  # why the 90% intervals are too narrow, if they are known to be

  @property
  def params(self) -> dict[str, float]:
    return {"a": self.exponent_n, "b": self.exponent_d}


@dataclasses.dataclass(frozen=True)
class Parabola:
  """Least squares of one budget: loss = c0 + c1 x + c2 x^2 with x = ln N - `center`, and ln D as a line in x."""

  C: float
  coefficients: np.ndarray  # [3]
  covariance: np.ndarray  # [3, 3], of the coefficients for losses with a variance of 1
  squares: float  # sum of the squared residuals, each relative to the mean loss of the budget
  mean_loss: float
  center: float
  line: np.ndarray  # [2], slope and intercept of ln D
  low: float  # the smallest and the largest x that was trained
  high: float

  def minimum(self, coefficients_Sx3: np.ndarray) -> np.ndarray:
    """The x at which parabolas are lowest, within the trained sizes and as far again on both sides [S].

    The points contain no information about larger distances, so a minimum beyond that is moved to the limit. A parabola
    that opens downwards has its minimum at one of the limits. Every parabola has a minimum in this sense.
    """
    reach = self.high - self.low
    low, high = self.low - reach, self.high + reach
    _, c1, c2 = coefficients_Sx3.T
    bends = c2 > 0
    lower_end = np.where(c1 * (high - low) + c2 * (high**2 - low**2) < 0, high, low)
    return np.clip(np.where(bends, -c1 / np.where(bends, 2 * c2, 1.0), lower_end), low, high)

  def log_n(self, x: np.ndarray) -> np.ndarray:
    return x + self.center

  def log_d(self, x: np.ndarray) -> np.ndarray:
    return self.line[0] * x + self.line[1]


def fit(points: Points, draws: int = 2000, seed: int = 0) -> Fit:
  """Fits a parabola to every budget with enough points.

  A budget of four points leaves one residual, which contains almost no information about the noise. The intervals
  therefore assume that the noise, relative to the loss, is the same at all budgets, and pool their residuals: n points
  in B budgets leave n - 3 B degrees of freedom. The coefficients of every budget are drawn from the distribution of
  least squares (normal, with a variance that is itself drawn), and each draw of all budgets gives one exponent. No draw
  is left out: those with a minimum far outside of the sizes are what makes an interval wide.

  All of this assumes that losses lie on parabolas. If they do not, intervals miss the truth more often than one time in
  ten, and the fit has a `caution`.
  """
  rng = np.random.default_rng(seed)
  budgets = points.budgets()
  grouped = [(float(budget), points[budgets == budget]) for budget in np.unique(budgets)]
  enough = [(budget, group) for budget, group in grouped if len(group) >= LEAST]
  parabolas = [_parabola(group, budget) for budget, group in enough]
  freedom = sum(len(group) - 3 for _, group in enough)
  squares = sum(parabola.squares for parabola in parabolas)
  deviations = np.sqrt(squares / rng.chisquare(max(freedom, 1), size=draws))
  drawn = [_draw(parabola, deviations, rng) for parabola in parabolas]
  profiles = [_profile(parabola, coefficients) for parabola, coefficients in zip(parabolas, drawn, strict=True)]
  used = [i for i, profile in enumerate(profiles) if profile.inside]
  if len(used) < 2:
    nan = (math.nan, math.nan)
    return Fit(profiles, len(points), math.nan, math.nan, {"a": nan, "b": nan}, _caution(grouped))
  at_S = [parabolas[i].minimum(np.vstack([parabolas[i].coefficients, drawn[i]])) for i in used]
  log_c = np.log([parabolas[i].C for i in used])
  a = np.polyfit(log_c, np.array([parabolas[i].log_n(x) for i, x in zip(used, at_S, strict=True)]), 1)[0]
  b = np.polyfit(log_c, np.array([parabolas[i].log_d(x) for i, x in zip(used, at_S, strict=True)]), 1)[0]
  return Fit(
    profiles=profiles,
    points=len(points),
    exponent_n=float(a[0]),
    exponent_d=float(b[0]),
    intervals={"a": _interval(a[1:]), "b": _interval(b[1:])},
    caution=_caution(grouped),
  )


def _caution(grouped: list[tuple[float, Points]]) -> str | None:
  """Why parabolas may not fit: sizes that are too far apart, or losses that do not lie on parabolas."""
  reasons = []
  spans = [float(np.exp(np.ptp(np.log(points.N)))) for _, points in grouped]
  if wide := sum(span > 0.999 * WIDE for span in spans):
    reasons.append(
      f"the sizes of {wide} of {len(spans)} budgets span a factor of {WIDE} or more (up to {max(spans):.3g}),"
      " too wide for a parabola"
    )
  probability = _lack_of_fit([points for _, points in grouped if len(points) >= LEAST])
  if probability < BENT:
    reasons.append(
      f"terms of the third and fourth order in ln N improve the fit by more than noise would (p = {probability:.2g})"
    )
  return f"90% intervals of isoflop are too narrow: {', and '.join(reasons)}" if reasons else None


def _lack_of_fit(budgets: list[Points]) -> float:
  """The p-value of terms of the third and fourth order, if losses do lie on parabolas (an F test).

  Both terms are shared by all budgets, relative to their mean losses. The shape around the minimum is much the same at
  every budget, so that many points together show what the few points of one budget cannot. The value is 1 if too few
  points remain for a test.
  """
  count, size = len(budgets), sum(len(points) for points in budgets)
  freedom = size - 3 * count - 2
  if freedom < 1:
    return 1.0
  basis, losses = np.zeros((size, 3 * count + 2)), np.zeros(size)
  first = 0
  for index, points in enumerate(budgets):
    rows = slice(first, first + len(points))
    x = np.log(points.N) - np.log(points.N).mean()
    basis[rows, 3 * index : 3 * index + 3] = np.vander(x, 3, increasing=True)
    basis[rows, -2:] = np.stack([x**3, x**4], axis=1)
    losses[rows] = points.loss / points.loss.mean()
    first += len(points)
  basis /= np.maximum(np.abs(basis).max(axis=0), 1e-300)
  parabolas, all_terms = (
    float(np.sum((losses - columns @ np.linalg.lstsq(columns, losses, rcond=None)[0]) ** 2))
    for columns in (basis[:, :-2], basis)
  )
  rounding = size * np.finfo(float).eps ** 2  # losses without noise
  return float(special.fdtrc(2, freedom, (parabolas - all_terms) / 2 / ((all_terms + rounding) / freedom)))


def _interval(draws: np.ndarray) -> Pair:
  low, high = np.quantile(draws, [0.05, 0.95])
  return float(low), float(high)


def _parabola(points: Points, budget: float) -> Parabola:
  x = np.log(points.N)
  center = float(x.mean())
  x = x - center
  basis = np.vander(x, 3, increasing=True)
  coefficients = np.linalg.lstsq(basis, points.loss, rcond=None)[0]
  mean_loss = float(points.loss.mean())
  return Parabola(
    C=budget,
    coefficients=coefficients,
    covariance=np.linalg.pinv(basis.T @ basis),
    squares=float(np.sum(((points.loss - basis @ coefficients) / mean_loss) ** 2)),
    mean_loss=mean_loss,
    center=center,
    line=np.polyfit(x, np.log(points.D), 1),
    low=float(x.min()),
    high=float(x.max()),
  )


def _draw(parabola: Parabola, deviations_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Draws of the coefficients [S, 3], for a noise of `deviations_S` relative to the mean loss."""
  normal = rng.multivariate_normal(np.zeros(3), parabola.covariance, size=len(deviations_S), method="svd")
  return parabola.coefficients + parabola.mean_loss * deviations_S[:, None] * normal


def _profile(parabola: Parabola, drawn: np.ndarray) -> Profile:
  c0, c1, c2 = map(float, parabola.coefficients)
  x = float(parabola.minimum(parabola.coefficients[None])[0])
  drawn_x = parabola.minimum(drawn)
  reach = parabola.high - parabola.low
  if c2 <= 0 or not parabola.low - reach < x < parabola.high + reach:
    nan = math.nan
    return Profile(parabola.C, (nan, nan, nan), nan, nan, nan, False, (nan, nan), (nan, nan))
  center = parabola.center
  return Profile(
    C=parabola.C,
    coefficients=(c0 - c1 * center + c2 * center**2, c1 - 2 * c2 * center, c2),  # back from x - center to x
    N=float(np.exp(parabola.log_n(np.array(x)))),
    D=float(np.exp(parabola.log_d(np.array(x)))),
    loss=c0 - c1**2 / (4 * c2),
    # A minimum counts only if at least nine draws in ten have one.
    inside=parabola.low < x < parabola.high and float(np.mean(drawn[:, 2] > 0)) >= 0.9,
    N_interval90=_interval(np.exp(parabola.log_n(drawn_x))),
    D_interval90=_interval(np.exp(parabola.log_d(drawn_x))),
  )
