"""The forecaster: the loss of a run that has not been made, with an interval.

Studies, `bigmodel forecast`, the report and `bigmodel design` all use it. It fits several laws to the same points,
each with several emphases on the largest runs, and takes the weighted mean of their forecasts in logs. A fit's weight
says how well fits of its kind forecast larger runs from smaller ones among the points themselves; among few points
that says little, and laws that do not differ much in it share part of the weight. `docs/laws.md` compares the mean
with each law on published runs.

The interval adds four variances of ln loss: the noise of a single run, what the noise of the points leaves unknown of
the parameters (a bootstrap), a share of the variance between the fits, and a discrepancy that grows in proportion to
the distance from the runs. The share and the growth were fitted to published runs; `docs/laws.md` says how.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from bigmodel.errors import UserError
from bigmodel.laws import emphases, fitting, forms
from bigmodel.laws.facts import ForecastMethod, ForecastRow
from bigmodel.laws.law import Law
from bigmodel.laws.points import Points

NAME = "weighted mean of laws"
VERSION = 3  # part of every seal; a change to how forecasts are made raises it
LAWS = ("chinchilla", "overtraining", "kaplan_nd")  # combined unless other laws are named: docs/laws.md says why
COLUMNS = ("N", "D", "C")  # properties of a run that are known before it is made: a law may have these columns
LEVELS = (0.5, 0.8, 0.9, 0.95)  # of the intervals of a `ForecastRow`
HALVINGS = 3  # of the largest C: the scales below which laws are fitted again, to forecast what lies above
FEWEST = 8  # points to fit below such a scale
WINDOW = math.log(8)  # in ln C: how far above such a scale runs are forecast
SAME = 1e-9  # in ln C: runs of one budget may differ by rounding
SHORTEST = 0.35  # of distances in ln C: nearer points say little of how errors grow
SHARPNESS = 3.0  # a fit's weight is its mean square error in such forecasts to the power of minus this
FLOOR = 0.3  # of the variance of the noise: smaller differences between mean square errors say nothing
NEAR = 2.0  # the noise is measured on residuals with weights in proportion to C to this power
QUARTILE = 0.25  # of the noise around each fit: the least is low by chance
RIVALS = 10.0  # laws whose mean square errors are within this factor of the least
BETWEEN_FITS = 0.05  # share of the variance between fits in that of a forecast
DISCREPANCY = 0.0077  # in ln loss, for each unit of distance
FREEDOM = 8.0  # degrees of freedom of Student's t of a forecast, at most
FEWEST_FREE = 2.0  # and at least
BOOTSTRAPS = 200

Predict = Callable[[np.ndarray, np.ndarray, np.ndarray, float], "Prediction"]  # (N, D, C, level of the intervals)


@dataclasses.dataclass(frozen=True)
class Spread:
  """The errors of forecasts in ln loss: the noise of one run, and a discrepancy for each unit of distance."""

  noise: float
  discrepancy: float
  origins: int  # scales from which larger runs were forecast to weigh the fits; 0: residuals weigh them


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Forecasts [points] of the loss of one new run, with an interval and the standard deviations that make it up."""

  predicted: np.ndarray
  low: np.ndarray
  high: np.ndarray
  parameters: np.ndarray  # standard deviation in ln loss, as are `discrepancy` and `noise`
  discrepancy: np.ndarray  # with the share of the variance between fits
  noise: float
  distance: np.ndarray  # see `Forecaster.distance`


