"""Forecasts: a fit asked about a scale that has not been run, with an interval, sealed.

A bootstrap of the parameters alone covers far less than it claims when it
extrapolates. The interval here adds two things: the noise between seeds, and a
discrepancy that grows with the distance in log C, as large as the law's own errors
when it is made to forecast every budget from the budgets below it (rolling origin).
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from bigmodel.errors import UserError
from bigmodel.laws import chinchilla, fitting
from bigmodel.laws.points import Points


def rolling_origin(points: Points) -> list[dict[str, float]]:
  """The law fitted up to each budget, asked about every budget above it: its errors in ln loss."""
  budgets = points.budgets()
  origins = [o for o in np.unique(budgets)[:-1] if (budgets <= o).sum() > len(chinchilla.NAMES) + 1]
  if not origins:
    return []
  thetas = chinchilla.rolling([points[budgets <= origin] for origin in origins])
  errors = []
  for origin, theta in zip(origins, thetas, strict=True):
    for budget in np.unique(budgets[budgets > origin]):
      own = points[budgets == budget]
      error = np.log(own.loss) - chinchilla.log_loss(theta, np.log(own.N), np.log(own.D))
      errors.append({
        "origin": float(origin),
        "C": float(budget),
        "distance": math.log(budget / origin),
        "rms_log_error": float(np.sqrt(np.mean(error**2))),
        "mean_log_error": float(np.mean(error)),
      })  # fmt: skip
  return errors


MIXED = ("chinchilla", "overtraining", "kaplan_nd")  # what forecasts loss from N and D: docs/laws.md says why
HALVINGS = 6  # of the largest C, from which the law is asked about what lies above
FEWEST = 16  # points to fit from such an origin
WINDOW = math.log(8)  # beyond the origin, up to which it is asked
SHORTEST = 0.35  # of distances in ln C: nearer points say little of how errors grow


@dataclasses.dataclass(frozen=True)
class Spread:
  """What a law's forecasts are wrong by, in ln loss: noise of one point, and a discrepancy for each unit of ln C."""

  noise: float
  discrepancy: float
  origins: int


def scale_of(columns: Sequence[Any]) -> np.ndarray:
  """The sum of the logs of all columns: for N and D that is ln C but for a constant."""
  return np.sum(np.broadcast_arrays(*(np.log(np.asarray(x, np.float64)) for x in columns)), axis=0)


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Laws of the same points, the weight of each, and what their weighted mean is wrong by."""

  fits: tuple[fitting.Fit, ...]
  weights: np.ndarray
  spread: Spread

  def at(self, columns: Sequence[Any], level: float = 0.9) -> dict[str, Any]:
    """Losses at `columns` with an interval for one new run each, wider with the distance in ln C beyond the points."""
    mean = lambda logs: np.tensordot(self.weights, np.stack(logs), 1)
    center = mean([np.log(fit.predict(*columns)) for fit in self.fits])
    draws = mean([np.log(fit.predict(*columns, theta=fit.draws)) for fit in self.fits])
    draws = draws[np.isfinite(draws).all(axis=1)]
    distance = np.maximum(scale_of(columns) - scale_of(self.fits[0].columns).max(), 0)
    known = self.spread
    sd = np.sqrt(known.noise**2 + np.var(draws, axis=0) + (known.discrepancy * distance) ** 2)
    quantile = special.ndtri(0.5 + level / 2)
    return {
      "predicted": np.exp(center), "low": np.exp(center - quantile * sd), "high": np.exp(center + quantile * sd),
      "distance": distance,
    }  # fmt: skip


def mixture(*fits: fitting.Fit) -> Mixture:
  """Weighs laws by how wrong they are when they are fitted below C / 2, C / 4, ... and asked about what lies above.

  The same errors of their weighted mean say how its own grow with distance; budgets of points need not agree.
  """
  first = fits[0]
  scale, loss = scale_of(first.columns), first.loss
  equal = np.full(len(fits), 1 / len(fits))
  near = scale > scale.max() - WINDOW
  residuals = np.stack([fit.residuals()[near] for fit in fits])
  origins = [scale.max() - k * math.log(2) for k in range(1, HALVINGS + 1)]
  origins = [origin for origin in origins if (scale <= origin).sum() >= FEWEST]
  noise_of = lambda weights: float(np.sqrt(np.mean((weights @ residuals) ** 2)))
  if not origins:
    return Mixture(fits, equal, Spread(noise_of(equal), 0.0, 0))
  ahead = [(scale > origin) & (scale <= origin + WINDOW) for origin in origins]
  below = lambda fit, own: ([x[own] for x in fit.columns], fit.loss[own], fit.weights[own])
  errors: list[list[np.ndarray]] = []  # [laws][origins][points]
  for fit in fits:
    thetas, _, _ = fitting.best(fit.law, fitting.stack([below(fit, scale <= origin) for origin in origins]), fit.how)
    predict = lambda theta, own, fit=fit: fit.predict(*(x[own] for x in fit.columns), theta=theta)
    errors.append([np.log(loss[own] / predict(theta, own)) for theta, own in zip(thetas, ahead, strict=True)])

  def growth(of: Sequence[np.ndarray], noise: float) -> float:
    """The mean square of errors beyond the noise, for each squared unit of ln C."""
    parts = zip(of, origins, ahead, strict=True)
    return float(np.mean([
      np.mean(np.maximum(error**2 - noise**2, 0)) / np.mean(np.maximum(scale[own] - origin, SHORTEST) ** 2)
      for error, origin, own in parts
    ]))  # fmt: skip

  alone = [growth(own, noise_of(one)) for own, one in zip(errors, np.eye(len(fits)), strict=True)]
  weights = 1 / np.maximum(alone, (noise_of(equal) / 10) ** 2)
  weights = weights / weights.sum()
  together = [weights @ np.stack(parts) for parts in zip(*errors, strict=True)]
  noise = noise_of(weights)
  return Mixture(fits, weights, Spread(noise, math.sqrt(growth(together, noise)), len(origins)))


def spread(fit: fitting.Fit) -> Spread:
  """What one law's forecasts are wrong by."""
  return mixture(fit).spread


