"""Chinchilla's parametric law, L(N, D) = E + A / N^alpha + B / D^beta.

Hoffmann et al. 2022, equation 2, fitted as their equation 3 says: the sum over
points of Huber's loss (delta 1e-3) on the log of the loss, from a grid of starts.
"""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from bigmodel.laws import fitting, uncertainty
from bigmodel.laws.forms import LAWS
from bigmodel.laws.points import Points

LAW = LAWS["chinchilla"]
NAMES = LAW.names
# Epoch's grid (Besiroglu et al. 2024): 4,500 starts of (log A, log B, log E, alpha, beta).
GRID = np.array(list(itertools.product(
  (0, 5, 10, 15, 20, 25), (0, 5, 10, 15, 20, 25), (-1, -0.5, 0, 0.5, 1), (0, 0.5, 1, 1.5, 2), (0, 0.5, 1, 1.5, 2),
)), np.float64)  # fmt: skip
STARTS = LAW.theta(dict(zip(NAMES, (*np.exp(GRID[:, :3]).T, *GRID[:, 3:].T), strict=True)))


@dataclasses.dataclass(frozen=True)
class Fit:
  """Parameters as `theta` = (log A, log B, log E, alpha, beta), and draws of their uncertainty."""

  points: Points
  known: fitting.Fit

  @property
  def theta(self) -> np.ndarray:
    return _logs(self.known.theta)

  @property
  def draws(self) -> np.ndarray:
    return _logs(self.known.draws)

  @property
  def params(self) -> dict[str, float]:
    return self.known.params

  def intervals(self, level: float = 0.9) -> dict[str, list[float]]:
    """Percentile intervals of the bootstrap for every parameter."""
    return self.known.intervals(level)

  def predict(self, N: Any, D: Any) -> np.ndarray:
    return np.exp(log_loss(self.theta, np.log(N), np.log(D)))

  def optimum(self, C: float, flops_per_nd: float = 6.0, theta: np.ndarray | None = None) -> tuple[float, float]:
    """Compute-optimal (N, D) with flops_per_nd N D = C (their equation 4)."""
    log_a, log_b, _, alpha, beta = self.theta if theta is None else theta
    log_g = (np.log(alpha) + log_a - np.log(beta) - log_b) / (alpha + beta)
    log_n = log_g + beta / (alpha + beta) * np.log(C / flops_per_nd)
    return float(np.exp(log_n)), float(C / flops_per_nd / np.exp(log_n))


def _logs(theta: np.ndarray) -> np.ndarray:
  """(log A, log B, log E, alpha, beta) from the law's unbounded parameters."""
  A, B, E, alpha, beta = LAW.readable(theta)
  return np.stack([np.log(A), np.log(B), np.log(E), alpha, beta], axis=-1)


def log_loss(theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
  log_a, log_b, log_e, alpha, beta = theta
  return np.logaddexp(np.logaddexp(log_a - alpha * log_n, log_b - beta * log_d), log_e)


def fit(points: Points, bootstraps: int = 400, seed: int = 0, starts: np.ndarray | None = None) -> Fit:
  """Fits the law; raises `UserError` with fewer points than parameters."""
  known = fitting.fit(LAW, (points.N, points.D), points.loss, points.weights, starts=starts)
  return Fit(points, uncertainty.bootstrap(known, bootstraps, seed))


def r2_left_out(points: Points) -> float:
  """R^2 on the largest budget of a fit that has not seen it; NaN where too little is left."""
  budgets = points.budgets()
  last = budgets == budgets.max()
  rest = points[~last]
  if len(rest) <= len(NAMES) or last.sum() < 2 or min(len(np.unique(rest.N)), len(np.unique(rest.D))) < 2:
    return math.nan
  fitted = fit(rest, bootstraps=0)
  own = points[last]
  residual = np.sum((own.loss - fitted.predict(own.N, own.D)) ** 2)
  return float(1 - residual / np.sum((own.loss - own.loss.mean()) ** 2))