@dataclasses.dataclass(frozen=True)
class Forecaster:
  """Laws fitted to the same points with several emphases, the weights of these fits, and the errors of their mean."""

  points: Points
  fits: tuple[fitting.Fit, ...]
  weights: np.ndarray
  spread: Spread

  def log_loss(self, N: ArrayLike, D: ArrayLike, C: ArrayLike) -> np.ndarray:
    """The weighted mean of the fits' ln loss [points]."""
    return _mean(self.weights, self._each(N, D, C))

  def draws(self, N: ArrayLike, D: ArrayLike, C: ArrayLike) -> np.ndarray:
    """`log_loss` for every draw of the laws' parameters [S, points]; draws that are not finite are left out."""
    logs = [np.log(fit.predict(*_columns(fit.law, N, D, C), theta=fit.draws)) for fit in self.fits]
    drawn = _mean(self.weights, np.stack(logs))
    return drawn[np.isfinite(drawn).all(axis=1)]

  def distance(self, N: ArrayLike, D: ArrayLike, added: Points | None = None) -> np.ndarray:
    """The distance from the runs [points], in units of ln C.

    Its square is the sum of those of two parts: how far ln N + ln D lies above that of the largest run, and how far
    ln D - ln N (tokens for each parameter) lies outside that of all runs. It is 0 for what lies within both. With
    `added` it is the distance from the runs and one more, for each of those added [points].
    """
    scale, ratio = np.log(N) + np.log(D), np.log(D) - np.log(N)
    scales, ratios = _scale(self.points), np.log(self.points.D) - np.log(self.points.N)
    top, low, high = scales.max(), ratios.min(), ratios.max()
    if added is not None:
      new = np.log(added.D) - np.log(added.N)
      top, low, high = np.maximum(top, _scale(added)), np.minimum(low, new), np.maximum(high, new)
    return np.hypot(np.maximum(scale - top, 0.0), np.maximum(np.maximum(ratio - high, low - ratio), 0.0))

  def predict(self, N: ArrayLike, D: ArrayLike, C: ArrayLike, level: float = 0.9) -> Prediction:
    """The forecast of one new run's loss at each (N, D, C), with intervals of this level."""
    N, D, C = (np.asarray(x, np.float64) for x in (N, D, C))
    each, distance = self._each(N, D, C), self.distance(N, D)
    center, between = _mean(self.weights, each), np.std(each, axis=0)
    parameters = np.std(self.draws(N, D, C), axis=0)
    discrepancy = np.sqrt((self.spread.discrepancy * distance) ** 2 + BETWEEN_FITS * between**2)
    sd = np.sqrt(self.spread.noise**2 + parameters**2 + discrepancy**2)
    freedom = np.clip(len(self.points) - emphases.PARAMETERS, FEWEST_FREE, FREEDOM)
    half = special.stdtrit(freedom, 0.5 + level / 2) * sd
    low, high = np.exp(center - half), np.exp(center + half)
    return Prediction(np.exp(center), low, high, parameters, discrepancy, self.spread.noise, distance)

  def method(self) -> ForecastMethod:
    """How forecasts are made, for seals: the weight of a law is the sum over its fits."""
    weights = dict.fromkeys((fit.law.name for fit in self.fits), 0.0)
    for fit, weight in zip(self.fits, self.weights, strict=True):
      weights[fit.law.name] += float(weight)
    return ForecastMethod(NAME, VERSION, weights, self.spread.noise, self.spread.discrepancy, self.spread.origins)

  def _each(self, N: ArrayLike, D: ArrayLike, C: ArrayLike) -> np.ndarray:
    return np.stack([np.log(fit.predict(*_columns(fit.law, N, D, C))) for fit in self.fits])


@dataclasses.dataclass(frozen=True)
class Scale:
  """The parameters, tokens and FLOPs of a run that has not been made, in the convention of the points."""

  N: float
  D: float
  C: float


def find_laws(names: Sequence[str], where: str) -> list[Law]:
  """The laws of these names, each built-in or FILE.py:NAME; `where` begins messages.

  Raises `UserError` for a law of other quantities than N, D and C, and for one whose values may not be positive.
  """
  laws = [forms.find(name, where) for name in names]
  for law in laws:
    if unknown := [name for name in law.columns if name not in COLUMNS]:
      raise UserError(
        f"{where}: law {law.name} is of {', '.join(unknown)}; a forecast needs a law of N, D and C, which are"
        " known before a run is made"
      )
    if law.plain:
      raise UserError(f"{where}: law {law.name} has values that may not be positive; a forecast takes their logs")
  return laws


def fit(points: Points, laws: Sequence[Law] = (), seed_noise: float = 0.0, bootstraps: int = BOOTSTRAPS) -> Forecaster:
  """Fits the laws (those of `LAWS` if none are given) with every emphasis, and combines the fits.

  `seed_noise` is the standard deviation of ln loss between runs that differ in their seeds only, where that is known.
  Points of weight 0, such as diverged runs, are left out.
  """
  if points.weights is not None:
    points = points[points.weights > 0]
  laws = laws or [forms.LAWS[name] for name in LAWS]
  # If the points cannot identify a law, there are several optima, and the order of the rows would decide among them.
  points = points[np.lexsort((points.loss, points.D, points.N))]
  scale = _scale(points)
  origins = [scale.max() - k * math.log(2) for k in range(1, HALVINGS + 1)]
  origins = [o for o in origins if (scale <= o + SAME).sum() >= FEWEST and _ahead(scale, o).any()]
  below = np.array([scale <= origin + SAME for origin in (scale.max(), *origins)])
  columns = {name: getattr(points, name) for name in COLUMNS}
  even = np.ones(len(points)) if points.weights is None else points.weights
  runs = emphases.Runs(columns, points.loss, even, scale, below)
  each = [emphases.fit(law, runs) for law in laws]
  floor = FLOOR * float(np.median([one.noise for one in each])) ** 2
  expected = [values for one in each for values in one.expected]
  fits = [made for one in each for made in one.fits]
  if origins:
    errors = np.array([_growth(values, runs, origins) for values in expected])
  else:
    errors = np.array([_misfit(made) for made in fits])
  usable = np.flatnonzero(np.isfinite(errors))
  if not len(usable):
    raise UserError("no law has finite losses for these runs")
  fits = [fits[i] for i in usable]
  weights = _weights((errors[usable] + floor) ** -SHARPNESS, fits, len(points))
  noise = max(float(np.quantile([_noise(made, runs) for made in fits], QUARTILE)), seed_noise)
  spread = Spread(noise, DISCREPANCY, len(origins))
  return Forecaster(points, tuple(emphases.bootstrap(fits, bootstraps)), weights, spread)


