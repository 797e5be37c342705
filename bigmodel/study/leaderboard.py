"""The runs of a sweep by what they came to: means over seeds, and which differences between them are significant."""

import dataclasses
import math
from collections.abc import Sequence

import msgspec
import numpy as np
from scipy import special

from bigmodel.declarations import Value
from bigmodel.record import Record
from bigmodel.study import comparisons
from bigmodel.study.plan import PlannedRun

SEEDS = ("seed", "data.seed")
# A parabola is fitted to between five and seven rates: it has three coefficients, and the points that are left over
# show whether it fits. More rates lie too far from the best one to say anything about it.
FEWEST, MOST = 5, 7
ACCEPTED = 0.8  # how often losses that do lie on a parabola pass the test of whether they do


class Cell(msgspec.Struct, frozen=True):
  """The runs of a sweep that differ in their seeds only."""

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
  """Cells of runs that differ in their seeds only, best first, and what the noise between seeds leaves open.

  A cell of which some runs diverged, or were stopped at a rung where others did better, ranks below all cells of which
  all runs finished, whatever the mean of the runs that are left: those survived because they had luck. Only cells whose
  runs all finished are compared (see `comparisons`): `may_be_best` and `worse` are None for the others, and for all
  cells where no setting has two seeds. `candidates` cells may be the best, `alike` are not worse than any other, and
  between two settings of the usual noise differences below `resolution` are not significant. Where all runs of a cell
  were stopped, it ranks by how far they came, and then by the held-out loss there.
  """
  by_id = {one.run_id: one for one in records}
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
  """The fields in which cells differ, without settings of the optimizer that follow from another axis."""
  names = list(dict.fromkeys(name for cell in cells for name in cell.overrides))
  values = {name: [repr(cell.overrides.get(name)) for cell in cells] for name in names}
  varied = [name for name in names if len(set(values[name])) > 1]

  def count(*given: str) -> int:
    """The number of different combinations of values of these fields."""
    return len(set(zip(*(values[name] for name in given), strict=True)))

  def follows_from(name: str, other: str) -> bool:
    return count(other) < len(cells) and count(other, name) == count(other)

  def follows(name: str) -> bool:
    others = [other for other in varied if not other.startswith("optim.")]
    is_setting = name.startswith("optim.") and name != "optim.lr"
    return is_setting and any(follows_from(name, other) for other in others)

  return tuple(name for name in varied if not follows(name))


def _cell(overrides: dict[str, Value], records: Sequence[Record]) -> Cell:
  losses = [one.loss for one in records if one.finished]
  stopped = [one for one in records if one.status == "stopped"]
  last = max((one.steps for one in stopped), default=None)
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
  )


def learning_rates(
  cells: Sequence[Cell], axes: Sequence[str], seed_noise: comparisons.Noise | None
) -> tuple[BestRate, ...]:
  """Of every setting of the other axes: the best learning rate with its interval, and how much a wrong one costs.

  Where the noise between seeds is known, multiple comparisons (`comparisons.compare`) leave some rates that may be
  the best, and the optimum lies between the rates next to those if the loss falls up to it and rises beyond it. That
  is `interval90`, whatever the curve. The optimum is `flat`, with no `best`, where three or more rates may be the best:
  it is anywhere between two of the rates that were tried, or beyond them where the least or the largest rate may be
  the best (`edge`). Where it is sharp, `best` is the minimum of a parabola in the log of the rate. If that parabola
  fits the rates around the best one, `interval90` is the 90% interval of its minimum (see `_parabola`). Such an
  interval has the optimum in about 90% of sweeps if the curve is a parabola, and in fewer if it is skewed by less than
  noise shows (in simulations, 81% of all sharp intervals); one between rates has it in nearly all. Without repeated
  seeds there is no interval.

  The sensitivity (Wortsman et al. 2023) is the mean over all rates of the loss less the least; a rate with a run that
  diverged counts as the worst of the others.
  """
  if "optim.lr" not in axes:
    return ()
  complete = [cell for cell in cells if cell.is_complete]
  settings: dict[str, dict[str, Value]] = {}
  groups: dict[str, list[Cell]] = {}
  for cell in cells:
    if "optim.lr" not in cell.overrides:
      continue  # it has the rate of the study's config
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
  """The best of the rates `tried`, those of the complete cells among `members`, in rising order."""
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
  """The row with `best`, `interval90` and `flat` of a scan over at least three rates, in rising order."""
  candidates = np.flatnonzero(comparisons.compare(losses, seeds, noise).may_be_best)
  last = len(rates) - 1
  first, end = max(int(candidates[0]) - 1, 0), min(int(candidates[-1]) + 1, last)
  if candidates[0] == candidates[-1] and candidates[0] in (0, last):
    return row  # the loss falls up to an edge: the optimum may lie beyond it
  between = float(rates[first]), float(rates[end])
  edge = bool(candidates[0] == 0 or candidates[-1] == last)
  if edge or len(candidates) > 2:
    return msgspec.structs.replace(row, flat=True, edge=edge, interval90=between)
  low, high = first, end
  while high - low + 1 < min(MOST, len(rates)):  # the lower side is nearer to the minimum
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
  """The rate at the minimum of the parabola through the least loss and those next to it; `x` are logs of rates."""
  least = int(np.argmin(losses))
  bend, slope, _ = np.polyfit(x[least - 1 : least + 2], losses[least - 1 : least + 2], 2)
  return float(np.exp(-slope / (2 * bend))) if bend > 0 else None


@dataclasses.dataclass(frozen=True)
class Minimum:
  """Where a parabola is lowest, with its 90% interval."""

  best: float
  low: float
  high: float


def _parabola(x: np.ndarray, y: np.ndarray, squared: np.ndarray, freedom: float) -> Minimum | None:
  """The minimum of the parabola through points whose means have the standard errors squared `squared`.

  The interval has the places at which the slope is not significantly different from 0 (Fieller 1954). That holds for
  losses that do lie on a parabola. A curve that rises faster on one side moves the minimum by as much as the interval
  is wide before noise lets anybody see it, so the interval reaches to the minimum of a cubic, too. None where fewer
  than `FEWEST` points leave too little to test, where the points are farther from the parabola than noise alone leaves
  in a share `ACCEPTED` of cases (an F test against the noise between seeds, with `freedom` degrees of freedom), and
  where the interval has no end.
  """
  left = len(x) - 3
  if len(x) < FEWEST:
    return None
  center, scale = float(x.mean()), float(np.ptp(x)) / 2
  root = 1 / np.sqrt(np.maximum(squared, 1e-300))
  scaled, target = np.vander((x - center) / scale, 3, increasing=True) * root[:, None], y * root
  coefficients = np.linalg.lstsq(scaled, target, rcond=None)[0]
  lack_of_fit = float(np.sum((target - scaled @ coefficients) ** 2)) / left
  if lack_of_fit > special.fdtri(left, freedom, ACCEPTED):
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
  """Where the cubic through points of weights `root` squared is lowest between them, if it has a minimum there."""
  scaled = np.vander(t, 4, increasing=True) * root[:, None]
  _, slope, bend, third = np.linalg.lstsq(scaled, y * root, rcond=None)[0].tolist()
  # Of slope + 2 bend t + 3 third t^2 = 0 the root at which the curve bends upwards, without cancellation.
  inside = bend**2 - 3 * third * slope
  if inside < 0 or bend + math.sqrt(inside) <= 0:
    return None
  lowest = -slope / (bend + math.sqrt(inside))
  return lowest if t[0] <= lowest <= t[-1] else None
