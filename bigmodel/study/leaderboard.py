"""The leaderboard of a sweep: means over seeds, and which differences between them are significant."""

import dataclasses
import math
import sys
from collections.abc import Sequence

import msgspec
import numpy as np
from scipy import special

from bigmodel.declarations import Value
from bigmodel.record import Record, StoppedBy
from bigmodel.study import comparisons
from bigmodel.study.plan import PlannedRun

SEEDS = ("seed", "data.seed")
# A parabola is fitted to five to seven rates: it has three coefficients, and the remaining degrees of freedom test
# whether it fits. Further rates are too far from the best one to be informative.
FEWEST, MOST = 5, 7
ACCEPTED = 0.8  # share of cases in which losses on a true parabola pass the test of fit


class Cell(msgspec.Struct, frozen=True):
  """The runs of a sweep that differ only in their seeds."""

  overrides: dict[str, Value]
  runs: int
  finished: int
  loss: float | None  # the mean over runs that finished
  std: float | None
  params_total: int
  tokens: int
  seconds: float
  diverged: int
  stopped: int
  stopped_at: int | None
  loss_at_stop: float | None
  run_ids: tuple[str, ...]
  may_be_best: bool | None = None  # None: not compared
  worse: bool | None = None
  # The forecast for which early stopping stopped the setting, and the loss above which it lies at the stated level.
  forecast: float | None = None
  forecast_low: float | None = None

  @property
  def is_complete(self) -> bool:
    """Whether all runs finished."""
    return self.loss is not None and not self.diverged and not self.stopped

  @property
  def mean_loss(self) -> float:
    """The mean loss of a complete cell."""
    assert self.loss is not None
    return self.loss

  @property
  def rank(self) -> tuple[int, int, float]:
    if self.loss is not None:
      return (0 if self.is_complete else 1), 0, self.loss
    if self.forecast is not None:
      return 2, -sys.maxsize, self.forecast
    return 2, -(self.stopped_at or 0), math.inf if self.loss_at_stop is None else self.loss_at_stop


class BestRate(msgspec.Struct, frozen=True):
  """The best learning rate at one setting of the other axes; see `learning_rates`."""

  others: dict[str, Value]
  best_tried: float
  loss: float
  edge: bool
  sensitivity: float
  best: float | None = None
  interval90: tuple[float, float] | None = None
  flat: bool = False


class Board(msgspec.Struct, frozen=True):
  """The cells of a sweep, best first, and which differences between them are significant; see `board`."""

  axes: tuple[str, ...]
  cells: tuple[Cell, ...]
  noise: float | None
  resolution: float | None
  candidates: int | None
  alike: int | None
  learning_rates: tuple[BestRate, ...]


def board(planned: Sequence[PlannedRun], records: Sequence[Record]) -> Board | None:
  """Ranks the cells of a sweep, best first, and compares them; returns None if no planned run has a record.

  A complete cell, whose runs all finished, ranks above every cell with a run that diverged or was stopped at a rung,
  because the runs left in such a cell survived partly by luck. A cell whose runs were all stopped ranks by the step
  they reached, then by the held-out loss at that step; by the forecast of its last loss, if that stopped it.

  Only complete cells are compared (see `comparisons`). `may_be_best` and `worse` are None for the others, and for all
  cells if no setting has two seeds. `candidates` is the number of cells that may be the best, and `alike` of those not
  worse than any other. Differences below `resolution` between two settings of common noise are not significant.
  """
  by_id = {run.run_id: run for run in records}
  settings: dict[str, dict[str, Value]] = {}
  members: dict[str, list[Record]] = {}
  for run in planned:
    if run.run_id in by_id:
      shared = {name: value for name, value in run.overrides.items() if name not in SEEDS}
      key = repr(sorted(shared.items()))
      settings.setdefault(key, shared)
      members.setdefault(key, []).append(by_id[run.run_id])
  if not members:
    return None
  cells = sorted((_cell(settings[key], members[key]) for key in members), key=lambda cell: cell.rank)
  complete = [cell for cell in cells if cell.is_complete]
  seed_noise = _noise(complete)
  axes = _axes(cells)
  if seed_noise is None:
    return Board(axes, tuple(cells), None, None, None, None, learning_rates(cells, axes, None))
  seeds = np.array([cell.finished for cell in complete])
  verdict = comparisons.compare(np.array([cell.mean_loss for cell in complete]), seeds, seed_noise)
  judged = [
    msgspec.structs.replace(cell, may_be_best=bool(may_be_best), worse=bool(worse))
    for cell, may_be_best, worse in zip(complete, verdict.may_be_best, verdict.worse, strict=True)
  ]
  cells = judged + [cell for cell in cells if not cell.is_complete]  # complete cells rank first
  sd = math.sqrt(seed_noise.common)
  critical = comparisons.range_critical(len(complete), int(seed_noise.common_freedom))
  return Board(
    axes=axes,
    cells=tuple(cells),
    noise=sd,
    resolution=critical * sd / math.sqrt(seeds.min()),
    candidates=int(verdict.may_be_best.sum()),
    alike=int((~verdict.worse).sum()),
    learning_rates=learning_rates(cells, axes, seed_noise),
  )


