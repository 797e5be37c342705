"""Chinchilla's law, L(N, D) = E + A / N^alpha + B / D^beta.

Hoffmann et al. 2022, equation 2, fitted as in their equation 3: the sum over points of Huber's loss (delta 1e-3) of the
difference of logs, from a grid of starts.
"""

import dataclasses
import itertools
import math

import numpy as np
from numpy.typing import ArrayLike

from bigmodel.laws import fitting, surface_forms, uncertainty
from bigmodel.laws.points import Points

LAW = surface_forms.chinchilla
NAMES = LAW.names
LOGS = (0, 5, 10, 15, 20, 25)  # starts of log A and log B
UNITS = (0, 0.5, 1, 1.5, 2)  # starts of alpha and beta
# Epoch's grid (Besiroglu et al. 2024): 4,500 starts of (log A, log B, log E, alpha, beta).
GRID = np.array(list(itertools.product(LOGS, LOGS, (-1, -0.5, 0, 0.5, 1), UNITS, UNITS)), np.float64)
STARTS = LAW.theta(dict(zip(NAMES, (*np.exp(GRID[:, :3]).T, *GRID[:, 3:].T), strict=True)))


@dataclasses.dataclass(frozen=True)
class Fit:
  """Chinchilla's law fitted to points. `theta` [5] and `draws` [S, 5] are (log A, log B, log E, alpha, beta)."""

  points: Points
  base: fitting.Fit

  @property
  def theta(self) -> np.ndarray:
    return _logs(self.base.theta)

  @property
  def draws(self) -> np.ndarray:
    return _logs(self.base.draws)

  @property
  def params(self) -> dict[str, float]:
    return self.base.params

  @property
  def flops_per_nd(self) -> float:
    """C over N D of the points; see `Points.flops_per_nd`."""
    return self.points.flops_per_nd

  def intervals(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the bootstrap for every parameter."""
    return self.base.intervals(level)

  def predict(self, N: ArrayLike, D: ArrayLike) -> np.ndarray:
    """Losses at (N, D)."""
    return np.exp(log_loss(self.theta, np.log(N), np.log(D)))

  def optimum(self, C: float, flops_per_nd: float = 6.0, theta: np.ndarray | None = None) -> tuple[float, float]:
    """Compute-optimal (N, D) with flops_per_nd N D = C (their equation 4); with `theta` [5] for other parameters."""
    log_a, log_b, _, alpha, beta = self.theta if theta is None else theta
    log_g = (np.log(alpha) + log_a - np.log(beta) - log_b) / (alpha + beta)
    log_n = log_g + beta / (alpha + beta) * np.log(C / flops_per_nd)
    return float(np.exp(log_n)), float(C / flops_per_nd / np.exp(log_n))


def _logs(theta: np.ndarray) -> np.ndarray:
  """(log A, log B, log E, alpha, beta) from the law's unbounded parameters."""
  A, B, E, alpha, beta = LAW.readable(theta)
  return np.stack([np.log(A), np.log(B), np.log(E), alpha, beta], axis=-1)


def log_loss(theta: np.ndarray, log_n: float | np.ndarray, log_d: float | np.ndarray) -> np.ndarray:
  """ln loss at (ln N, ln D); `theta` is (log A, log B, log E, alpha, beta) along its first axis."""
  log_a, log_b, log_e, alpha, beta = theta
  return np.logaddexp(np.logaddexp(log_a - alpha * log_n, log_b - beta * log_d), log_e)


def fit(points: Points, bootstraps: int = 400, seed: int = 0, starts: np.ndarray | None = None) -> Fit:
  """Fits the law; raises `UserError` for no more points than parameters."""
  base = fitting.fit(LAW, (points.N, points.D), points.loss, points.weights, starts=starts)
  return Fit(points, uncertainty.bootstrap(base, bootstraps, seed))


def r2_left_out(points: Points) -> float:
  """R^2 on the largest budget of a fit to the others; NaN if they are too few, or its losses are all the same."""
  budgets = points.budgets()
  last = budgets == budgets.max()
  rest = points[~last]
  if len(rest) <= len(NAMES) or last.sum() < 2 or min(len(np.unique(rest.N)), len(np.unique(rest.D))) < 2:
    return math.nan
  fitted = fit(rest, bootstraps=0)
  largest = points[last]
  residual = np.sum((largest.loss - fitted.predict(largest.N, largest.D)) ** 2)
  variation = np.sum((largest.loss - largest.loss.mean()) ** 2)
  return float(1 - residual / variation) if variation > 0 else math.nan