def _weights(earned: np.ndarray, fits: Sequence[fitting.Fit], count: int) -> np.ndarray:
  """Weights of fits to `count` points: in part those they `earned`, in part those that give `RIVALS` the same sum.

  That part is the number of all laws' parameters over that of the points: errors of few forecasts among few points
  are too uncertain to prefer a law by, if it is not far better.
  """
  laws = list(dict.fromkeys(each.law for each in fits))
  of_law = np.array([[each.law is law for each in fits] for law in laws])
  total = of_law @ earned
  rivals = total >= RIVALS**-SHARPNESS * total.max()
  alike = (rivals / rivals.sum() / np.maximum(total, np.finfo(float).tiny)) @ of_law * earned
  part = min(1.0, emphases.PARAMETERS * len(laws) / count)
  return (1 - part) * earned / earned.sum() + part * alike


def _growth(expected: np.ndarray, runs: emphases.Runs, origins: Sequence[float]) -> float:
  """The mean square error in ln loss of forecasts from smaller runs, for each squared unit of ln C.

  `expected` [K + 1, n] are ln losses that a law expects from all runs, and from those below each of K `origins`.
  """
  each = []
  for values, below, origin in zip(expected[1:], runs.below[1:], origins, strict=True):
    ahead = _ahead(runs.scale, origin)
    squares = np.mean((values[ahead] - np.log(runs.loss[ahead])) ** 2)
    distance = np.maximum(runs.scale[ahead] - runs.scale[below].max(), SHORTEST)
    each.append(squares / np.mean(distance**2))
  return float(np.mean(each))


def _ahead(scale: np.ndarray, origin: float) -> np.ndarray:
  """Mask of the runs that are forecast from those up to an origin."""
  return (scale > origin + SAME) & (scale <= origin + WINDOW + SAME)


def _misfit(made: fitting.Fit) -> float:
  """The mean square residual of a fit, corrected for its number of parameters."""
  residual = made.residuals()
  count = len(residual)
  return float(np.average(residual**2, weights=made.weights)) * count / max(count - len(made.theta), 1)


def _noise(made: fitting.Fit, runs: emphases.Runs) -> float:
  """The standard deviation of ln loss around a fit near the largest runs, which outliers do not change."""
  size = np.abs(made.residuals())
  order = np.argsort(size, kind="stable")
  share = np.cumsum(runs.emphasized(runs.below[0], NEAR)[order])
  median = size[order][np.searchsorted(share, share[-1] / 2)]
  left = len(size) / max(len(size) - len(made.theta), 1)
  return max(emphases.CONSISTENT * math.sqrt(left) * float(median), emphases.QUIETEST)


def _mean(weights: np.ndarray, logs: np.ndarray) -> np.ndarray:
  return np.tensordot(weights, logs, 1)


def _scale(points: Points) -> np.ndarray:
  """ln C up to a constant, in every convention."""
  return np.log(points.N) + np.log(points.D)


def _columns(law: Law, N: ArrayLike, D: ArrayLike, C: ArrayLike) -> tuple[ArrayLike, ...]:
  values = {"N": N, "D": D, "C": C}
  return tuple(values[name] for name in law.columns)


def rows(places: Sequence[Scale], predict: Predict) -> list[ForecastRow]:
  """Forecasts at each place with intervals at all `LEVELS`, by a `Forecaster` or by another estimate."""
  N, D, C = (np.array([getattr(place, name) for place in places], np.float64) for name in COLUMNS)
  predictions = [predict(N, D, C, level) for level in LEVELS]
  made = []
  for i, place in enumerate(places):
    at50, at80, at90, at95 = ((float(each.low[i]), float(each.high[i])) for each in predictions)
    row = ForecastRow(
      group="",
      N=place.N,
      D=place.D,
      C=place.C,
      predicted=float(predictions[0].predicted[i]),
      interval50=at50,
      interval80=at80,
      interval90=at90,
      interval95=at95,
    )
    made.append(row)
  return made
