"""Multiple comparisons: which of many settings may be the best, and which are worse, by their means over seeds.

The setting with the lowest mean was partly lucky, and its luck grows with the number of settings. A threshold for two
settings that were chosen beforehand therefore finds "significant" differences between equal settings. Two questions can
be answered for all settings at once, with a confidence of 90%:

- Which settings may be the best? Multiple comparisons with the best (Hsu 1984) compares each setting with all others by
  Dunnett's one-sided critical value. The best setting is among those that remain in at least 90% of sweeps.
- Which settings are worse than another setting? Every pair is compared by the studentized range (Tukey). If all
  settings are equal, none is called worse in at least 90% of sweeps. This needs larger differences.

Both hold if all settings are equally noisy. If some are several times as noisy as others, a few seeds cannot show it:
in simulations, some setting was then called worse than its equals in 20 to 30% of sweeps.

The last axis K of arrays is over settings. Leading axes are independent sweeps, of which the tests simulate many at
once. Each mean in `loss` is over `seeds` runs. Smaller is better.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, special

LEVEL = 0.9
WILD = 0.01  # probability that, of equally noisy settings, any is treated as an outlier in noise
# Critical values are computed for these degrees of freedom and correlations. Others are rounded down, which makes the
# critical values larger. Settings that share their noise and have equal seeds have a correlation of exactly 1/2.
FREEDOMS = np.array([*range(1, 21), 24, 28, 32, 40, 48, 64, 96, 128, 200])
CORRELATIONS = 16
NODES = 48  # nodes of each of the two integrals: critical values are exact to 4 digits


@dataclasses.dataclass(frozen=True)
class Noise:
  """Estimated variances between runs of a setting, with the degrees of freedom of the estimates."""

  variance: np.ndarray  # [..., K], of each setting
  freedom: np.ndarray  # [..., K]
  common: np.ndarray  # [...], pooled over all settings but the outliers in noise
  common_freedom: np.ndarray  # [...]

  def of(self, settings: Sequence[int]) -> "Noise":
    """Returns the noise of some of the settings, by index."""
    places = list(settings)
    return dataclasses.replace(self, variance=self.variance[..., places], freedom=self.freedom[..., places])


def noise(variance: np.ndarray, seeds: np.ndarray) -> Noise | None:
  """Estimates the noise between runs of each setting; returns None if no setting has two runs.

  `variance` [..., K] is the sample variance over the runs of each setting. It is ignored where `seeds` [K] is below 2.

  Variances of two or three runs are poor estimates, so settings share information. First, settings whose variance is
  far above the median (an F test at 1% over all settings) are outliers and keep their sample variance: they neither
  hide differences between the others nor are judged by the noise of the others. The variances of the rest are shrunk
  towards their mean (empirical Bayes; Smyth 2004), completely if they differ by chance only, and not at all if the
  settings really differ in noise.
  """
  freedom_K = np.maximum(seeds - 1.0, 0.0)
  repeated_K = freedom_K > 0
  if not repeated_K.any():
    return None
  variance = np.where(repeated_K, variance, np.nan)
  degrees_K = np.where(repeated_K, freedom_K, 1.0)
  median = np.nanmedian(variance / (special.chdtri(degrees_K, 0.5) / degrees_K), axis=-1, keepdims=True)
  others = np.maximum(freedom_K.sum() - degrees_K, 1.0)
  limit_K = special.fdtri(degrees_K, others, 1 - WILD / repeated_K.sum())
  with np.errstate(invalid="ignore"):
    wild = (variance > limit_K * median) & (median > 0)
  kept = repeated_K & ~wild
  freedom = np.where(kept, freedom_K, 0.0)
  total = freedom.sum(axis=-1, keepdims=True)
  pooled = np.where(kept, variance * freedom_K, 0.0).sum(axis=-1, keepdims=True) / np.maximum(total, 1.0)
  prior, prior_freedom = _prior(np.where(kept, variance, np.nan), degrees_K, pooled, total)
  spread = np.isfinite(prior_freedom)
  prior_weight = np.where(spread, prior_freedom, 0.0)
  weighted = prior_weight * prior + np.where(kept, freedom_K * np.nan_to_num(variance), 0.0)
  shrunk = np.where(spread, weighted / np.maximum(prior_weight + freedom, 1e-300), pooled)
  shrunk_freedom = np.where(spread, np.minimum(prior_weight + freedom, total), total)
  variances = np.where(wild, np.nan_to_num(variance), shrunk)
  degrees = np.where(wild, freedom_K, shrunk_freedom)
  return Noise(variances, np.maximum(degrees, 1.0), pooled[..., 0], np.maximum(total[..., 0], 1.0))


def _prior(
  variance: np.ndarray, freedom_K: np.ndarray, pooled: np.ndarray, total: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Fits the distribution of the settings' variances by the mean and variance of their logs (Smyth 2004, section 6.2).

  Returns (center, degrees of freedom), each [..., 1]; the degrees are infinite if all settings have the same variance.
  NaN in `variance` marks a setting to leave out.
  """
  count = np.isfinite(variance).sum(axis=-1, keepdims=True)
  least = np.maximum(1e-4 * pooled, 1e-300)  # where seeds agree exactly, the log would be infinite
  logs = np.log(np.maximum(variance, least)) - special.digamma(freedom_K / 2) + np.log(freedom_K / 2)
  present = np.isfinite(variance)
  mean = np.where(present, logs, 0.0).sum(axis=-1, keepdims=True) / np.maximum(count, 1)
  excess = np.where(present, (logs - mean) ** 2 * count / np.maximum(count - 1, 1), 0.0)
  excess -= np.where(present, special.polygamma(1, freedom_K / 2), 0.0)
  excess = excess.sum(axis=-1, keepdims=True) / np.maximum(count, 1)
  differ = (excess > 0) & (count > 2) & (total > 0)
  half = _inverse_trigamma(np.where(differ, excess, 1.0))
  return np.exp(mean + special.digamma(half) - np.log(half)), np.where(differ, 2 * half, np.inf)