def _noise(cells: Sequence[Cell]) -> comparisons.Noise | None:
  variance = np.array([cell.std or 0.0 for cell in cells]) ** 2
  return comparisons.noise(variance, np.array([cell.finished for cell in cells])) if cells else None


def _axes(cells: Sequence[Cell]) -> tuple[str, ...]:
  """Returns the fields in which cells differ, without optimizer settings that are determined by another axis."""
  names = list(dict.fromkeys(name for cell in cells for name in cell.overrides))
  values = {name: [repr(cell.overrides.get(name)) for cell in cells] for name in names}
  varied = [name for name in names if len(set(values[name])) > 1]

  def count(*fields: str) -> int:
    """Returns the number of different combinations of values of these fields."""
    return len(set(zip(*(values[name] for name in fields), strict=True)))

  def follows_from(name: str, other: str) -> bool:
    return count(other) < len(cells) and count(other, name) == count(other)

  def follows(name: str) -> bool:
    others = [other for other in varied if not other.startswith("optim.")]
    is_setting = name.startswith("optim.") and name != "optim.lr"
    return is_setting and any(follows_from(name, other) for other in others)

  return tuple(name for name in varied if not follows(name))


def _cell(overrides: dict[str, Value], records: Sequence[Record]) -> Cell:
  losses = [run.loss for run in records if run.finished]
  stopped = [run for run in records if run.status == "stopped"]
  last = max((one.steps for one in stopped), default=None)
  stopped_by = next((one.stopped_by for one in stopped if isinstance(one.stopped_by, StoppedBy)), None)
  losses_there = [one.loss_eval for one in stopped if one.steps == last and one.loss_eval is not None]
  return Cell(
    overrides=overrides,
    runs=len(records),
    finished=len(losses),
    loss=float(np.mean(losses)) if losses else None,
    std=float(np.std(losses, ddof=1)) if len(losses) > 1 else None,
    params_total=records[0].params_total,
    tokens=max(one.tokens for one in records),
    seconds=sum(one.seconds for one in records),
    diverged=sum(one.status == "diverged" for one in records),
    stopped=len(stopped),
    stopped_at=last,
    loss_at_stop=float(np.mean(losses_there)) if losses_there else None,
    run_ids=tuple(one.run_id for one in records),
    forecast=stopped_by.predicted if stopped_by else None,
    forecast_low=stopped_by.low if stopped_by else None,
  )


