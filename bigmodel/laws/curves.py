"""Extrapolates curves of loss against one scale: by the mean of two forms that weigh the last points most.

The two forms are power laws with an offset (M2 of Alabdulmohsin et al. 2022) and with a shift (their M3), fitted by
Huber's loss with weights in proportion to x and averaged in logs. They were chosen by backtests within the training
points of the 56 curves of that paper, though with the errors on the hidden points in view (`docs/laws.md`,
`experiments/extrapolation.py`).

An interval is a multiple of a scale of errors that is known before the truth: the disagreement of the forms, and the
errors of the curve's forecasts from half, a quarter and an eighth of its scale. The multiple is the one that covered
other curves (conformal prediction; Vovk et al. 2005): the given curves, if there are enough of them and they are long
enough for a backtest, and otherwise those of the benchmark.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from bigmodel.errors import UserError
from bigmodel.laws import fitting
from bigmodel.laws.facts import ForecastMethod, ForecastRow
from bigmodel.laws.forecast import LEVELS
from bigmodel.laws.forms import LAWS

GRIDS = {
  "power_offset": {"a": (1.0,), "b": (1.0,), "c": (0.05, 0.2, 0.5, 1.0)},
  "power_shifted": {"b": (1.0,), "c": (0.1, 0.3, 0.6), "g": (1.0, 0.1, 0.01, 0.001)},
}  # starts, for x and losses in units of the largest of each
HOW = fitting.Loss("huber", 1e-2)
LEAST = 5  # points that a curve needs
HALVINGS = 3  # of a curve's largest x: the scales below which it is fitted again, to measure its errors beyond them
NEAR = 2.2  # times such a scale, up to which the errors are measured
FLOOR = 1e-4  # least scale of errors, in logs
ENOUGH = 20  # curves that are needed to take the multiples from them rather than from the benchmark
NAME = "mean of a power law with an offset and one with a shift"
VERSION = 2  # part of every seal; a change to how forecasts are made raises it
# `experiments/extrapolation.py` prints these: multiples of the scale of errors that cover each share of the benchmark.
BENCHMARK = {0.5: 1.66, 0.8: 3.95, 0.9: 6.03, 0.95: 10.66}

XY = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class CurvePrediction:
  """Losses with an interval (low, high) for each level, all of the shape of x."""

  predicted: np.ndarray
  intervals: dict[float, XY]


@dataclasses.dataclass(frozen=True)
class Curve:
  """A curve with its fits: the parameters of each form, for points in units of their largest x and loss."""

  name: str
  x: np.ndarray
  y: np.ndarray
  thetas: dict[str, np.ndarray]
  backtest: float  # rms error in logs of its forecasts from smaller scales, per doubling; NaN: too short for a backtest

  def logs(self, x: ArrayLike) -> XY:
    """`(center, scale)`: the mean of the forms in logs, and the scale of its errors."""
    x = np.asarray(x, np.float64)
    values = [
      np.log(self.y.max() * fitting.predict(LAWS[name], theta, (x / self.x.max(),)))
      for name, theta in self.thetas.items()
    ]
    apart = np.ptp(values, axis=0) / 2
    doublings = np.maximum(np.log2(x / self.x.max()), 0.15)
    backtest = 0.5 * self.backtest * np.sqrt(doublings) if np.isfinite(self.backtest) else 0.0
    return np.mean(values, axis=0), np.sqrt(apart**2 + backtest**2 + FLOOR**2)

  def predict(self, x: ArrayLike, multiples: dict[float, float]) -> CurvePrediction:
    """Losses at x with an interval for each level; `multiples` are of the scale of errors."""
    center, scale = self.logs(x)
    intervals = {q: (np.exp(center - m * scale), np.exp(center + m * scale)) for q, m in multiples.items()}
    return CurvePrediction(np.exp(center), intervals)


def tidy(x: np.ndarray, y: np.ndarray) -> XY:
  """Sorted by x, and by y where several runs, such as seeds, have the same x; exact repeats are counted once."""
  order = np.lexsort((y, x))
  x, y = np.asarray(x, np.float64)[order], np.asarray(y, np.float64)[order]
  first = np.append(True, (x[1:] != x[:-1]) | (y[1:] != y[:-1]))
  return x[first], y[first]


def _scales(x: np.ndarray) -> int:
  """The number of different x."""
  return len(np.unique(x))


def without_short(curves: dict[str, XY]) -> tuple[dict[str, XY], list[str]]:
  """The curves that can be extrapolated, and notes that name the others; all curves if none can."""
  points = {name: _scales(x) for name, (x, _) in curves.items()}
  long = {name: xy for name, xy in curves.items() if points[name] >= LEAST}
  if not long:
    return curves, []
  notes = [
    f"curve {name}: left out, because it has {count} points of different x; an extrapolation needs {LEAST}"
    for name, count in points.items()
    if name not in long
  ]
  return long, notes


@dataclasses.dataclass(frozen=True)
class _Part:
  """The points of a curve up to its largest x halved so many times."""

  name: str
  halvings: int
  below: np.ndarray  # mask of the curve's points
  x: np.ndarray
  y: np.ndarray


def fit(curves: dict[str, XY]) -> list[Curve]:
  """Fits every curve, and each again to its smaller scales, all in one program."""
  tidied = {name: tidy(*xy) for name, xy in curves.items()}
  for name, (x, _) in tidied.items():
    if _scales(x) < LEAST:
      of_name = f"curve {name}" if name else "the curve"
      raise UserError(f"{of_name}: {_scales(x)} points of different x; an extrapolation needs {LEAST}")
  parts: list[_Part] = []
  for name, (x, y) in tidied.items():
    for halvings in range(HALVINGS + 1):
      below = x <= x.max() / 2**halvings * (1 + 1e-9)
      if _scales(x[below]) >= LEAST:
        parts.append(_Part(name, halvings, below, x[below], y[below]))
  thetas = {form: _fit_form(form, parts) for form in GRIDS}
  fitted = []
  for name, (x, y) in tidied.items():
    errors = []
    for i, part in enumerate(parts):
      if part.name != name or part.halvings == 0:
        continue
      curve = Curve(name, part.x, part.y, {form: values[i] for form, values in thetas.items()}, np.nan)
      ahead = ~part.below & (x <= part.x.max() * NEAR)
      if ahead.any():
        errors.append(np.mean((np.log(y[ahead]) - curve.logs(x[ahead])[0]) ** 2) / 2 ** (part.halvings - 1))
    whole = next(i for i, part in enumerate(parts) if part.name == name and part.halvings == 0)
    backtest = float(np.sqrt(np.mean(errors))) if errors else np.nan
    fitted.append(Curve(name, x, y, {form: values[whole] for form, values in thetas.items()}, backtest))
  return fitted


def _fit_form(form: str, parts: Sequence[_Part]) -> np.ndarray:
  """Parameters of a form for each part [R, P], with weights in proportion to x that runs of the same x share."""
  law, grid = LAWS[form], GRIDS[form]
  mesh = np.meshgrid(*(grid[name] for name in law.names), indexing="ij")
  starts = law.theta({name: values.ravel() for name, values in zip(law.names, mesh, strict=True)})
  sets = []
  for part in parts:
    x = part.x / part.x.max()
    _, place, runs = np.unique(x, return_inverse=True, return_counts=True)
    sets.append(((x,), part.y / part.y.max(), x / runs[place]))
  return fitting.best(law, fitting.stack(sets), HOW, starts)[0]


def scores(curve: Curve, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Errors in logs at (x, y), as multiples of their scale."""
  center, scale = curve.logs(x)
  return np.abs(np.log(y) - center) / scale


