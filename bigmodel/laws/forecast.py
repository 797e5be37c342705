"""The forecaster: the loss of a run that has not been made, with an interval.

Studies, `bigmodel forecast`, the report and `bigmodel design` all use it. It fits several laws to the same points and
takes their weighted mean in logs. A law's weight says how well it forecast larger runs from smaller ones among the
points themselves (`combine`). `docs/laws.md` compares the mean with each law on published runs.

A bootstrap of the parameters alone covers far less than it claims beyond the points. The interval adds the noise of a
single run, and a discrepancy that grows with the distance in ln C beyond the largest run. How fast it grows is measured
by the same forecasts of larger runs from smaller ones.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from bigmodel.errors import UserError
from bigmodel.laws import fitting, forms, uncertainty
from bigmodel.laws.facts import ForecastMethod, ForecastRow
from bigmodel.laws.law import Law
from bigmodel.laws.points import Points

NAME = "weighted mean of laws"
VERSION = 1  # part of every seal; a change to how forecasts are made raises it
LAWS = ("chinchilla", "overtraining", "kaplan_nd")  # combined unless other laws are named: docs/laws.md says why
COLUMNS = ("N", "D", "C")  # properties of a run that are known before it is made: a law may have these columns
LEVELS = (0.5, 0.8, 0.9, 0.95)  # of the intervals of a `ForecastRow`
HALVINGS = 6  # of the largest C: the scales below which laws are fitted again, to forecast what lies above
FEWEST = 16  # points to fit below such a scale
WINDOW = math.log(8)  # in ln C: how far above such a scale runs are forecast
SHORTEST = 0.35  # of distances in ln C: nearer points say little of how errors grow
DISCREPANCY = 0.04  # for each unit of ln C, where points are too few to measure it: the median over published runs
BOOTSTRAPS = 400

Predict = Callable[[np.ndarray, np.ndarray, np.ndarray, float], "Prediction"]  # (N, D, C, level of the intervals)


@dataclasses.dataclass(frozen=True)
class Spread:
  """The errors of forecasts in ln loss: the noise of one run, and a discrepancy for each unit of ln C."""

  noise: float
  discrepancy: float
  origins: int  # scales from which larger runs were forecast; 0: the discrepancy is `DISCREPANCY`, not measured


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Forecasts [points] of the loss of one new run, with an interval and the standard deviations that make it up."""

  predicted: np.ndarray
  low: np.ndarray
  high: np.ndarray
  parameters: np.ndarray  # standard deviation in ln loss, as are `discrepancy` and `noise`
  discrepancy: np.ndarray
  noise: float
  distance: np.ndarray  # in ln C beyond the largest run


@dataclasses.dataclass(frozen=True)
class Forecaster:
  """Laws fitted to the same points, their weights, and the errors of their weighted mean."""

  points: Points
  fits: tuple[fitting.Fit, ...]
  weights: np.ndarray
  spread: Spread

  def log_loss(self, N: ArrayLike, D: ArrayLike, C: ArrayLike) -> np.ndarray:
    """The weighted mean of the laws' ln loss [points]."""
    return _mean(self.weights, [np.log(fit.predict(*_columns(fit.law, N, D, C))) for fit in self.fits])

  def draws(self, N: ArrayLike, D: ArrayLike, C: ArrayLike) -> np.ndarray:
    """`log_loss` for every draw of the laws' parameters [S, points]; draws that are not finite are left out."""
    logs = [np.log(fit.predict(*_columns(fit.law, N, D, C), theta=fit.draws)) for fit in self.fits]
    drawn = _mean(self.weights, logs)
    return drawn[np.isfinite(drawn).all(axis=1)]

  def distance(self, N: ArrayLike, D: ArrayLike) -> np.ndarray:
    """The distance in ln C beyond the largest run [points]; 0 for smaller scales."""
    return np.maximum(np.log(N) + np.log(D) - _scale(self.points).max(), 0.0)

  def predict(self, N: ArrayLike, D: ArrayLike, C: ArrayLike, level: float = 0.9) -> Prediction:
    """The forecast of one new run's loss at each (N, D, C), with intervals of this level."""
    N, D, C = (np.asarray(x, np.float64) for x in (N, D, C))
    center, distance = self.log_loss(N, D, C), self.distance(N, D)
    parameters, discrepancy = np.std(self.draws(N, D, C), axis=0), self.spread.discrepancy * distance
    sd = np.sqrt(self.spread.noise**2 + parameters**2 + discrepancy**2)
    half = special.ndtri(0.5 + level / 2) * sd
    low, high = np.exp(center - half), np.exp(center + half)
    return Prediction(np.exp(center), low, high, parameters, discrepancy, self.spread.noise, distance)

  def method(self) -> ForecastMethod:
    """How forecasts are made, for seals."""
    weights = {fit.law.name: float(weight) for fit, weight in zip(self.fits, self.weights, strict=True)}
    return ForecastMethod(NAME, VERSION, weights, self.spread.noise, self.spread.discrepancy, self.spread.origins)


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
  """Fits the laws (those of `LAWS` if none are given) and combines them.

  `seed_noise` is the standard deviation of ln loss between runs that differ in their seeds only, where that is known.
  """
  laws = laws or [forms.LAWS[name] for name in LAWS]
  # If the points cannot identify a law, there are several optima, and the order of the rows would decide among them.
  points = points[np.lexsort((points.loss, points.D, points.N))]
  fits = [fitting.fit(law, _columns(law, points.N, points.D, points.C), points.loss, points.weights) for law in laws]
  return combine(points, [uncertainty.bootstrap(fit, bootstraps) for fit in fits], seed_noise)