def learning_rates(
  cells: Sequence[Cell], axes: Sequence[str], seed_noise: comparisons.Noise | None
) -> tuple[BestRate, ...]:
  """Returns, for every setting of the other axes, the best learning rate with its interval, and the sensitivity.

  With repeated seeds, multiple comparisons (`comparisons.compare`) leave some rates that may be the best. If the loss
  falls up to the optimum and rises beyond it, the optimum lies between the neighbours of those rates. This is
  `interval90`, for any curve. If three or more rates may be the best, the optimum is `flat` and has no `best`: it lies
  somewhere between two tried rates, or beyond them if the smallest or largest rate may be the best (`edge`).

  Otherwise the optimum is sharp, and `best` is the minimum of a parabola in the log of the rate. If that parabola fits
  the rates around the best one, `interval90` is the 90% interval of its minimum (see `_parabola`). Such an interval
  contains the optimum in about 90% of sweeps if the curve is a parabola, and in fewer if it is skewed by less than the
  noise reveals (in simulations, 81% of all sharp intervals). An interval between rates contains it in nearly all
  sweeps. Without repeated seeds there is no interval.

  The sensitivity (Wortsman et al. 2023) is the mean over all rates of the loss minus the lowest loss. A rate with a run
  that diverged counts as the worst of the others.
  """
  if "optim.lr" not in axes:
    return ()
  complete = [cell for cell in cells if cell.is_complete]
  settings: dict[str, dict[str, Value]] = {}
  groups: dict[str, list[Cell]] = {}
  for cell in cells:
    if "optim.lr" not in cell.overrides:
      continue  # the learning rate is not varied here
    others = {name: value for name, value in cell.overrides.items() if name != "optim.lr" and name in axes}
    key = repr(sorted(others.items()))
    settings.setdefault(key, others)
    groups.setdefault(key, []).append(cell)
  found = []
  for key, members in groups.items():
    tried = sorted((cell for cell in members if cell.is_complete), key=_rate)
    if len(tried) >= 3:
      noise = seed_noise.of([complete.index(cell) for cell in tried]) if seed_noise is not None else None
      found.append(_best_of(settings[key], members, tried, noise))
  return tuple(found)


def _rate(cell: Cell) -> float:
  rate = cell.overrides["optim.lr"]
  assert isinstance(rate, float | int)
  return rate


def _best_of(
  others: dict[str, Value], members: Sequence[Cell], tried: Sequence[Cell], noise: comparisons.Noise | None
) -> BestRate:
  """Returns the best of the rates of the complete cells `tried`, which are sorted by rate."""
  rates, losses = np.array([_rate(cell) for cell in tried]), np.array([cell.mean_loss for cell in tried])
  least = int(np.argmin(losses))
  diverged = sum(cell.diverged > 0 for cell in members)
  excess = np.append(losses, [losses.max()] * diverged) - losses.min()
  row = BestRate(
    others=others,
    best_tried=float(rates[least]),
    loss=float(losses[least]),
    edge=least in (0, len(rates) - 1),
    sensitivity=float(excess.mean()),
  )
  if noise is not None:
    return _with_interval(row, rates, losses, np.array([cell.finished for cell in tried]), noise)
  return row if row.edge else msgspec.structs.replace(row, best=_lowest(np.log(rates), losses))


def _with_interval(
  row: BestRate, rates: np.ndarray, losses: np.ndarray, seeds: np.ndarray, noise: comparisons.Noise
) -> BestRate:
  """Adds `best`, `interval90` and `flat` to a row whose scan has at least three rates, in increasing order."""
  candidates = np.flatnonzero(comparisons.compare(losses, seeds, noise).may_be_best)
  last = len(rates) - 1
  first, end = max(int(candidates[0]) - 1, 0), min(int(candidates[-1]) + 1, last)
  if candidates[0] == candidates[-1] and candidates[0] in (0, last):
    return row  # the loss falls towards an edge, so the optimum may lie beyond it
  between = float(rates[first]), float(rates[end])
  edge = bool(candidates[0] == 0 or candidates[-1] == last)
  if edge or len(candidates) > 2:
    return msgspec.structs.replace(row, flat=True, edge=edge, interval90=between)
  low, high = first, end
  while high - low + 1 < min(MOST, len(rates)):  # extend to the side with the lower loss
    below = losses[low - 1] if low else math.inf
    above = losses[high + 1] if high < last else math.inf
    low, high = (low - 1, high) if below < above else (low, high + 1)
  x, near = np.log(rates), slice(low, high + 1)
  squared = noise.variance[near] / seeds[near]
  minimum = _parabola(x[near], losses[near], squared, float(noise.freedom[near].min()))
  if minimum is not None and x[first] < minimum.low and minimum.high < x[end]:
    interval = math.exp(minimum.low), math.exp(minimum.high)
    return msgspec.structs.replace(row, best=math.exp(minimum.best), interval90=interval)
  return msgspec.structs.replace(row, best=_lowest(x, losses), interval90=between)