def _inverse_trigamma(y: np.ndarray) -> np.ndarray:
  """Returns x with trigamma(x) = y > 0, by Newton's method on 1 / trigamma, almost linear (Smyth 2004, appendix)."""
  x = 0.5 + 1 / y
  for _ in range(12):
    value = special.polygamma(1, x)
    x = x + value * (1 - value / y) / special.polygamma(2, x)
  return x


@dataclasses.dataclass(frozen=True)
class Verdict:
  """For each setting, whether it may be the best, and whether it is worse than another setting."""

  may_be_best: np.ndarray  # [..., K]
  worse: np.ndarray  # [..., K]


def compare(loss: np.ndarray, seeds: np.ndarray, noise_of_runs: Noise) -> Verdict:
  """Compares each setting with all others at a confidence of `LEVEL`, for all settings at once."""
  squared = noise_of_runs.variance / seeds  # standard errors of the means
  difference = loss[..., :, None] - loss[..., None, :]
  total = squared[..., :, None] + squared[..., None, :]
  with np.errstate(invalid="ignore", divide="ignore"):
    t = np.where(difference == 0, 0.0, difference / np.sqrt(total))
    # Degrees of freedom of a difference of means (Welch and Satterthwaite), limited to those of the better estimate.
    freedom = total**2 / (
      squared[..., :, None] ** 2 / noise_of_runs.freedom[..., :, None]
      + squared[..., None, :] ** 2 / noise_of_runs.freedom[..., None, :]
    )
    # The t statistics of a setting against i and j have the correlation sqrt(share_i share_j). The smallest share is
    # the conservative choice.
    share = (squared[..., :, None] / total).min(axis=-1)
  most = np.maximum(noise_of_runs.freedom[..., :, None], noise_of_runs.freedom[..., None, :])
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
  """Returns nodes and weights for integrals from -1 to 1."""
  return np.polynomial.legendre.leggauss(count)


def _standard_deviations(freedom: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns nodes and weights for integrals over an estimated standard deviation whose true value is 1."""
  nodes, weights = _legendre(NODES)
  return np.sqrt(special.chdtri(freedom, 0.5 - nodes / 2) / freedom), weights / 2


@functools.cache
def _normal() -> tuple[np.ndarray, np.ndarray]:
  nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
  return nodes, weights / math.sqrt(2 * math.pi)


def _root(function: Callable[[float], float]) -> float:
  """Returns the positive root of an increasing function."""
  high = 4.0
  while function(high) < 0:
    high *= 2
  return float(optimize.brentq(function, high / 2 if high > 4 else 0.0, high, xtol=1e-5))  # pyright: ignore[reportArgumentType]


@functools.cache
def dunnett_critical(settings: int, freedom: int, correlation: float = 0.5, level: float = LEVEL) -> float:
  """Returns Dunnett's one-sided critical value for `settings` - 1 comparisons with one setting.

  `correlation` is that between two of the t statistics: 1/2 if all means have the same standard error.
  """
  if settings < 2:
    return 0.0
  sd_S, weights_S = _standard_deviations(freedom)
  z_Z, weights_Z = _normal()
  shared, rest = math.sqrt(correlation), math.sqrt(max(1 - correlation, 1e-9))

  def excess(d: float) -> float:
    below_SxZ = special.ndtr((d * sd_S[:, None] + shared * z_Z) / rest) ** (settings - 1)
    return float(weights_S @ below_SxZ @ weights_Z) - level

  return _root(excess)


@functools.cache
def range_critical(settings: int, freedom: int, level: float = LEVEL) -> float:
  """Returns Tukey's critical value of the range of `settings` means, in standard errors of a mean."""
  if settings < 2:
    return 0.0
  sd_S, weights_S = _standard_deviations(freedom)
  z_Z, weights_Z = _legendre(4 * NODES)
  z_Z, weights_Z = 8 * z_Z, 8 * weights_Z * np.exp(-((8 * z_Z) ** 2) / 2) / math.sqrt(2 * math.pi)

  below_Z = special.ndtr(z_Z)

  def excess(q: float) -> float:
    inside_SxZ = (below_Z - special.ndtr(z_Z - q * sd_S[:, None])) ** (settings - 1)
    return float(weights_S @ inside_SxZ @ (settings * weights_Z)) - level

  return _root(excess)
