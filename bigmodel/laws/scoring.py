"""Judges forecasts with intervals by losses that were measured later: errors, coverage, interval scores and bias."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from bigmodel.laws.forecast import LEVELS, Predict

LEVEL = 0.9  # of the intervals whose widths and scores are stated
BETWEEN_TENTHS = (0.2, 0.4, 0.6, 0.8)  # levels of the intervals that end at the tenths of a forecast distribution


@dataclasses.dataclass(frozen=True)
class Judged:
  """Forecasts of single runs beside their measured losses; all arrays are [runs], `inside` is [LEVELS, runs].

  `error` is the logarithm of measured over predicted loss; `width` and `score` are those of the 90% interval, in logs.
  `tenth` is the part of the forecast distribution that holds the measured loss: 0 for its lowest tenth.
  """

  error: np.ndarray
  inside: np.ndarray
  width: np.ndarray
  score: np.ndarray
  tenth: np.ndarray

  def __len__(self) -> int:
    return len(self.error)

  def __getitem__(self, index: np.ndarray) -> "Judged":
    """Some of the runs, by a mask or by indices."""
    return Judged(self.error[index], self.inside[:, index], self.width[index], self.score[index], self.tenth[index])

  @property
  def rmsle(self) -> float:
    """The root mean square error in logs."""
    return float(np.sqrt(np.mean(self.error**2)))

  def coverage(self, level: float = LEVEL) -> float:
    """The share of losses inside the intervals of this level, which is one of `LEVELS`."""
    return float(np.mean(self.inside[LEVELS.index(level)]))

  def shares(self) -> np.ndarray:
    """The share of losses in each tenth of their forecast distributions [10]."""
    return np.bincount(self.tenth, minlength=10) / len(self)

  def chi_square(self) -> float:
    """Pearson's statistic of `shares` against a tenth each: 9 on average, above 16.9 in 5% of cases, if they hold.

    It presumes independent runs: forecasts from the same points are not.
    """
    return float(len(self) * np.sum((self.shares() - 0.1) ** 2) / 0.1)


def judge(predict: Predict, N: ArrayLike, D: ArrayLike, C: ArrayLike, loss: ArrayLike) -> Judged:
  """The forecasts of runs at (N, D, C) beside their measured losses."""
  N, D, C, loss = (np.asarray(x, np.float64) for x in (N, D, C, loss))
  levels = {level: predict(N, D, C, level) for level in {*LEVELS, *BETWEEN_TENTHS, LEVEL}}
  at = levels[LEVEL]
  ends = [levels[level].low for level in BETWEEN_TENTHS] + [levels[level].high for level in BETWEEN_TENTHS]
  tenth = np.sum(np.stack([*ends, at.predicted]) < loss, axis=0)
  inside = np.stack([(levels[level].low <= loss) & (loss <= levels[level].high) for level in LEVELS])
  score = interval_score(loss, at.low, at.high, LEVEL)
  return Judged(np.log(loss / at.predicted), inside, np.log(at.high / at.low), score, tenth)


def interval_score(loss: np.ndarray, low: np.ndarray, high: np.ndarray, level: float) -> np.ndarray:
  """The score of each interval in logs (Gneiting and Raftery 2007): its width, and 2 / (1 - level) times the miss."""
  loss, low, high = np.log(loss), np.log(low), np.log(high)
  miss = np.maximum(low - loss, 0) + np.maximum(loss - high, 0)
  return high - low + 2 / (1 - level) * miss


def join(parts: Sequence[Judged]) -> Judged:
  """All forecasts of several sets."""
  error, inside, width, score, tenth = (
    np.concatenate([getattr(part, field.name) for part in parts], axis=-1) for field in dataclasses.fields(Judged)
  )
  return Judged(error, inside, width, score, tenth)
