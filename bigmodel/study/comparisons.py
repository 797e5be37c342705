"""Multiple comparisons: which of many settings may be the best, and which are worse, by their means over seeds.

The setting with the lowest mean of many was lucky, too, and the more settings there are the luckier it was. A threshold
for two settings that were chosen beforehand therefore finds "significant" differences between equal ones. Two questions
have an answer that is right for all settings at once, at a confidence of 90%:

- Which settings may be the best? Multiple comparisons with the best (Hsu 1984) compares each setting with all others by
  Dunnett's one-sided critical value. The best setting is among those that remain in at least 90% of sweeps.
- Which settings are worse than another one? Every pair is compared by the studentized range (Tukey), so that of
  settings that are all equal none is called worse in at least 90% of sweeps. This asks for larger differences.

Both hold where settings are equally noisy. Where some are several times as noisy as others, a few seeds cannot say so:
in simulations one of equal settings was then called worse in 20 to 30% of sweeps.

Arrays have a last axis K of settings; leading axes are sweeps of their own, which is how the tests simulate many at
once. A mean of `loss` belongs to `seeds` runs. Smaller is better.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, special

LEVEL = 0.9
WILD = 0.01  # probability that a sweep of equally noisy settings has one whose noise counts as of another kind
# Degrees of freedom and correlations for which critical values are computed; those between are rounded down, which
# makes them larger. Settings that share their noise and have equal seeds have a correlation of exactly 1/2.
FREEDOMS = np.array([*range(1, 21), 24, 28, 32, 40, 48, 64, 96, 128, 200])
CORRELATIONS = 16
NODES = 48  # of each of the two integrals: critical values are exact to 4 digits


@dataclasses.dataclass(frozen=True)
class Noise:
  """The variance between runs of one setting, with the degrees of freedom that it was estimated with."""

  variance: np.ndarray  # [..., K], of each setting
  freedom: np.ndarray  # [..., K]
  common: np.ndarray  # [...], pooled over all settings whose noise is of the common kind
  common_freedom: np.ndarray  # [...]

  def of(self, settings: Sequence[int]) -> "Noise":
    """The noise of some of the settings."""
    places = list(settings)
    return dataclasses.replace(self, variance=self.variance[..., places], freedom=self.freedom[..., places])


def noise(variance: np.ndarray, seeds: np.ndarray) -> Noise | None:
  """How far runs of each setting scatter; None where no setting has two runs.

  `variance` [..., K] is that between the runs of each setting, and is not read where `seeds` [K] is below 2.

  Variances from two or three runs say little, so settings share what they know. First, a setting whose variance is far
  above the median of all (an F test at 1% over all settings) is set apart and keeps its own: it neither hides
  differences between the others nor is it judged by their noise. The variances of the rest are drawn towards their
  mean as far as they differ by chance alone (empirical Bayes; Smyth 2004): all the way where they are alike, and not
  at all where settings differ in their noise.
  """
  freedom_K = np.maximum(seeds - 1.0, 0.0)
  repeated_K = freedom_K > 0
  if not repeated_K.any():
    return None
  variance = np.where(repeated_K, variance, np.nan)
  own_K = np.where(repeated_K, freedom_K, 1.0)
  median = np.nanmedian(variance / (special.chdtri(own_K, 0.5) / own_K), axis=-1, keepdims=True)
  others = np.maximum(freedom_K.sum() - own_K, 1.0)
  limit_K = special.fdtri(own_K, others, 1 - WILD / repeated_K.sum())
  with np.errstate(invalid="ignore"):
    wild = (variance > limit_K * median) & (median > 0)
  kept = repeated_K & ~wild
  freedom = np.where(kept, freedom_K, 0.0)
  total = freedom.sum(axis=-1, keepdims=True)
  pooled = np.where(kept, variance * freedom_K, 0.0).sum(axis=-1, keepdims=True) / np.maximum(total, 1.0)
  prior, prior_freedom = _prior(np.where(kept, variance, np.nan), own_K, pooled, total)
  spread = np.isfinite(prior_freedom)
  known = np.where(spread, prior_freedom, 0.0)
  weighted = known * prior + np.where(kept, freedom_K * np.nan_to_num(variance), 0.0)
  shrunk = np.where(spread, weighted / np.maximum(known + freedom, 1e-300), pooled)
  shrunk_freedom = np.where(spread, np.minimum(known + freedom, total), total)
  variances = np.where(wild, np.nan_to_num(variance), shrunk)
  degrees = np.where(wild, freedom_K, shrunk_freedom)
  return Noise(variances, np.maximum(degrees, 1.0), pooled[..., 0], np.maximum(total[..., 0], 1.0))


def _prior(
  variance: np.ndarray, freedom_K: np.ndarray, pooled: np.ndarray, total: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """(center, degrees of freedom) of the distribution of the settings' variances; infinite degrees where all are one.

  By the mean and the variance of their logs (Smyth 2004, section 6.2), each [..., 1]; NaN stands for no variance.
  """
  count = np.isfinite(variance).sum(axis=-1, keepdims=True)
  least = np.maximum(1e-4 * pooled, 1e-300)  # of seeds that agree to the bit the log would be infinite
  logs = np.log(np.maximum(variance, least)) - special.digamma(freedom_K / 2) + np.log(freedom_K / 2)
  there = np.isfinite(variance)
  mean = np.where(there, logs, 0.0).sum(axis=-1, keepdims=True) / np.maximum(count, 1)
  excess = np.where(there, (logs - mean) ** 2 * count / np.maximum(count - 1, 1), 0.0)
  excess -= np.where(there, special.polygamma(1, freedom_K / 2), 0.0)
  excess = excess.sum(axis=-1, keepdims=True) / np.maximum(count, 1)
  differ = (excess > 0) & (count > 2) & (total > 0)
  half = _inverse_trigamma(np.where(differ, excess, 1.0))
  return np.exp(mean + special.digamma(half) - np.log(half)), np.where(differ, 2 * half, np.inf)


def _inverse_trigamma(y: np.ndarray) -> np.ndarray:
  """x with trigamma(x) = y > 0, by Newton's method on 1 / trigamma, which is almost straight (Smyth 2004, appendix)."""
  x = 0.5 + 1 / y
  for _ in range(12):
    value = special.polygamma(1, x)
    x = x + value * (1 - value / y) / special.polygamma(2, x)
  return x


