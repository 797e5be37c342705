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
from typing import Any

import numpy as np
from scipy import special

from bigmodel.errors import UserError
from bigmodel.laws import fitting, forms, uncertainty
from bigmodel.laws.forms import Law
from bigmodel.laws.points import Points

NAME = "weighted mean of laws"
VERSION = 1  # part of every seal; a change to how forecasts are made raises it
LAWS = ("chinchilla", "overtraining", "kaplan_nd")  # combined unless other laws are named: docs/laws.md says why
COLUMNS = ("N", "D", "C")  # what is known of a run before it is made: a law is of some of these
LEVELS = (0.5, 0.8, 0.9, 0.95)  # of intervals that `bigmodel forecast` prints
HALVINGS = 6  # of the largest C: the scales below which laws are fitted again, to forecast what lies above
FEWEST = 16  # points to fit below such a scale
WINDOW = math.log(8)  # in ln C: how far above such a scale runs are forecast
SHORTEST = 0.35  # of distances in ln C: nearer points say little of how errors grow
DISCREPANCY = 0.04  # for each unit of ln C, where points are too few to measure it: the median over published runs
BOOTSTRAPS = 400


@dataclasses.dataclass(frozen=True)
class Spread:
  """What forecasts are wrong by, in ln loss: the noise of one run, and a discrepancy for each unit of ln C."""

  noise: float
  discrepancy: float
  origins: int  # scales from which larger runs were forecast; 0: the discrepancy is `DISCREPANCY`, not measured


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Losses of one new run at each of some places, with an interval; and the standard deviations that make it up."""

  predicted: np.ndarray
  low: np.ndarray
  high: np.ndarray
  parameters: np.ndarray  # this and what follows in ln loss
  discrepancy: np.ndarray
  noise: float
  distance: np.ndarray  # in ln C beyond the largest run


@dataclasses.dataclass(frozen=True)
class Forecaster:
  """Laws of the same points, the weight of each, and what their weighted mean is wrong by."""

  points: Points
  fits: tuple[fitting.Fit, ...]
  weights: np.ndarray
  spread: Spread

  def log_loss(self, N: Any, D: Any, C: Any) -> np.ndarray:
    """The weighted mean of the laws' logs at places [points]."""
    return _mean(self.weights, [np.log(fit.predict(*_columns(fit.law, N, D, C))) for fit in self.fits])

  def draws(self, N: Any, D: Any, C: Any) -> np.ndarray:
    """`log_loss` of every draw of the laws' parameters [S, points]; draws that are not finite are left out."""
    logs = [np.log(fit.predict(*_columns(fit.law, N, D, C), theta=fit.draws)) for fit in self.fits]
    drawn = _mean(self.weights, logs)
    return drawn[np.isfinite(drawn).all(axis=1)]

  def distance(self, N: Any, D: Any) -> np.ndarray:
    """How far places lie beyond the largest run, in ln C."""
    return np.maximum(np.log(N) + np.log(D) - _scale(self.points).max(), 0.0)

  def predict(self, N: Any, D: Any, C: Any, level: float = 0.9) -> Prediction:
    N, D, C = (np.asarray(x, np.float64) for x in (N, D, C))
    center, distance = self.log_loss(N, D, C), self.distance(N, D)
    parameters, discrepancy = np.std(self.draws(N, D, C), axis=0), self.spread.discrepancy * distance
    sd = np.sqrt(self.spread.noise**2 + parameters**2 + discrepancy**2)
    half = special.ndtri(0.5 + level / 2) * sd
    return Prediction(
      np.exp(center),
      np.exp(center - half),
      np.exp(center + half),
      parameters,
      discrepancy,
      self.spread.noise,
      distance,
    )

  def facts(self) -> dict[str, Any]:
    """What a seal says of how a forecast was made."""
    weights = {fit.law.name: float(weight) for fit, weight in zip(self.fits, self.weights, strict=True)}
    return {"name": NAME, "version": VERSION, "weights": weights, **dataclasses.asdict(self.spread)}


@dataclasses.dataclass(frozen=True)
class Scale:
  """A run before it is made: its parameters, tokens and FLOPs, as the convention of the points counts them."""

  N: float
  D: float
  C: float


def find_laws(names: Sequence[str], where: str) -> list[Law]:
  """Laws by their names or as FILE.py:NAME; refuses those of anything but N, D and C. `where` begins messages."""
  laws = [forms.find(name, where) for name in names]
  for law in laws:
    if unknown := [name for name in law.columns if name not in COLUMNS]:
      raise UserError(f"{where}: law {law.name} is of {', '.join(unknown)}; a forecast knows N, D and C of a run only")
    if law.plain:
      raise UserError(f"{where}: law {law.name} has values that may not be positive; a forecast takes their logs")
  return laws


