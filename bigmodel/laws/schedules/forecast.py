"""Forecasts of whole loss curves under schedules that were not run, with intervals.

Several laws are fitted jointly to all curves, and again without each curve (`LawFit`). The forecast is the mean of the
laws in logs, weighted by the inverse squares of their errors on the curves that were left out. By default these are two
laws: docs/loss_curves.md compares them with others.

The variance of an error, in ln loss, is estimated from the fitted curves alone. Errors on them are too small, because
the laws were fitted to them. Errors on a curve that was left out are too large, because the fit to the others had fewer
curves, and of fewer kinds, than the fit to all. The mean of both variances is taken. Where the fits without a curve and
the laws disagree more than that, their spread is added to the first instead, by a share. Curves that resemble each
other say little about others, so that the misfit of the laws on published curves is the least.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import special

from bigmodel.errors import UserError
from bigmodel.laws.law import Law
from bigmodel.laws.schedules import curves as loss_curves
from bigmodel.laws.schedules import fitting, laws
from bigmodel.laws.schedules import sums as schedule_sums
from bigmodel.laws.schedules.curves import Curve
from bigmodel.laws.schedules.sums import Sums

NAME = "weighted mean of laws of the schedule"
VERSION = 2  # part of every seal; a change to how forecasts are made raises it
LAWS = ("progress_multi_power", "progress_annealing")
FLOOR = 1.25e-3  # least standard deviation of errors in ln loss: the misfit of the laws on published curves
SPREAD = 0.25  # share of the variance between fits that counts
FREEDOM = 10.0  # degrees of freedom of Student's t, since the variance comes from few curves
LEAST = 2  # curves that are needed
FALL = 0.02  # of the peak: a fall of the rate that is smaller identifies nothing
BELOW = 0.8  # of the lowest fitted rate: lower ones are pointed out
HIGHER = 1.05  # times the highest fitted rate, up to which a schedule may go
LONGER = 1.25  # times the longest fitted curve: longer schedules are pointed out
OUTLYING = 0.05  # mean error in ln loss of a curve left out, from which on it may be far from the others' law ...
RATIO = 10.0  # ... if it is so many times the error on the others
SAME = 1e-9  # differences in ln loss that are smaller in all fits are those of identical schedules


@dataclasses.dataclass(frozen=True)
class Units:
  """The highest rate and the most steps of the fitted curves: units of rates and of steps in laws."""

  peak: float
  length: float

  def sums(self, rates: np.ndarray, steps: np.ndarray) -> Sums:
    return schedule_sums.sums(rates, steps, self.peak, self.length)


@dataclasses.dataclass(frozen=True)
class LawFit:
  """A law fitted to all curves, and again without each of those whose errors can be judged.

  `theta` [P] and `folds` [folds, P] are unbounded. `errors` are the errors in ln loss on each curve that was left out,
  `residuals` those of all curves in the fit to all. `left_out` names the curve of each fold, and `kept_errors` are the
  mean absolute errors of the fold on the others.
  """

  law: Law
  theta: np.ndarray
  folds: np.ndarray
  errors: tuple[np.ndarray, ...]
  residuals: np.ndarray
  left_out: tuple[str, ...] = ()
  kept_errors: tuple[float, ...] = ()

  @property
  def params(self) -> dict[str, float]:
    return {name: float(x) for name, x in zip(self.law.names, self.law.readable(self.theta), strict=True)}

  @property
  def backtest(self) -> float:
    """Root mean square, over curves that were left out, of the mean absolute error in ln loss."""
    return float(np.sqrt(np.mean([np.mean(np.abs(error)) ** 2 for error in self.errors])))

  def log_loss(self, sums: Sums) -> np.ndarray:
    """ln loss [1 + folds, R] of the fit to all curves and of those without one."""
    thetas = np.concatenate([self.theta[None], self.folds])
    return np.log(fitting.predict(self.law, thetas, sums))


def quantile(level: float) -> float:
  """Half the width of an interval of this level, in standard deviations."""
  return float(special.stdtrit(FREEDOM, 0.5 + level / 2))


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Losses [R] with the standard deviation of errors in ln loss."""

  predicted: np.ndarray
  sd: np.ndarray

  def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
    half = quantile(level) * self.sd
    return self.predicted * np.exp(-half), self.predicted * np.exp(half)