def combine(points: Points, fits: Sequence[fitting.Fit], seed_noise: float = 0.0) -> Forecaster:
  """Weighs the laws by their errors on larger runs when they are fitted to runs below C / 2, C / 4, ... only.

  From the same errors of their weighted mean follows how its errors grow with distance. The points need not form
  budgets. If too few of them lie below half of the largest C, the weights are equal, and `DISCREPANCY` is taken.
  """
  scale, loss = _scale(points), points.loss
  near = scale > scale.max() - WINDOW
  residuals = np.stack([fit.residuals()[near] for fit in fits])

  def noise_of(weights: np.ndarray) -> float:
    return float(np.sqrt(np.mean((weights @ residuals) ** 2)))

  equal = np.full(len(fits), 1 / len(fits))
  origins = [scale.max() - k * math.log(2) for k in range(1, HALVINGS + 1)]
  origins = [origin for origin in origins if (scale <= origin).sum() >= FEWEST]
  if not origins:
    noise = max(noise_of(equal), seed_noise)
    return Forecaster(points, tuple(fits), equal, Spread(noise, DISCREPANCY, 0))
  ahead = [(scale > origin) & (scale <= origin + WINDOW) for origin in origins]
  errors = [_errors_ahead(fit, loss, [scale <= origin for origin in origins], ahead) for fit in fits]

  def growth(errors: Sequence[np.ndarray], noise: float) -> float:
    """The mean square of errors beyond the noise, for each squared unit of ln C."""
    each = []
    for error, origin, rows in zip(errors, origins, ahead, strict=True):
      beyond_noise = np.mean(np.maximum(error**2 - noise**2, 0))
      each.append(beyond_noise / np.mean(np.maximum(scale[rows] - origin, SHORTEST) ** 2))
    return float(np.mean(each))

  growths = [growth(error, noise_of(only)) for error, only in zip(errors, np.eye(len(fits)), strict=True)]
  weights = 1 / np.maximum(growths, (noise_of(equal) / 10) ** 2)
  weights = weights / weights.sum()
  noise = noise_of(weights)
  errors_of_mean = [weights @ np.stack(parts) for parts in zip(*errors, strict=True)]
  discrepancy = math.sqrt(growth(errors_of_mean, noise))
  return Forecaster(points, tuple(fits), weights, Spread(max(noise, seed_noise), discrepancy, len(origins)))


def _errors_ahead(
  fit: fitting.Fit, loss: np.ndarray, below: Sequence[np.ndarray], ahead: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """Errors in ln loss at the rows of each mask `ahead` of the law fitted to the rows of the mask `below`."""
  sets = [([x[rows] for x in fit.columns], fit.loss[rows], fit.weights[rows]) for rows in below]
  thetas, _, _ = fitting.best(fit.law, fitting.stack(sets), fit.how)
  return [
    np.log(loss[rows] / fit.predict(*(x[rows] for x in fit.columns), theta=theta))
    for theta, rows in zip(thetas, ahead, strict=True)
  ]


def _mean(weights: np.ndarray, logs: Sequence[np.ndarray]) -> np.ndarray:
  return np.tensordot(weights, np.stack(logs), 1)


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
