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
from scipy import stats

from bigmodel.files import UserError
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


def spread(fit: fitting.Fit) -> Spread:
  """Measured on points whose budgets need not agree: the law is fitted below C / 2, C / 4, ... and asked above."""
  scale = scale_of(fit.columns)
  noise = float(np.sqrt(np.mean(fit.residuals()[scale > scale.max() - WINDOW] ** 2)))
  origins = [scale.max() - k * math.log(2) for k in range(1, HALVINGS + 1)]
  origins = [origin for origin in origins if (scale <= origin).sum() >= FEWEST]
  if not origins:
    return Spread(noise, 0.0, 0)
  part = lambda own: ([x[own] for x in fit.columns], fit.loss[own], fit.weights[own])
  thetas, _, _ = fitting.best(fit.law, fitting.stack([part(scale <= origin) for origin in origins]), fit.how)
  growth = []
  for origin, theta in zip(origins, thetas, strict=True):
    columns, loss, _ = part((scale > origin) & (scale <= origin + WINDOW))
    beyond = np.mean(np.maximum(np.log(loss / fit.predict(*columns, theta=theta)) ** 2 - noise**2, 0))
    growth.append(beyond / np.mean(np.maximum(scale_of(columns) - origin, SHORTEST) ** 2))
  return Spread(noise, float(np.sqrt(np.mean(growth))), len(origins))


def at(fit: fitting.Fit, known: Spread, columns: Sequence[Any], level: float = 0.9) -> dict[str, Any]:
  """Losses at `columns` with an interval for one new run each, wider with the distance in ln C beyond the points."""
  center = np.log(fit.predict(*columns))
  draws = np.log(fit.predict(*columns, theta=fit.draws))
  draws = draws[np.isfinite(draws).all(axis=1)]
  distance = np.maximum(scale_of(columns) - scale_of(fit.columns).max(), 0)
  sd = np.sqrt(known.noise**2 + np.var(draws, axis=0) + (known.discrepancy * distance) ** 2)
  quantile = stats.norm.ppf(0.5 + level / 2)
  return {
    "predicted": np.exp(center), "low": np.exp(center - quantile * sd), "high": np.exp(center + quantile * sd),
    "distance": distance,
  }  # fmt: skip


def combined(
  fits: Sequence[fitting.Fit], spreads: Sequence[Spread], columns: Sequence[Any], level: float = 0.9
) -> dict[str, Any]:
  """One forecast of several laws, weighted by how wrong each one's own forecasts were; what they differ by counts."""
  weights = np.array([1 / max(known.discrepancy, known.noise / 10) ** 2 for known in spreads])
  weights = (weights / weights.sum())[:, None]
  said = [at(fit, known, columns, level) for fit, known in zip(fits, spreads, strict=True)]
  logs = np.log([own["predicted"] for own in said])
  quantile = stats.norm.ppf(0.5 + level / 2)
  variances = np.array([(np.log(own["high"] / own["predicted"]) / quantile) ** 2 for own in said])
  center = np.sum(weights * logs, axis=0)
  half = quantile * np.sqrt(np.sum(weights * (variances + (logs - center) ** 2), axis=0))
  return {
    "predicted": np.exp(center), "low": np.exp(center - half), "high": np.exp(center + half),
    "distance": said[0]["distance"],
  }  # fmt: skip


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
  quantile = float(stats.t.ppf(0.5 + level / 2, max(len({o["C"] for o in origins}), 1)))
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