def multiples(scored: Sequence[np.ndarray], levels: Sequence[float] = LEVELS) -> dict[float, float]:
  """The multiple of the scale of errors that covers each level of the scores of several curves, equally weighted."""
  values = np.concatenate(scored)
  weight = np.concatenate([np.full(len(each), 1 / len(each)) for each in scored])
  order = np.argsort(values)
  share = np.cumsum(weight[order]) / (weight.sum() + 1)  # the new curve counts as one whose scores are all larger
  return {q: float(values[order][min(np.searchsorted(share, q), len(values) - 1)]) for q in levels}


def calibrated(curves: dict[str, XY]) -> dict[float, float]:
  """Multiples from the last doublings of these curves, hidden; the benchmark's if there are too few curves."""
  halves = {}
  for name, xy in curves.items():
    x, y = tidy(*xy)
    below = x <= x.max() / 2
    if _scales(x[below]) >= 2 * LEAST:
      halves[name] = (x, y, below)
  if len(halves) < ENOUGH:
    return BENCHMARK
  fitted = fit({name: (x[below], y[below]) for name, (x, y, below) in halves.items()})
  hidden = [tuple(values[~below] for values in (x, y)) for x, y, below in halves.values()]
  return multiples([scores(curve, x, y) for curve, (x, y) in zip(fitted, hidden, strict=True)])


def method() -> ForecastMethod:
  """How forecasts are made, for seals."""
  return ForecastMethod(NAME, VERSION, dict.fromkeys(GRIDS, 1 / len(GRIDS)))


def rows(curves: dict[str, XY], at: Sequence[tuple[str | None, float]]) -> list[ForecastRow]:
  """Forecasts of curves at each (name, x), of all curves if the name is None, with intervals at all levels."""
  calibration = calibrated(curves)
  fitted = {curve.name: curve for curve in fit(curves)}
  made = []
  for name, x in at:
    if name is not None and name not in fitted:
      raise UserError(f"--at: no group {name!r} among the points; they have {', '.join(fitted)}")
    for group in fitted if name is None else [name]:
      prediction = fitted[group].predict(x, calibration)
      at50, at80, at90, at95 = (
        (float(low), float(high)) for low, high in (prediction.intervals[level] for level in LEVELS)
      )
      row = ForecastRow(
        group=group,
        x=x,
        predicted=float(prediction.predicted),
        interval50=at50,
        interval80=at80,
        interval90=at90,
        interval95=at95,
      )
      made.append(row)
  return made
