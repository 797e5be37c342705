"""Fits of one law with several emphases on the largest runs, to all points and to those below several scales.

An emphasis is the power of C to which the weights of points are proportional. Small runs often follow another law than
large ones, as when they are too short for their warm-up, and then fits that mind the large ones more forecast better.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from bigmodel.laws import fitting, marquardt
from bigmodel.laws.law import Law

EMPHASES = (0.0, 0.5, 1.0, 1.5, 2.0)
HUBER = 1.345  # standard deviations at which Huber's loss turns linear: 95% efficient for normal noise
FIRST_DELTA = 1e-3  # of Huber's loss while the noise is not known, almost that of absolute values
QUIETEST = 1e-4  # standard deviation of ln loss: points are never taken to be more precise
CONSISTENT = 1.4826  # the standard deviation of normal noise, as a multiple of its median absolute value
PARAMETERS = 5  # of a typical law: bootstrapped weights are the same for all laws


@dataclasses.dataclass(frozen=True)
class Runs:
  """The points that laws are fitted to: their columns by name, losses, weights, and ln C up to a constant [n].

  `below` [K + 1, n] are masks of the points that are fitted, of which the first is of all.
  """

  columns: dict[str, np.ndarray]
  loss: np.ndarray
  weights: np.ndarray
  scale: np.ndarray
  below: np.ndarray

  def emphasized(self, below: np.ndarray, emphasis: float) -> np.ndarray:
    """Weights [n] whose sum is the number of points in the mask `below`."""
    top = self.scale[below].max()
    weights = self.weights * below * np.exp(emphasis * np.minimum(self.scale - top, 0.0))
    return weights * below.sum() / weights.sum()


@dataclasses.dataclass(frozen=True)
class Emphasized:
  """Fits of one law, one for each emphasis, with the ln losses that they expect [K + 1, n] from each mask of points."""

  fits: list[fitting.Fit]
  expected: list[np.ndarray]
  noise: float  # of all points around the fit without emphasis, in ln loss


def fit(law: Law, runs: Runs) -> Emphasized:
  """Fits the law by Huber's loss whose delta follows from the noise; raises `UserError` if points are too few."""
  columns = tuple(runs.columns[name] for name in law.columns)
  fitting.check(law, columns, runs.loss)
  count = len(runs.below)
  even = _sets(columns, runs.loss, [runs.emphasized(below, 0.0) for below in runs.below])
  first, _ = marquardt.best(law, even, law.plain, np.full(count, FIRST_DELTA))
  noise = _noise(runs, [_log_residual(law, theta, columns, runs.loss) for theta in first], len(law.names))
  pairs = [(i, emphasis) for emphasis in EMPHASES for i in range(count)]
  weights = [runs.emphasized(runs.below[i], emphasis) for i, emphasis in pairs]
  starts = np.stack([first, np.roll(first, 1, axis=0), np.roll(first, -1, axis=0)], axis=1)
  delta = HUBER * noise[[i for i, _ in pairs]]
  theta, cost = marquardt.refine(law, _sets(columns, runs.loss, weights), starts[[i for i, _ in pairs]], delta)
  made = []
  for k in range(len(EMPHASES)):
    at = k * count
    how = fitting.Loss("huber", float(delta[at]))
    none = np.empty((0, len(law.names)))
    value = float(cost[at]) / 2
    made.append(fitting.Fit(law, columns, runs.loss, weights[at], how, theta[at], value, starts.shape[1], 1, none))
  expected = [np.log(fitting.predict(law, theta[k * count : (k + 1) * count], columns)) for k in range(len(EMPHASES))]
  return Emphasized(made, expected, float(noise[0]))


def bootstrap(fits: Sequence[fitting.Fit], draws: int, seed: int = 0) -> list[fitting.Fit]:
  """The fits, of any laws, with draws of their parameters.

  Every draw gives each point a random weight (Rubin 1981), the same in all fits, so that the draws are of their mean
  as well. A fit leaves residuals that are too small by sqrt(1 - P / n), so the variance of the weights is larger than
  1 to make up for it.
  """
  n = len(fits[0].loss)
  random = np.random.default_rng(seed).gamma(max(n - PARAMETERS, 1) / n, size=(draws, n))
  random = random / random.mean(axis=1, keepdims=True)
  drawn: list[fitting.Fit] = []
  for law in dict.fromkeys(each.law for each in fits):
    own = [each for each in fits if each.law is law]
    sets = _sets(own[0].columns, own[0].loss, [weights for each in own for weights in random * each.weights])
    starts = np.repeat([[each.theta] for each in own], draws, axis=0)
    theta, _ = marquardt.refine(law, sets, starts, np.repeat([each.how.scale for each in own], draws))
    thetas = np.split(theta, len(own))
    drawn += [dataclasses.replace(each, draws=theta) for each, theta in zip(own, thetas, strict=True)]
  return drawn


def _sets(columns: Sequence[np.ndarray], loss: np.ndarray, weights: Sequence[np.ndarray]) -> fitting.Sets:
  """Data sets of the same points with different weights, padded as those of `fitting.stack` are."""
  pad = -len(loss) % fitting.PAD

  def repeated(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, (0, pad), mode="edge")
    return np.broadcast_to(padded, (len(weights), len(padded)))

  return fitting.Sets(tuple(map(repeated, columns)), repeated(loss), np.pad(np.stack(weights), ((0, 0), (0, pad))))


def _log_residual(law: Law, theta: np.ndarray, columns: Sequence[np.ndarray], loss: np.ndarray) -> np.ndarray:
  return np.log(loss / fitting.predict(law, theta, columns))


def _noise(runs: Runs, residuals: Sequence[np.ndarray], parameters: int) -> np.ndarray:
  """Standard deviations of ln loss [K + 1] that outliers do not change."""
  made = []
  for below, residual in zip(runs.below, residuals, strict=True):
    left = below.sum() / max(below.sum() - parameters, 1)
    made.append(CONSISTENT * math.sqrt(left) * float(np.median(np.abs(residual[below]))))
  return np.maximum(made, QUIETEST)