@dataclasses.dataclass(frozen=True)
class Forecaster:
  """Laws fitted to the same curves, and their weights."""

  curves: tuple[Curve, ...]
  units: Units
  fits: tuple[LawFit, ...]
  weights: np.ndarray

  @property
  def residual_variance(self) -> float:
    """Of the errors in ln loss on the fitted curves."""
    return _variance([self._weighted([fit.residuals for fit in self.fits])])

  @property
  def left_out_variance(self) -> float:
    """Of the errors in ln loss on curves that were left out."""
    return _variance([self._weighted(parts) for parts in zip(*(fit.errors for fit in self.fits), strict=True)])

  @property
  def warmup(self) -> int:
    """The last step of the longest warm-up of a fitted curve."""
    return max(curve.warmup for curve in self.curves)

  @property
  def lowest(self) -> float:
    """The lowest rate after the warm-up of a fitted curve, as a share of the peak."""
    return min(float(curve.rates[curve.warmup :].min()) for curve in self.curves) / self.units.peak

  def predict(self, rates: np.ndarray, steps: np.ndarray) -> Prediction:
    """Forecasts of the loss at `steps` [R] under the schedule whose rate at every step is `rates`."""
    return self.predict_sums(self.units.sums(rates, steps))

  def predict_sums(self, sums: Sums) -> Prediction:
    center, spread = self._center(sums)
    inside, left_out = self.residual_variance, self.left_out_variance
    least = max((inside + max(left_out, inside)) / 2, FLOOR**2)
    return Prediction(np.exp(center), np.sqrt(np.maximum(least, inside + SPREAD * spread)))

  def difference(self, sums: Sums, reference: Sums) -> tuple[np.ndarray, np.ndarray]:
    """`(difference, sd)` [R] in ln loss of schedules from one reference (one row); 0 for the same schedule."""
    logs = [fit.log_loss(sums) - fit.log_loss(reference) for fit in self.fits]
    center = self._weighted([each[0] for each in logs])
    sd = np.sqrt(max(self.residual_variance, FLOOR**2) + self._spread(logs, center))
    same = np.max([np.abs(each).max(axis=0) for each in logs], axis=0) < SAME
    return center, np.where(same, 0.0, sd)

  def _center(self, sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    logs = [fit.log_loss(sums) for fit in self.fits]
    center = self._weighted([each[0] for each in logs])
    return center, self._spread(logs, center)

  def _spread(self, logs: Sequence[np.ndarray], center: np.ndarray) -> np.ndarray:
    """The variance between the fits without a curve, and between laws."""
    folds = self._weighted([each[1:] for each in logs])
    return np.mean((folds - center) ** 2, axis=0) + np.var([each[0] for each in logs], axis=0)

  def _weighted(self, values: Sequence[np.ndarray]) -> np.ndarray:
    return np.tensordot(self.weights, np.stack(values), 1)


def _variance(errors: Sequence[np.ndarray]) -> float:
  """The variance of a normal distribution with these mean absolute errors; every array counts the same."""
  return float(np.mean([np.mean(np.abs(error)) for error in errors]) ** 2 * np.pi / 2)


def fit(curves: Sequence[Curve], chosen: Sequence[Law] = ()) -> Forecaster:
  """Fits the laws (those of `LAWS` if none are given) to curves; raises `UserError` for curves that are too few.

  If the rate of no curve falls, only the power law of the sum of rates is fitted.
  """
  if len(curves) < LEAST:
    raise UserError(
      f"laws of the schedule need {LEAST} or more curves with different schedules, and there is"
      f" {len(curves)} ({', '.join(curve.name for curve in curves) or 'none'}); a single curve is extrapolated with --x"
    )
  falls = [fall(curve) for curve in curves]
  parts = loss_curves.fitted_part(curves)
  if max(falls) >= FALL and all(loss_curves.same_schedule(curves[0], curve) for curve in curves[1:]):
    raise UserError(
      f"all {len(curves)} curves have one schedule, so the effect of the falling learning rate cannot be separated from"
      " what more steps do; add a curve with another schedule"
    )
  if not chosen:
    names = LAWS if max(falls) >= FALL else ("power_of_sum",)
    chosen = [laws.LAWS[name] for name in names]
  points = sum(len(curve.loss) for curve in parts)
  for law in chosen:
    if points <= len(law.names):
      raise UserError(f"law {law.name} has {len(law.names)} parameters and the curves {points} losses after warm-up")
    if max(falls) < FALL and "fall" in law.columns:
      raise UserError(f"law {law.name}: the learning rate falls in none of the curves, so they cannot identify it")
  units = Units(max(float(curve.rates.max()) for curve in curves), float(max(len(c.rates) - 1 for c in curves)))
  folds = [index for index in range(len(parts)) if falls[index] < FALL or max(np.delete(falls, index)) >= FALL]
  fits = [_fit_law(law, parts, units, folds) for law in chosen]
  weights = 1 / np.maximum([each.backtest for each in fits], 1e-9) ** 2
  return Forecaster(tuple(curves), units, tuple(fits), weights / weights.sum())


def candidates(curves: Sequence[Curve]) -> list[Law]:
  """All laws that the curves can identify."""
  falling = any(fall(curve) >= FALL for curve in curves)
  return [law for law in laws.LAWS.values() if falling or "fall" not in law.columns]


def best(forecaster: Forecaster) -> Forecaster:
  """The forecaster with only the law that has the smallest errors on curves that were left out."""
  first = min(forecaster.fits, key=lambda each: each.backtest)
  return dataclasses.replace(forecaster, fits=(first,), weights=np.ones(1))


def fall(curve: Curve) -> float:
  """How far the rate falls after the warm-up and before the last loss, as a share of the curve's highest."""
  after = curve.rates[curve.warmup : int(curve.steps[-1])]
  return float(np.max(np.maximum.accumulate(after) - after, initial=0.0) / curve.rates.max())


def _fit_law(law: Law, parts: Sequence[Curve], units: Units, folds: Sequence[int]) -> LawFit:
  stacked = schedule_sums.stack([units.sums(curve.rates, curve.steps) for curve in parts])
  loss = np.concatenate([curve.loss for curve in parts])
  owner = np.repeat(np.arange(len(parts)), [len(curve.loss) for curve in parts])
  is_shared = np.concatenate([curve.steps <= curve.shared for curve in parts])
  whole = fitting.fit(law, stacked, loss, np.ones(len(loss)))
  thetas, errors, kept = [], [], []
  for index in folds:
    of_curve = owner == index
    left_out = of_curve & ~is_shared if (of_curve & ~is_shared).any() else of_curve
    weights = (~left_out).astype(np.float64)
    first = np.concatenate([whole.theta[None], fitting.starts(law, stacked, loss, weights, fitting.STARTS - 1)])
    theta = fitting.fit(law, stacked, loss, weights, first=first).theta
    thetas.append(theta)
    error = np.log(loss / fitting.predict(law, theta, stacked))
    errors.append(error[left_out])
    kept.append(float(np.mean(np.abs(error[~left_out]))))
  residuals = np.log(loss / fitting.predict(law, whole.theta, stacked))
  names = tuple(parts[index].name for index in folds)
  return LawFit(law, whole.theta, np.array(thetas), tuple(errors), residuals, names, tuple(kept))


def outlying(forecaster: Forecaster) -> list[str]:
  """Notes that name curves, such as diverged ones, that are far from every law that the others follow."""
  notes = []
  for place, name in enumerate(forecaster.fits[0].left_out):
    errors = [float(np.mean(np.abs(fit.errors[place]))) for fit in forecaster.fits]
    kept = [fit.kept_errors[place] for fit in forecaster.fits]
    if all(error > max(OUTLYING, RATIO * other) for error, other in zip(errors, kept, strict=True)):
      notes.append(
        f"curve {name} is far from the law of the others: fitted without it, the law is {min(errors):.0%} off on it and"
        f" {max(kept):.1%} on the others; if it has diverged, leave it out, since it widens all intervals"
      )
  return notes


def check(forecaster: Forecaster, rates: np.ndarray, name: str) -> list[str]:
  """Notes about a schedule far from the fitted ones; raises `UserError` if they cannot identify its effect."""
  target = Curve(name, np.array([len(rates) - 1]), np.ones(1), rates)
  peak = forecaster.units.peak
  if fall(target) >= FALL and max(map(fall, forecaster.curves)) < FALL:
    raise UserError(
      f"{name}: its learning rate falls, and that of none of the {len(forecaster.curves)} fitted curves does after the"
      " warm-up, so what a decay does cannot be identified; add a curve with a decay"
    )
  if rates.max() > HIGHER * peak:
    raise UserError(
      f"{name}: its peak of {rates.max():.4g} is above the highest rate of the fitted curves, {peak:.4g}, and what"
      " higher rates do cannot be identified; add a curve with that peak"
    )
  notes = []
  lowest = float(rates[target.warmup :].min()) / peak
  if lowest < BELOW * forecaster.lowest:
    notes.append(
      f"{name} falls to {lowest * peak:.3g}, below the lowest fitted rate of {forecaster.lowest * peak:.3g};"
      " the interval does not cover what is different there"
    )
  if rates.max() < peak / HIGHER:
    notes.append(f"{name} has a peak of {rates.max():.3g}, and the fitted curves of {peak:.3g}")
  return [*notes, *longer(forecaster, len(rates) - 1, name)]


def longer(forecaster: Forecaster, steps: int, name: str) -> list[str]:
  """A note about a schedule that is much longer than the fitted curves."""
  ratio = steps / forecaster.units.length
  if ratio <= LONGER:
    return []
  return [
    f"{name} is {ratio:.1f} times as long as the longest fitted curve; the interval holds if the laws do at that length"
  ]


def check_steps(forecaster: Forecaster, rates: np.ndarray, steps: Sequence[int], name: str) -> list[str]:
  """Notes about steps that are earlier than the fitted ones; raises `UserError` for steps without a forecast."""
  last = len(rates) - 1
  started = int(np.argmax(rates > 0))
  for step in steps:
    if step > last:
      raise UserError(f"{name}: step {step:,} is beyond the schedule, which ends at step {last:,}")
    if step < started:
      raise UserError(f"{name}: step {step:,} is before step {started:,}, the first with a learning rate above 0")
  first = max(loss_curves.early(forecaster.curves), loss_curves.rise(rates))
  too_early = [step for step in steps if step < first]
  if not too_early:
    return []
  return [
    f"{name}: step {too_early[0]:,} is in the warm-up or the first steps, which laws of the schedule do not describe;"
    f" forecasts hold from step {first:,.0f} on"
  ]
