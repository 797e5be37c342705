"""`--law=auto`: tries every law that the columns allow, and combines them by their errors in backtests.

A backtest hides points and fits the rest. Where the places to forecast lie beyond the points in some columns, the
largest values of those columns are hidden, as far beyond the rest as the places are; without places, those of each
column in turn. Where nothing lies beyond the points (mixtures), a fifth of the points is hidden at a time.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from bigmodel.errors import UserError
from bigmodel.laws.candidates import Candidate, Columns, Data, Fitted, OfLaw, candidates
from bigmodel.laws.law import Law

ORIGINS = 3  # backtests in each column
LEAST_LEVELS = 4  # values of a column in which its largest can be hidden
BINS = 12  # of a column with more values
APART = 1.15  # values within this factor are one
LEAST_SHARE = 0.5  # of the points, that is left to fit
FOLDS = 5
POWER = 4.0  # weights are mean square errors to the minus this; docs/laws.md compares others
LEAST_WEIGHT = 0.01  # smaller ones are left out
BEYOND = 0.04  # error in ln loss for each unit of ln x beyond the points in a column of which no backtest hid values


@dataclasses.dataclass(frozen=True)
class Split:
  """A backtest in one group: the points that are fitted and those that are forecast."""

  group: str
  column: str  # whose largest values are hidden; "" for a fold
  fit: np.ndarray
  test: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tried:
  """A candidate, its root mean square error in each kind of backtest, and its weight in the combination."""

  name: str
  error: float  # over all backtests
  errors: Mapping[str, float]  # by the column whose largest values were hidden
  weight: float
  fits: Mapping[str, Fitted]  # by group; empty without weight


@dataclasses.dataclass(frozen=True)
class Automatic:
  """The combination of candidates, best first, for every group. Errors are in ln loss, or in the loss if `plain`."""

  tried: tuple[Tried, ...]
  error: float  # of the combination in the backtests
  hidden: Mapping[str, float]  # by column, how far its hidden values lay beyond the fitted ones: a mean, in ln
  points: Mapping[str, Data]  # by group
  scales: tuple[str, ...]
  left_out: tuple[str, ...]  # candidates that do not fit all backtests
  splits: int
  plain: bool

  def predict(self, columns: Columns, group: str = "") -> np.ndarray:
    """Losses at the columns."""
    values = self._center(columns, group)
    return values if self.plain else np.exp(values)

  def deviation(self, columns: Columns, group: str = "") -> np.ndarray:
    """Standard deviations of forecasts at the columns, in ln loss, or in the loss if `plain`.

    The variance of errors in backtests grows in proportion to the distance where a place lies further beyond the points
    than hidden values did. That between the candidates is added, and `BEYOND` where no backtest shows what happens.
    """
    center, data = self._center(columns, group), self.points[group]
    between = sum(each.weight * (each.fits[group].predict(columns) - center) ** 2 for each in self.tried if each.weight)
    times, untested = np.ones_like(center), np.zeros_like(center)
    for name in self.scales:
      above, below = _outside(columns[name], data.columns[name])
      if name in self.hidden:
        times, above = np.maximum(times, above / self.hidden[name]), np.zeros_like(above)
      untested += BEYOND * (above + below)
    unit = 1.0 if data.shift is None else center + data.shift
    return np.sqrt(self.error**2 * times + between + (unit * untested) ** 2)

  def untested(self, columns: Columns, group: str = "") -> list[str]:
    """The scales in which places lie above the points, although no backtest hid their largest values."""
    points = self.points[group].columns
    return [
      name
      for name in self.scales
      if name not in self.hidden and (_outside(columns[name], points[name])[0] > 1e-9).any()
    ]

  def _center(self, columns: Columns, group: str) -> np.ndarray:
    return np.asarray(sum(each.weight * each.fits[group].predict(columns) for each in self.tried if each.weight))


def fit(
  groups: Mapping[str, Data],
  scales: Sequence[str],
  shares: Sequence[str] = (),
  at: Mapping[str, Columns] | None = None,
  derived: Sequence[str] = (),
  laws: Sequence[Law] = (),
) -> Automatic:
  """Tries all candidates for these columns, or these laws; `at` are the places to forecast by group, if they are known.

  Raises `UserError` for points that cannot identify anything.
  """
  for name, data in groups.items():
    check(name, data, (*scales, *shares))
  splits = [split for name, data in groups.items() for split in _splits(name, data, scales, (at or {}).get(name))]
  tried, left_out = [], []
  least = min([*(int(split.fit.sum()) for split in splits), *map(len, groups.values())])
  sets = [*groups.values(), *(groups[split.group].take(split.fit) for split in splits)]
  for candidate in [OfLaw(law) for law in laws] or candidates(scales, shares, derived):
    found = _backtest(candidate, sets, splits, groups) if candidate.parameters < least else None
    if found is None or not _finite_at(found[0], groups, at):
      left_out.append(candidate.name)
    else:
      tried.append((candidate, *found))
  if not tried:
    raise UserError(f"--law=auto: no law can be fitted to {least} points; add points")
  return _combine(tried, left_out, splits, groups, tuple(scales))


def check(group: str, data: Data, columns: Sequence[str]) -> None:
  """Raises `UserError` for points of a group that are too few, or that do not differ in a column."""
  where = f"--law=auto: group {group}: " if group else "--law=auto: "
  needed = len(columns) + 3
  if len(data) < needed:
    raise UserError(f"{where}{len(data)} points; {len(columns)} columns need at least {needed}")
  if np.ptp(data.loss) == 0:
    raise UserError(f"{where}the loss is {data.loss[0]:g} in all {len(data)} points, so no column has an effect")
  for name in columns:
    if len(np.unique(data.columns[name])) == 1:
      raise UserError(
        f"{where}{name} is {data.columns[name][0]:g} in all {len(data)} points, so its effect cannot be identified;"
        f" leave {name} out, or add points with other values of it"
      )


def _splits(group: str, data: Data, scales: Sequence[str], at: Columns | None) -> list[Split]:
  beyond = {name: float(np.max(at[name]) / data.columns[name].max()) if at else 1.0 for name in scales}
  directions = [name for name in scales if beyond[name] > 1] or ([] if at else list(scales))
  splits = [split for name in directions for split in _hidden_largest(group, data, name, beyond[name])]
  return splits or _folds(group, data)


def _hidden_largest(group: str, data: Data, name: str, reach: float) -> list[Split]:
  """Backtests at the `ORIGINS` largest levels of a column that leave enough points below.

  Each hides one level or, if that is more, what lies within `reach` times the largest value that is fitted.
  """
  x, levels = data.columns[name], _levels(data.columns[name])
  splits = []
  for place in range(len(levels) - 1, max(len(levels) - 1 - ORIGINS, LEAST_LEVELS - 2), -1):
    below = x < levels[place] / APART**0.5
    above = levels[place + 1] / APART**0.5 if place + 1 < len(levels) else np.inf
    if below.mean() >= LEAST_SHARE:
      splits.append(Split(group, name, below, ~below & (x < max(above, reach * x[below].max() * APART**0.5))))
  return splits


def _levels(x: np.ndarray) -> np.ndarray:
  """The values of a column, those that are nearly alike as one; quantiles of a column with many."""
  values = np.unique(x)
  levels = values[np.concatenate([[True], np.diff(np.log(values)) > np.log(APART)])]
  return levels if len(levels) <= 2 * BINS else np.quantile(values, np.arange(BINS) / BINS)


def _folds(group: str, data: Data) -> list[Split]:
  place = np.random.default_rng(0).permutation(len(data)) % FOLDS
  return [Split(group, "", place != fold, place == fold) for fold in range(FOLDS)]


Found = tuple[dict[str, Fitted], list[np.ndarray]]  # fits by group, and errors at the hidden points of each split


def _backtest(
  candidate: Candidate, sets: Sequence[Data], splits: Sequence[Split], groups: Mapping[str, Data]
) -> Found | None:
  """None where a data set has no fit, or a forecast is not finite."""
  fits = candidate.fit(sets)
  if any(each is None for each in fits):
    return None
  errors = []
  for split, fitted in zip(splits, fits[len(groups) :], strict=True):
    hidden = groups[split.group].take(split.test)
    assert fitted is not None
    errors.append(fitted.predict(hidden.columns) - hidden.target)
  if not all(np.isfinite(error).all() for error in errors):
    return None
  return {name: each for name, each in zip(groups, fits, strict=False) if each is not None}, errors


def _finite_at(fits: Mapping[str, Fitted], groups: Mapping[str, Data], at: Mapping[str, Columns] | None) -> bool:
  places = at or {name: data.columns for name, data in groups.items()}
  return all(np.isfinite(fits[name].predict(columns)).all() for name, columns in places.items())


def _combine(
  tried: Sequence[tuple[Candidate, dict[str, Fitted], list[np.ndarray]]],
  left_out: Sequence[str],
  splits: Sequence[Split],
  groups: Mapping[str, Data],
  scales: tuple[str, ...],
) -> Automatic:
  squares = np.array([[np.mean(error**2) for error in errors] for _, _, errors in tried])  # [candidates, splits]
  columns = np.array([split.column for split in splits])
  kinds = {name: squares[:, columns == name].mean(axis=1) for name in dict.fromkeys(columns.tolist())}
  means = np.mean(list(kinds.values()), axis=0)  # each column counts as one, however many splits it has
  weights = weigh(means)
  order = np.argsort(means, kind="stable")
  mixed = [sum(w * errors[i] for w, (_, _, errors) in zip(weights, tried, strict=True)) for i in range(len(splits))]
  mixed_squares = np.array([np.mean(np.square(error)) for error in mixed])
  error = np.mean([mixed_squares[columns == name].mean() for name in kinds])
  ranked = [
    Tried(
      tried[i][0].name,
      float(np.sqrt(means[i])),
      {name: float(np.sqrt(kind[i])) for name, kind in kinds.items()},
      float(weights[i]),
      tried[i][1] if weights[i] else {},
    )
    for i in order
  ]
  plain = next(iter(groups.values())).shift is not None
  hidden = {name: float(np.mean([_distance(s, groups) for s in splits if s.column == name])) for name in kinds if name}
  return Automatic(tuple(ranked), float(np.sqrt(error)), hidden, groups, scales, tuple(left_out), len(splits), plain)


def _distance(split: Split, groups: Mapping[str, Data]) -> float:
  """How far the hidden values of the column lie beyond the fitted ones, in ln: the root mean square."""
  x = groups[split.group].columns[split.column]
  return max(float(np.sqrt(np.mean(np.log(x[split.test] / x[split.fit].max()) ** 2))), float(np.log(APART)))


def _outside(values: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """How far values lie above the largest of the points and below the smallest, in ln; 0 where they do not."""
  return np.maximum(np.log(values / points.max()), 0.0), np.maximum(np.log(points.min() / values), 0.0)


def weigh(mean_squares: np.ndarray) -> np.ndarray:
  """Weights of candidates by their mean square errors; small ones are 0."""
  weights = np.maximum(mean_squares, 1e-30) ** -POWER
  weights = weights / weights.sum()
  weights = np.where(weights < LEAST_WEIGHT, 0.0, weights)
  return weights / weights.sum()
