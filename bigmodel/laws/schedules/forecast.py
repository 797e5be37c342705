"""Forecasts of whole loss curves under schedules that were not run."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bigmodel.laws.law import Law
from bigmodel.laws.schedules import curves as loss_curves
from bigmodel.laws.schedules import fitting, laws
from bigmodel.laws.schedules import sums as schedule_sums
from bigmodel.laws.schedules.curves import Curve
from bigmodel.laws.schedules.sums import Sums

LAWS = (laws.progress_multi_power, laws.progress_annealing, laws.multi_power, laws.annealing)


@dataclasses.dataclass(frozen=True)
class LawFit:
  """A law fitted to all curves, and again without each of them.

  `theta` [P]; `folds` [curves, P]; `errors` has the errors in ln loss on each curve when it was left out.
  """

  law: Law
  theta: np.ndarray
  objective: float
  folds: np.ndarray
  errors: tuple[np.ndarray, ...]
  residuals: tuple[np.ndarray, ...]

  @property
  def backtest(self) -> float:
    """Root mean square, over the curves, of the mean absolute error on a curve that was left out."""
    return float(np.sqrt(np.mean([np.mean(np.abs(error)) ** 2 for error in self.errors])))


@dataclasses.dataclass(frozen=True)
class Units:
  """The highest rate and the most steps of the fitted curves: units of rates and of steps in laws."""

  peak: float
  length: float

  def sums(self, rates: np.ndarray, steps: np.ndarray) -> Sums:
    return schedule_sums.sums(rates, steps, self.peak, self.length)


def units_of(curves: Sequence[Curve]) -> Units:
  return Units(max(float(curve.rates.max()) for curve in curves), float(max(len(c.rates) - 1 for c in curves)))


def fit_law(law: Law, parts: Sequence[Curve], units: Units) -> LawFit:
  stacked = schedule_sums.stack([units.sums(curve.rates, curve.steps) for curve in parts])
  loss = np.concatenate([curve.loss for curve in parts])
  owner = np.repeat(np.arange(len(parts)), [len(curve.loss) for curve in parts])
  whole = fitting.fit(law, stacked, loss, np.ones(len(loss)))
  folds, errors = [], []
  for index in range(len(parts)):
    weights = (owner != index).astype(np.float64)
    first = np.concatenate([whole.theta[None], fitting.starts(law, stacked, loss, weights, 2)])
    fold = fitting.fit(law, stacked, loss, weights, first=first)
    folds.append(fold.theta)
    errors.append(np.log(loss / fitting.predict(law, fold.theta, stacked))[owner == index])
  residual = np.log(loss / fitting.predict(law, whole.theta, stacked))
  residuals = [residual[owner == index] for index in range(len(parts))]
  return LawFit(law, whole.theta, whole.objective, np.array(folds), tuple(errors), tuple(residuals))
