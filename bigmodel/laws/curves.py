"""Curves of loss against one scale, extrapolated: the mean of two forms that mind the last points most.

Picked by backtests within the training points of the 56 curves of Alabdulmohsin et al. 2022, though with the
errors on their hidden points in view (`docs/laws.md`, `experiments/extrapolation.py`): power laws with an
offset (their M2) and with a shift (M3), fitted by Huber's loss with weights in proportion to x, and averaged
in logs.

An interval is that mean times a multiple of a scale that is known before the truth: how far the forms
disagree, and how wrong the curve's own forecasts were from half, a quarter and an eighth of its scale. The
multiple is that which covered the other curves (conformal; Vovk et al. 2005): those given with it, where
there are enough of them and they are long enough to be backtested, else the benchmark's.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodel.errors import UserError
from bigmodel.laws import fitting
from bigmodel.laws.forecast import LEVELS
from bigmodel.laws.forms import LAWS

GRIDS = {
  "power_offset": {"a": (1.0,), "b": (1.0,), "c": (0.05, 0.2, 0.5, 1.0)},
  "power_shifted": {"b": (1.0,), "c": (0.1, 0.3, 0.6), "g": (1.0, 0.1, 0.01, 0.001)},
}  # of x and losses in units of the largest of each
HOW = fitting.Loss("huber", 1e-2)
LEAST = 5  # points of a curve
BACK = 3  # times that a curve's scale is halved, to see how wrong its forecasts were
NEAR = 2.2  # times the scale of its points, up to which a forecast is judged then
FLOOR = 1e-4  # of the scale of errors, in logs
ENOUGH = 20  # curves to take the multiples from, in place of the benchmark's
NAME = "mean of a power law with an offset and one with a shift"
VERSION = 1  # part of every seal; a change to how forecasts are made raises it
# `experiments/extrapolation.py` prints these: multiples of the scale that cover as much of the benchmark.
BENCHMARK = {0.5: 1.66, 0.8: 3.95, 0.9: 6.03, 0.95: 10.66}


@dataclasses.dataclass(frozen=True)
class Curve:
  """One curve's fits: parameters of each form for its points in units of `x_max` and `y_max`."""

  name: str
  x: np.ndarray
  y: np.ndarray
  thetas: dict[str, np.ndarray]
  backtest: float  # rms error in logs of its own forecasts from smaller scales, per doubling; NaN: too short

  def logs(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the forms in logs, and the scale of its error."""
    x = np.asarray(x, np.float64)
    values = [
      np.log(self.y.max() * fitting.predict(LAWS[name], theta, (x / self.x.max(),)))
      for name, theta in self.thetas.items()
    ]
    apart = np.ptp(values, axis=0) / 2
    doublings = np.maximum(np.log2(x / self.x.max()), 0.15)
    own = 0.5 * self.backtest * np.sqrt(doublings) if np.isfinite(self.backtest) else 0.0
    return np.mean(values, axis=0), np.sqrt(apart**2 + own**2 + FLOOR**2)

  def predict(self, x: Any, multiples: dict[float, float]) -> dict[str, Any]:
    """Losses at x with an interval for each level."""
    center, scale = self.logs(x)
    intervals = {q: (np.exp(center - m * scale), np.exp(center + m * scale)) for q, m in multiples.items()}
    return {"predicted": np.exp(center), "intervals": intervals}


def tidy(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Sorted by x; of points with one x the last."""
  order = np.argsort(x, kind="stable")
  x, y = np.asarray(x, np.float64)[order], np.asarray(y, np.float64)[order]
  last = np.append(x[1:] != x[:-1], True)
  return x[last], y[last]


def fit(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[Curve]:
  """Fits every curve, and each again to its smaller scales, in one go."""
  tidied = {name: tidy(*xy) for name, xy in curves.items()}
  for name, (x, _) in tidied.items():
    if len(x) < LEAST:
      raise UserError(f"curve {name}: {len(x)} points of different x; an extrapolation needs {LEAST}")
  parts = []  # (curve, times halved, its points)
  for name, (x, _) in tidied.items():
    for times in range(BACK + 1):
      below = x <= x.max() / 2**times * (1 + 1e-9)
      if below.sum() >= LEAST:
        parts.append((name, times, below))
  units = [(x[below].max(), y[below].max()) for name, _, below in parts for x, y in [tidied[name]]]
  thetas: dict[str, np.ndarray] = {}
  for form, grid in GRIDS.items():
    law = LAWS[form]
    mesh = np.meshgrid(*(grid[n] for n in law.names), indexing="ij")
    starts = law.theta({n: values.ravel() for n, values in zip(law.names, mesh, strict=True)})
    sets = []
    for (name, _, below), (x_max, y_max) in zip(parts, units, strict=True):
      x, y = tidied[name]
      sets.append(((x[below] / x_max,), y[below] / y_max, x[below] / x_max))
    thetas[form] = fitting.best(law, fitting.stack(sets), HOW, starts)[0]
  found = []
  for name, (x, y) in tidied.items():
    errors = []
    for i, (own, times, below) in enumerate(parts):
      if own != name or times == 0:
        continue
      part = Curve(name, x[below], y[below], {form: values[i] for form, values in thetas.items()}, np.nan)
      ahead = ~below & (x <= x[below].max() * NEAR)
      if ahead.any():
        errors.append(np.mean((np.log(y[ahead]) - part.logs(x[ahead])[0]) ** 2) / 2 ** (times - 1))
    place = next(i for i, (own, times, _) in enumerate(parts) if own == name and times == 0)
    mine = {form: values[place] for form, values in thetas.items()}
    found.append(Curve(name, x, y, mine, float(np.sqrt(np.mean(errors))) if errors else np.nan))
  return found


def scores(curve: Curve, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """How many scales the truth is away."""
  center, scale = curve.logs(x)
  return np.abs(np.log(y) - center) / scale


def multiples(scored: Sequence[np.ndarray], levels: Sequence[float] = LEVELS) -> dict[float, float]:
  """What covers as much of the scores of several curves, each of which counts as one."""
  values = np.concatenate(scored)
  weight = np.concatenate([np.full(len(own), 1 / len(own)) for own in scored])
  order = np.argsort(values)
  share = np.cumsum(weight[order]) / (weight.sum() + 1)  # the curve to come counts as one that lies beyond
  return {q: float(values[order][min(np.searchsorted(share, q), len(values) - 1)]) for q in levels}


def calibrated(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[float, float]:
  """Multiples from these curves' own last doublings, hidden; the benchmark's where they are few."""
  halves = {}
  for name, xy in curves.items():
    x, y = tidy(*xy)
    below = x <= x.max() / 2
    if below.sum() >= 2 * LEAST:
      halves[name] = (x, y, below)
  if len(halves) < ENOUGH:
    return BENCHMARK
  fitted = fit({name: (x[below], y[below]) for name, (x, y, below) in halves.items()})
  return multiples([scores(c, *(v[~halves[c.name][2]] for v in halves[c.name][:2])) for c in fitted])


def facts() -> dict[str, Any]:
  """What a seal says of how a forecast was made."""
  return {"name": NAME, "version": VERSION, "weights": dict.fromkeys(GRIDS, 1 / len(GRIDS))}


def rows(
  curves: dict[str, tuple[np.ndarray, np.ndarray]], asked: Sequence[tuple[str | None, float]]
) -> list[dict[str, Any]]:
  """Forecasts of curves at each (name, x), of all curves where the name is None, with intervals at all levels."""
  calibration = calibrated(curves)
  fitted = {curve.name: curve for curve in fit(curves)}
  said = []
  for name, x in asked:
    if name is not None and name not in fitted:
      raise UserError(f"--at: no group {name!r} among the points; they have {', '.join(fitted)}")
    for group in fitted if name is None else [name]:
      prediction = fitted[group].predict(x, calibration)
      row: dict[str, Any] = {"group": group, "x": x, "predicted": float(prediction["predicted"])}
      for level, pair in prediction["intervals"].items():
        row[f"interval{level * 100:.0f}"] = [float(value) for value in pair]
      said.append(row)
  return said