def _lowest(x: np.ndarray, losses: np.ndarray) -> float | None:
  """Returns the rate at the minimum of the parabola through the lowest loss and its neighbours; `x` are log rates."""
  least = int(np.argmin(losses))
  bend, slope, _ = np.polyfit(x[least - 1 : least + 2], losses[least - 1 : least + 2], 2)
  return float(np.exp(-slope / (2 * bend))) if bend > 0 else None


@dataclasses.dataclass(frozen=True)
class Minimum:
  """The minimum of a parabola, with its 90% interval."""

  best: float
  low: float
  high: float


def _parabola(x: np.ndarray, y: np.ndarray, squared: np.ndarray, freedom: float) -> Minimum | None:
  """Fits a parabola to means `y` whose squared standard errors are `squared`; returns its minimum with its interval.

  The interval contains the points at which the slope is not significantly different from 0 (Fieller 1954), which is
  valid if the losses lie on a parabola. A curve that is steeper on one side can move the minimum by the width of this
  interval before the noise reveals it, so the interval is extended to the minimum of a cubic.

  Returns None with fewer than `FEWEST` points, with which the fit cannot be tested; if the points deviate from the
  parabola by more than noise does in a share `ACCEPTED` of cases (an F test against the noise between seeds, with
  `freedom` degrees of freedom); and if the interval is unbounded.
  """
  residual_freedom = len(x) - 3
  if len(x) < FEWEST:
    return None
  center, scale = float(x.mean()), float(np.ptp(x)) / 2
  root = 1 / np.sqrt(np.maximum(squared, 1e-300))
  scaled, target = np.vander((x - center) / scale, 3, increasing=True) * root[:, None], y * root
  coefficients = np.linalg.lstsq(scaled, target, rcond=None)[0]
  lack_of_fit = float(np.sum((target - scaled @ coefficients) ** 2)) / residual_freedom
  if lack_of_fit > special.fdtri(residual_freedom, freedom, ACCEPTED):
    return None
  covariance = special.stdtrit(freedom, 0.95) ** 2 * np.linalg.pinv(scaled.T @ scaled)
  _, slope, bend = coefficients.tolist()
  # The slope c1 + 2 c2 t is significant where (c1 + 2 c2 t)^2 exceeds its variance times the squared quantile.
  a = 4 * (bend**2 - covariance[2, 2])
  b = 4 * (slope * bend - covariance[1, 2])
  c = slope**2 - covariance[1, 1]
  if bend <= 0 or a <= 0:
    return None
  half = math.sqrt(max(b**2 - 4 * a * c, 0.0)) / (2 * a)
  low, high = (center + scale * (-b / (2 * a) + side * half) for side in (-1, 1))
  skewed = _minimum_of_cubic((x - center) / scale, y, root)
  if skewed is None:
    return None
  low, high = min(low, center + scale * skewed), max(high, center + scale * skewed)
  return Minimum(center - scale * slope / (2 * bend), low, high)


def _minimum_of_cubic(t: np.ndarray, y: np.ndarray, root: np.ndarray) -> float | None:
  """Returns the minimum of the cubic fitted with weights `root` squared, or None if it is not between the points."""
  scaled = np.vander(t, 4, increasing=True) * root[:, None]
  _, slope, bend, third = np.linalg.lstsq(scaled, y * root, rcond=None)[0].tolist()
  # The root of slope + 2 bend t + 3 third t^2 = 0 at which the curve is convex, in a form without cancellation.
  inside = bend**2 - 3 * third * slope
  if inside < 0 or bend + math.sqrt(inside) <= 0:
    return None
  lowest = -slope / (bend + math.sqrt(inside))
  return lowest if t[0] <= lowest <= t[-1] else None