def fit(points: Points, laws: Sequence[Law] = (), seed_noise: float = 0.0, bootstraps: int = BOOTSTRAPS) -> Forecaster:
  """Fits the laws (those of `LAWS` if none are given) and combines them.

  `seed_noise` is the standard deviation of ln loss between runs that differ in their seeds only, where that is known.
  """
  laws = laws or [forms.LAWS[name] for name in LAWS]
  # Of points that cannot identify a law, the optimum that is found would depend on the order of the rows.
  points = points[np.lexsort((points.loss, points.D, points.N))]
  fits = [fitting.fit(law, _columns(law, points.N, points.D, points.C), points.loss, points.weights) for law in laws]
  return combine(points, [uncertainty.bootstrap(fit, bootstraps) for fit in fits], seed_noise)


def combine(points: Points, fits: Sequence[fitting.Fit], seed_noise: float = 0.0) -> Forecaster:
  """Weighs laws by how wrong they are when they are fitted below C / 2, C / 4, ... and asked about what lies above.

  The same errors of their weighted mean say how its own errors grow with distance; budgets of points need not agree.
  Where too few points lie below half of the largest C, laws have equal weights, and errors grow as `DISCREPANCY` says.
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

  def growth(of: Sequence[np.ndarray], noise: float) -> float:
    """The mean square of errors beyond the noise, for each squared unit of ln C."""
    each = []
    for error, origin, rows in zip(of, origins, ahead, strict=True):
      beyond_noise = np.mean(np.maximum(error**2 - noise**2, 0))
      each.append(beyond_noise / np.mean(np.maximum(scale[rows] - origin, SHORTEST) ** 2))
    return float(np.mean(each))

  of_each = [growth(error, noise_of(only)) for error, only in zip(errors, np.eye(len(fits)), strict=True)]
  weights = 1 / np.maximum(of_each, (noise_of(equal) / 10) ** 2)
  weights = weights / weights.sum()
  noise = noise_of(weights)
  of_mean = [weights @ np.stack(parts) for parts in zip(*errors, strict=True)]
  discrepancy = math.sqrt(growth(of_mean, noise))
  return Forecaster(points, tuple(fits), weights, Spread(max(noise, seed_noise), discrepancy, len(origins)))


def _errors_ahead(
  fit: fitting.Fit, loss: np.ndarray, below: Sequence[np.ndarray], ahead: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """Errors in ln loss of the law, fitted to each of the rows `below`, at the rows `ahead` of them."""
  sets = [([x[rows] for x in fit.columns], fit.loss[rows], fit.weights[rows]) for rows in below]
  thetas, _, _ = fitting.best(fit.law, fitting.stack(sets), fit.how)
  return [
    np.log(loss[rows] / fit.predict(*(x[rows] for x in fit.columns), theta=theta))
    for theta, rows in zip(thetas, ahead, strict=True)
  ]


def _mean(weights: np.ndarray, logs: Sequence[np.ndarray]) -> np.ndarray:
  return np.tensordot(weights, np.stack(logs), 1)


def _scale(points: Points) -> np.ndarray:
  """ln C but for a constant, however C was counted."""
  return np.log(points.N) + np.log(points.D)


def _columns(law: Law, N: Any, D: Any, C: Any) -> tuple[Any, ...]:
  values = {"N": N, "D": D, "C": C}
  return tuple(values[name] for name in law.columns)


def rows(places: Sequence[Scale], predict: Callable[[Any, Any, Any, float], Prediction]) -> list[dict[str, Any]]:
  """Forecasts at each place with intervals at all `LEVELS`, as `bigmodel forecast` prints and seals them.

  `predict(N, D, C, level)` is that of a `Forecaster`, or of another estimate of the same.
  """
  N, D, C = (np.array([getattr(place, name) for place in places], np.float64) for name in COLUMNS)
  predictions = {level: predict(N, D, C, level) for level in LEVELS}
  said = []
  for i, place in enumerate(places):
    row: dict[str, Any] = {"group": "", **dataclasses.asdict(place), "predicted": float(predictions[0.9].predicted[i])}
    for level, prediction in predictions.items():
      row[f"interval{level * 100:.0f}"] = [float(prediction.low[i]), float(prediction.high[i])]
    said.append(row)
  return said