def r2_left_out(points: Points) -> float:
  """R^2 on the largest budget of a fit that has not seen it; NaN where too little is left."""
  budgets = points.budgets()
  last = budgets == budgets.max()
  rest = points[~last]
  if len(rest) <= len(chinchilla.NAMES) or last.sum() < 2 or min(len(np.unique(rest.N)), len(np.unique(rest.D))) < 2:
    return math.nan
  fitted = chinchilla.fit(points[~last], bootstraps=0)
  own = points[last]
  residual = np.sum((own.loss - fitted.predict(own.N, own.D)) ** 2)
  return float(1 - residual / np.sum((own.loss - own.loss.mean()) ** 2))


def predict(
  fit: chinchilla.Fit, N: float, D: float, C: float, noise: float = 0.0, level: float = 0.9
) -> dict[str, Any]:
  """The loss at (N, D) and its interval, with what the interval is made of.

  `noise` is the standard deviation of the loss between seeds. All parts are in ln loss.
  """
  center = float(np.log(fit.predict(N, D)))
  draws = np.array([chinchilla.log_loss(theta, np.log(N), np.log(D)) for theta in fit.draws])
  bootstrap = float(np.std(draws[np.isfinite(draws)]))
  distance = max(0.0, math.log(C / fit.points.C.max()))
  origins = rolling_origin(fit.points)
  noise_log = noise / math.exp(center)
  # What of those errors the noise between seeds explains is not the law's.
  beyond = [max(0.0, o["rms_log_error"] ** 2 - noise_log**2) / o["distance"] ** 2 for o in origins]
  discrepancy = math.sqrt(np.mean(beyond)) * distance if origins else 0.0
  sd = math.sqrt(bootstrap**2 + discrepancy**2 + noise_log**2)
  # The discrepancy is known from as many budgets that were forecast: so many degrees of freedom.
  quantile = float(special.stdtrit(max(len({o["C"] for o in origins}), 1), 0.5 + level / 2))
  return {
    "predicted": math.exp(center),
    "interval90": [math.exp(center - quantile * sd), math.exp(center + quantile * sd)],
    "parts": {
      "bootstrap": bootstrap,
      "discrepancy": discrepancy,
      "noise": noise_log,
      "quantile": quantile,
      "distance": distance,
      "rolling_origin": origins,
    },
  }


def seal(facts: dict[str, Any], sealed_at: str) -> dict[str, Any]:
  """A forecast with its time and the hash of all of it."""
  facts = {**facts, "sealed_at": sealed_at}
  return {**facts, "sha256": _digest(facts)}


def verify(forecast: dict[str, Any], where: str = "forecast") -> dict[str, Any]:
  """The forecast itself; refuses one that was changed after it was sealed."""
  facts = {name: value for name, value in forecast.items() if name != "sha256"}
  if forecast.get("sha256") != _digest(facts):
    raise UserError(f"{where}: the forecast is not what was sealed (sha256 does not match)")
  return forecast


def score(forecast: dict[str, Any], record: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
  """Forecast against truth; refused unless the run carries the seal and started after it."""
  verify(forecast)
  if provenance.get("forecast_sha256") != forecast["sha256"]:
    raise UserError(f"run {record['run_id']} does not carry the seal of this forecast: no score")
  if provenance["started_at"] <= forecast["sealed_at"]:
    raise UserError(f"run {record['run_id']} started before the forecast was sealed: no score")
  if record["status"] != "finished":
    return {"actual": None, "inside": None, "log_error": None}
  low, high = forecast["interval90"]
  actual = record["loss_eval"]
  return {
    "actual": actual,
    "inside": bool(low <= actual <= high),
    "log_error": math.log(actual / forecast["predicted"]),
  }


def _digest(facts: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
