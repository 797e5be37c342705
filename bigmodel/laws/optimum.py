"""The best size and data for a budget within limits, the least compute for a loss, and the cost of other sizes.

Training costs k N D, with k = 6 under the usual convention. Each token that is served over the model's life costs
k / 3 times N (2 N; Sardana et al. 2024). Without limits and without serving the optimum has the closed form of
`chinchilla.Fit.optimum`. With them it is searched for along ln N, for the fit and all its draws at once.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from bigmodel.laws import chinchilla
from bigmodel.laws.facts import BestSize, Interval, LeastCompute, OffOptimum, finite

OFF = (0.25, 0.5, 2.0, 4.0)  # sizes off the optimum whose cost is computed, as multiples of the best one
STEPS = 80  # of golden-section search: to 1e-15 of the interval
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class Limits:
  """Parameters that fit into memory, tokens that there are to train on, and tokens that will be served."""

  params: float = math.inf
  tokens: float = math.inf
  served: float = 0.0


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def best(theta_Sx5: np.ndarray, C: float, k: float, limits: Limits = Limits()) -> Arrays:
  """`(N, D, loss)` [S] of the lowest loss that C buys, serving included; what limits leave over is not spent."""
  theta = theta_Sx5.T[:, :, None]
  most = math.log(min(limits.params, C / (k / 3 * limits.served) if limits.served else math.inf, C / k))

  def tokens(log_n: np.ndarray) -> np.ndarray:
    return np.minimum(limits.tokens, C / (k * np.exp(log_n)) - limits.served / 3)

  def loss(log_n: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
      values = chinchilla.log_loss(theta, log_n, np.log(tokens(log_n)))
    return np.where(np.isfinite(values), values, np.inf)

  log_n = _minimum(loss, np.zeros((theta.shape[1], 1)), np.full((theta.shape[1], 1), most))
  return np.exp(log_n)[:, 0], tokens(log_n)[:, 0], np.exp(loss(log_n))[:, 0]


def reach(theta_Sx5: np.ndarray, loss: float | np.ndarray, k: float, limits: Limits = Limits()) -> Arrays:
  """`(C, N, D)` [S] of the least compute with that loss, serving included; C is infinite if no size reaches it."""
  log_a, log_b, log_e, alpha, beta = (x[:, None] for x in theta_Sx5.T)
  with np.errstate(all="ignore"):
    reducible = np.reshape(loss, (-1, 1)) - np.exp(log_e)
    smallest = (log_a - np.log(reducible - np.exp(log_b - beta * np.log(limits.tokens)))) / alpha
    most = np.full_like(smallest, min(math.log(limits.params), 200.0))

    def log_d(log_n: np.ndarray) -> np.ndarray:
      return (log_b - np.log(reducible - np.exp(log_a - alpha * log_n))) / beta

    def cost(log_n: np.ndarray) -> np.ndarray:
      values = log_n + np.log(np.exp(log_d(log_n)) + limits.served / 3)
      return np.where(np.isfinite(values), values, np.inf)

    possible = np.isfinite(smallest) & (smallest < most)
    log_n = _minimum(cost, np.where(possible, smallest, 0.0), np.where(possible, most, 1.0))
    total = np.where(possible, k * np.exp(cost(log_n)), np.inf)
    return total[:, 0], np.where(possible, np.exp(log_n), np.nan)[:, 0], np.exp(log_d(log_n))[:, 0]


def _minimum(value: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
  """The minimum [S, 1] between `low` and `high`, row by row, of a function with a single one."""
  for _ in range(STEPS):
    near, far = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    below = value(near) <= value(far)
    low, high = np.where(below, low, near), np.where(below, far, high)
  middle = (low + high) / 2
  ends = np.concatenate([middle, low, high], axis=1)  # the minimum may be exactly at a limit
  values = np.concatenate([value(x) for x in (middle, low, high)], axis=1)
  return np.take_along_axis(ends, np.argmin(values, axis=1)[:, None], axis=1)


def at(fit: chinchilla.Fit, C: float, limits: Limits = Limits()) -> BestSize:
  """The optimum at C with 90% intervals, and the cost of other sizes in loss and in compute."""
  k = fit.flops_per_nd
  thetas = np.vstack([fit.theta, fit.draws])
  N, D, loss = best(thetas, C, k, limits)
  off = []
  for times in OFF:
    n = float(N[0] * times)
    d = min(limits.tokens, C / (k * n) - limits.served / 3)
    if n > limits.params or d <= 0:
      continue
    reached = float(fit.predict(n, d))
    needed, _, _ = reach(fit.theta[None], reached, k, limits)
    off.append(OffOptimum(times, n, float(d), reached, float(needed[0] / C)))
  size = BestSize(
    C=C,
    N=N[0],
    D=D[0],
    loss=loss[0],
    spent=k * N[0] * (D[0] + limits.served / 3),
    N_interval90=_interval(N[1:]),
    D_interval90=_interval(D[1:]),
    off=off,
  )
  return finite(size)


def least(fit: chinchilla.Fit, loss: float, limits: Limits = Limits()) -> LeastCompute:
  """The least compute to a loss with 90% intervals, and the share of draws in which it is reached at all."""
  C, N, D = reach(np.vstack([fit.theta, fit.draws]), loss, fit.flops_per_nd, limits)
  possible = np.isfinite(C[1:])
  compute = LeastCompute(
    loss=loss,
    C=C[0],
    N=N[0],
    D=D[0],
    reached_in=float(possible.mean()),
    C_interval90=_interval(C[1:]),
    N_interval90=_interval(N[1:][possible]),
    D_interval90=_interval(D[1:][possible]),
  )
  return finite(compute)


def _interval(draws: np.ndarray) -> Interval | None:
  if not np.isfinite(draws).any():
    return None
  low, high = np.quantile(draws, [0.05, 0.95], method="nearest")  # which interpolates no infinite draws
  return float(low), float(high)