@dataclasses.dataclass(frozen=True)
class Verdict:
  """For each setting: whether it may be the best, and whether it is worse than another one."""

  may_be_best: np.ndarray  # [..., K]
  worse: np.ndarray  # [..., K]


def compare(loss: np.ndarray, seeds: np.ndarray, known: Noise) -> Verdict:
  """Compares each setting with all others at a confidence of `LEVEL`, for all settings at once."""
  squared = known.variance / seeds  # standard errors of the means
  difference = loss[..., :, None] - loss[..., None, :]
  total = squared[..., :, None] + squared[..., None, :]
  with np.errstate(invalid="ignore", divide="ignore"):
    t = np.where(difference == 0, 0.0, difference / np.sqrt(total))
    # Of a difference of two means (Welch and Satterthwaite), but never more than went into the larger estimate.
    freedom = total**2 / (
      squared[..., :, None] ** 2 / known.freedom[..., :, None]
      + squared[..., None, :] ** 2 / known.freedom[..., None, :]
    )
    # The t statistics of a setting against others i and j have the correlation sqrt(s_i s_j) with these shares; the
    # least share of all is on the safe side.
    share = (squared[..., :, None] / total).min(axis=-1)
  most = np.maximum(known.freedom[..., :, None], known.freedom[..., None, :])
  row = np.searchsorted(FREEDOMS, np.maximum(np.nan_to_num(np.minimum(freedom, most)), 1) + 1e-9, side="right") - 1
  step = np.floor(np.nan_to_num(share) * CORRELATIONS + 1e-9).astype(int)
  settings = loss.shape[-1]
  tukey = np.zeros(len(FREEDOMS))
  dunnett = np.zeros((len(FREEDOMS), CORRELATIONS + 1))
  for i in np.unique(row).tolist():
    tukey[i] = range_critical(settings, int(FREEDOMS[i]))
    for j in np.unique(step[(row == i).any(axis=-1)]).tolist():
      dunnett[i, j] = dunnett_critical(settings, int(FREEDOMS[i]), j / CORRELATIONS)
  return Verdict(
    may_be_best=~np.any(t > dunnett[row, step[..., None]], axis=-1),
    worse=np.any(t > tukey[row] / math.sqrt(2), axis=-1),
  )


@functools.cache
def _legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
  """Nodes and weights of the integral from -1 to 1."""
  return np.polynomial.legendre.leggauss(count)


def _standard_deviations(freedom: int) -> tuple[np.ndarray, np.ndarray]:
  """Nodes and weights of the distribution of an estimated standard deviation, where the true one is 1."""
  nodes, weights = _legendre(NODES)
  return np.sqrt(special.chdtri(freedom, 0.5 - nodes / 2) / freedom), weights / 2


@functools.cache
def _normal() -> tuple[np.ndarray, np.ndarray]:
  nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
  return nodes, weights / math.sqrt(2 * math.pi)


def _root(function: Callable[[float], float]) -> float:
  """Where a rising function of a positive number is 0."""
  high = 4.0
  while function(high) < 0:
    high *= 2
  return float(optimize.brentq(function, high / 2 if high > 4 else 0.0, high, xtol=1e-5))  # pyright: ignore[reportArgumentType]


@functools.cache
def dunnett_critical(settings: int, freedom: int, correlation: float = 0.5, level: float = LEVEL) -> float:
  """Dunnett's one-sided critical value: the largest of `settings` - 1 t statistics that have one setting in common.

  `correlation` is that of two of them: 1/2 where all means are known equally well.
  """
  if settings < 2:
    return 0.0
  sd_S, weights_S = _standard_deviations(freedom)
  z_Z, weights_Z = _normal()
  shared, rest = math.sqrt(correlation), math.sqrt(max(1 - correlation, 1e-9))

  def missing(d: float) -> float:
    below_SxZ = special.ndtr((d * sd_S[:, None] + shared * z_Z) / rest) ** (settings - 1)
    return float(weights_S @ below_SxZ @ weights_Z) - level

  return _root(missing)


@functools.cache
def range_critical(settings: int, freedom: int, level: float = LEVEL) -> float:
  """Tukey's critical value: the range of `settings` means over the standard error of one."""
  if settings < 2:
    return 0.0
  sd_S, weights_S = _standard_deviations(freedom)
  z_Z, weights_Z = _legendre(4 * NODES)
  z_Z, weights_Z = 8 * z_Z, 8 * weights_Z * np.exp(-((8 * z_Z) ** 2) / 2) / math.sqrt(2 * math.pi)

  below_Z = special.ndtr(z_Z)

  def missing(q: float) -> float:
    inside_SxZ = (below_Z - special.ndtr(z_Z - q * sd_S[:, None])) ** (settings - 1)
    return float(weights_S @ inside_SxZ @ (settings * weights_Z)) - level

  return _root(missing)
