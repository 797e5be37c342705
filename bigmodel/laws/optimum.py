"""The best size and data for a budget within limits, the least compute for a loss, and the cost of other sizes.

All of it comes from a forecaster (`laws.forecast`). The best size is the one with the lowest forecast loss. Its
interval is that of the best sizes by all draws of all fits, each fit with its weight: it contains what noise does to
the fits and how far they disagree about the best size (`docs/laws.md` compares others).

Training costs k N D, with k = 6 under the usual convention. Each token that is served over the model's life costs
k / 3 times N (2 N; Sardana et al. 2024).
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from scipy import optimize

from bigmodel.errors import UserError
from bigmodel.laws.facts import BestSize, Interval, LeastCompute, OffOptimum, Payoff, finite
from bigmodel.laws.fitting import Fit
from bigmodel.laws.forecast import Forecaster

OFF = (0.25, 0.5, 2.0, 4.0)  # sizes off the optimum whose cost is computed, as multiples of the best one
GRID = 97  # sizes at which losses are computed at a time
ROUNDS = 5  # of grids, each within two steps of the one before: ln N to 2e-7
AROUND = math.log(1e4)  # how far from the best size those of draws are searched for, in ln N
BUDGETS = 25  # at which draws are asked for the least compute to a loss
NEARER, FARTHER = math.log(1e4), math.log(1e8)  # range of these budgets around the best one, in ln C
ROUNDING = 1e-12  # in ln loss: where limits bind, larger budgets do not lower the loss further
MOST = 200.0  # ln C up to which a loss is searched for
PLAUSIBLE = math.log(1e6)  # how far N / D may lie outside that of the runs, beyond what more compute may change
SMALLEST = 1e-300  # loss
NEGLIGIBLE = 1e-3  # of the largest weight: fits with less change no interval, so their draws are not computed


@dataclasses.dataclass(frozen=True)
class Limits:
  """Parameters that fit into memory, tokens that there are to train on, and tokens that will be served."""

  params: float = math.inf
  tokens: float = math.inf
  served: float = 0.0


@dataclasses.dataclass(frozen=True)
class Budget:
  """Sizes for a budget C of k N D FLOPs; what limits leave over is not spent."""

  C: float
  k: float
  limits: Limits = Limits()
  ratios: tuple[float, float] = (-math.inf, math.inf)  # the range of ln N - ln D of sizes that are considered

  @property
  def confined(self) -> bool:
    """Whether only sizes with a range of ratios are considered."""
    return math.isfinite(self.ratios[0])

  @property
  def most(self) -> float:
    """The largest ln N: the limit, or the size with a single token."""
    spent_on_one = self.k * (1 + self.limits.served / 3)
    return max(math.log(min(self.limits.params, self.C / spent_on_one)), 0.0)

  def tokens(self, log_n: np.ndarray | float) -> np.ndarray:
    """Tokens that the budget buys beside serving, within the limits."""
    return np.minimum(self.limits.tokens, self.C / (self.k * np.exp(log_n)) - self.limits.served / 3)

  def considered(self, log_n: np.ndarray) -> np.ndarray:
    """Mask of the sizes within `ratios`; a limit of the parameters or of the tokens may lead outside of them."""
    D = self.tokens(log_n)
    with np.errstate(all="ignore"):
      ratio = log_n - np.log(D)
    few, many = log_n >= math.log(self.limits.params) - 1e-9, self.limits.tokens <= D
    return ((ratio >= self.ratios[0]) | few) & ((ratio <= self.ratios[1]) | many)


@dataclasses.dataclass(frozen=True)
class Size:
  """A size, its tokens, and the forecast loss; the budget with the sizes that were considered.

  `inside` is False if the loss falls up to the end of these sizes, so that none of them is the best.
  """

  N: float
  D: float
  loss: float
  budget: Budget
  inside: bool = True


def best(forecaster: Forecaster, C: float, limits: Limits = Limits()) -> Size:
  """The size with the lowest forecast loss that C buys, serving included.

  Some laws have their lowest loss at a single parameter or at a single token, where nothing was measured. Then it is
  the size with a minimum that lies nearest to the runs' ratios of parameters to tokens.
  """
  budget = Budget(C, forecaster.points.flops_per_nd, limits)
  size = _lowest(forecaster, budget, 0.0, budget.most)
  near = dataclasses.replace(budget, ratios=_plausible(forecaster, C))
  if near.considered(np.log([size.N])).all():
    return size
  sizes = np.linspace(0.0, budget.most, 10 * GRID)
  sizes = sizes[near.considered(sizes)]
  if len(sizes) < 3:
    return dataclasses.replace(size, inside=False)
  losses = _losses(forecaster, near, sizes)
  minima = 1 + np.flatnonzero((losses[1:-1] < losses[:-2]) & (losses[1:-1] <= losses[2:]))
  ratios = np.log(forecaster.points.N / forecaster.points.D)
  away = np.abs(sizes - np.log(near.tokens(sizes)) - np.median(ratios))
  if not len(minima):
    place = int(np.argmin(losses))
    return dataclasses.replace(_size(near, sizes[place], losses[place]), inside=False)
  place = int(minima[np.argmin(away[minima])])
  return _lowest(forecaster, near, float(sizes[place - 1]), float(sizes[place + 1]))


def _lowest(forecaster: Forecaster, budget: Budget, low: float, high: float) -> Size:
  """The size of the lowest loss between two ln N."""
  log_n = lowest = np.nan
  for _ in range(ROUNDS):
    sizes = np.linspace(low, high, GRID)
    losses = _losses(forecaster, budget, sizes)
    place = int(np.argmin(losses))
    log_n, lowest = sizes[place], losses[place]
    low, high = sizes[max(place - 1, 0)], sizes[min(place + 1, GRID - 1)]
  return _size(budget, log_n, lowest)


def _size(budget: Budget, log_n: float, log_loss: float) -> Size:
  N = min(float(np.exp(log_n)), budget.limits.params)
  return Size(N, float(budget.tokens(log_n)), float(np.exp(log_loss)), budget)


def _losses(forecaster: Forecaster, budget: Budget, log_n: np.ndarray) -> np.ndarray:
  N, D = np.exp(log_n), budget.tokens(log_n)
  return _finite(lambda: forecaster.log_loss(N, D, budget.k * N * D))


def _plausible(forecaster: Forecaster, C: float) -> tuple[float, float]:
  """The range of ln N - ln D in which the best size for C may lie.

  With C = k N D the ratio of best sizes changes at most in proportion to C, or to 1 / C.
  """
  points = forecaster.points
  ratios = np.log(points.N) - np.log(points.D)
  beyond = PLAUSIBLE + max(math.log(C / points.C.max()), math.log(points.C.min() / C), 0.0)
  return float(ratios.min()) - beyond, float(ratios.max()) + beyond


@dataclasses.dataclass(frozen=True)
class Drawn:
  """ln N and ln loss of the best size by each draw of F fits [F, S], and the weights of these fits [F]."""

  log_n: np.ndarray
  log_loss: np.ndarray
  weights: np.ndarray


def drawn(forecaster: Forecaster, budget: Budget, near: float) -> Drawn:
  """The best sizes by the draws of all fits but those of negligible weight; `near` is an N around which they lie."""
  counted = np.flatnonzero(forecaster.weights >= NEGLIGIBLE * forecaster.weights.max())
  sizes, losses = zip(*(_best_of_draws(forecaster.fits[i], budget, math.log(near)) for i in counted), strict=True)
  return Drawn(np.stack(sizes), np.stack(losses), forecaster.weights[counted])


def _best_of_draws(fit: Fit, budget: Budget, center: float) -> tuple[np.ndarray, np.ndarray]:
  """`(ln N, ln loss)` [S] by the draws of one fit: from a wide grid, then from one over the range of the minima."""
  low, high = max(center - AROUND, 0.0), min(center + AROUND, budget.most)
  sizes, losses = _minima(fit, budget, np.linspace(low, high, GRID), center)
  ends = np.quantile(sizes, [0.005, 0.995])
  step = (high - low) / (GRID - 1)
  fine = np.linspace(max(ends[0] - step, low), min(ends[1] + step, high), GRID)
  finer, lower = _minima(fit, budget, fine, center)
  better = lower <= losses
  return np.where(better, finer, sizes), np.where(better, lower, losses)


def _minima(fit: Fit, budget: Budget, log_n: np.ndarray, center: float) -> tuple[np.ndarray, np.ndarray]:
  """Where each draw is lowest on a grid of sizes [S], by the parabola through that size, and its ln loss there.

  Where sizes are confined, it is the minimum next to `center`, because losses may be lower far away.
  """
  N, D = np.exp(log_n), budget.tokens(log_n)
  values = {"N": N, "D": D, "C": budget.k * N * D}
  columns = [values[name] for name in fit.law.columns]
  losses = _finite(lambda: np.log(fit.predict(*columns, theta=fit.draws)))
  if budget.confined:
    losses = _basin(np.where(budget.considered(log_n), losses, np.inf), int(np.argmin(np.abs(log_n - center))))
  rows, place = np.arange(len(losses)), np.argmin(losses, axis=1)
  inner = np.clip(place, 1, len(log_n) - 2)
  before, at, after = (losses[rows, inner + step] for step in (-1, 0, 1))
  with np.errstate(all="ignore"):
    shift = (before - after) / (2 * (before - 2 * at + after))
  shift = np.where((place == inner) & np.isfinite(shift), np.clip(shift, -0.5, 0.5), place - inner)
  return log_n[inner] + shift * (log_n[1] - log_n[0]), losses[rows, place]


def _basin(losses: np.ndarray, center: int) -> np.ndarray:
  """The losses [S, sizes] up to where they first rise on either side of `center`, and infinity beyond."""
  right = losses[:, center + 1 :] > losses[:, center:-1]
  left = losses[:, :center][:, ::-1] > losses[:, 1 : center + 1][:, ::-1]
  outside = np.zeros(losses.shape, bool)
  outside[:, center + 2 :] = np.logical_or.accumulate(right, axis=1)[:, :-1]
  outside[:, : max(center - 1, 0)] = np.logical_or.accumulate(left, axis=1)[:, :-1][:, ::-1]
  return np.where(outside, np.inf, losses)


def _finite(log_loss: Callable[[], np.ndarray]) -> np.ndarray:
  """The values of `log_loss`, infinite where a law has none, as for fewer than no tokens."""
  with np.errstate(all="ignore"):
    values = log_loss()
  return np.where(np.isfinite(values), values, np.inf)


def at(forecaster: Forecaster, C: float, limits: Limits = Limits()) -> BestSize:
  """The optimum at C with 90% intervals, and the cost of other sizes in loss and in compute."""
  size = best(forecaster, C, limits)
  _require_inside(forecaster, size)
  budget = size.budget
  draws = drawn(forecaster, budget, size.N)
  ends = np.array(weighted_interval(draws.log_n, draws.weights))
  N = sorted((*np.exp(ends).tolist(), size.N))
  D = sorted((*budget.tokens(ends).tolist(), size.D))
  found = BestSize(
    C=C,
    N=size.N,
    D=size.D,
    loss=size.loss,
    spent=budget.k * size.N * (size.D + limits.served / 3),
    N_interval90=(N[0], N[-1]),
    D_interval90=(D[0], D[-1]),
    off=_off(forecaster, budget, size),
  )
  return finite(found)


def _require_inside(forecaster: Forecaster, size: Size) -> None:
  """Raises `UserError` for a size at the end of those that were considered."""
  if not size.inside:
    names = ", ".join(forecaster.method().weights)
    fewer = "parameters" if size.N < size.D else "tokens"
    raise UserError(
      f"{size.budget.C:.4g} FLOPs: by {names} the loss falls the fewer {fewer} there are, so no size is the best; give"
      " sizes and tokens N,D instead, or other laws"
    )


def _off(forecaster: Forecaster, budget: Budget, size: Size) -> list[OffOptimum]:
  off = []
  for times in OFF:
    N = size.N * times
    D = float(budget.tokens(np.log(N)))
    if budget.limits.params < N or D <= 0:
      continue
    loss = float(np.exp(forecaster.log_loss([N], [D], [budget.k * N * D])[0]))
    needed = compute(forecaster, loss, budget.limits)
    off.append(OffOptimum(times, N, D, loss, needed / budget.C))
  return off


def compute(forecaster: Forecaster, loss: float, limits: Limits = Limits()) -> float:
  """The least C with that forecast loss, serving included; infinite if no budget reaches it."""
  low = math.log(forecaster.points.flops_per_nd * (1 + limits.served / 3))

  def excess(log_c: float) -> float:
    lowest = max(best(forecaster, math.exp(log_c), limits).loss, SMALLEST)  # a law may lead to 0 far away
    return math.log(lowest / loss) - ROUNDING

  most = MOST
  if best(forecaster, math.exp(MOST), limits).budget.confined:  # by such laws the loss may rise again far away
    most = math.log(forecaster.points.C.max()) + FARTHER
  if excess(most) > 0:
    return math.inf
  return math.exp(float(optimize.brentq(excess, low, most, xtol=1e-11))) if excess(low) > 0 else math.exp(low)  # pyright: ignore[reportArgumentType]


def least(forecaster: Forecaster, loss: float, limits: Limits = Limits()) -> LeastCompute:
  """The least compute to a loss with 90% intervals, and the share of draws in which it is reached at all."""
  C = compute(forecaster, loss, limits)
  if math.isinf(C):
    return LeastCompute(
      loss=loss, C=None, N=None, D=None, reached_in=0.0, C_interval90=None, N_interval90=None, D_interval90=None
    )
  size = best(forecaster, C, limits)
  _require_inside(forecaster, size)
  log_c, log_n, log_d, weights = _crossings(forecaster, loss, C, limits)
  reached = np.isfinite(log_c)
  found = LeastCompute(
    loss=loss,
    C=C,
    N=size.N,
    D=size.D,
    reached_in=float(weights @ reached.mean(axis=1) / weights.sum()),
    C_interval90=_interval(log_c, weights),
    N_interval90=_interval(np.where(reached, log_n, np.nan), weights),
    D_interval90=_interval(np.where(reached, log_d, np.nan), weights),
  )
  return finite(found)


def _crossings(forecaster: Forecaster, loss: float, C: float, limits: Limits) -> tuple[np.ndarray, ...]:
  """`(ln C, ln N, ln D)` [F, S] at which each draw of F fits reaches a loss, and their weights; see `drawn`.

  ln C is infinite for draws that do not reach it. The discrepancy is drawn, too, one for each draw of the fits.
  """
  k = forecaster.points.flops_per_nd
  grid = math.log(C) + np.linspace(-NEARER, FARTHER, BUDGETS)
  best_sizes = [best(forecaster, math.exp(log_c), limits) for log_c in grid]
  draws = [drawn(forecaster, size.budget, size.N) for size in best_sizes]
  N, D = (np.array([getattr(size, name) for size in best_sizes]) for name in "ND")
  discrepancy = forecaster.predict(N, D, k * N * D).discrepancy
  sizes, losses = np.stack([each.log_n for each in draws]), np.stack([each.log_loss for each in draws])
  losses += discrepancy[:, None, None] * np.random.default_rng(0).normal(size=losses.shape[1:])
  bought = [size.budget.tokens(log_n) for size, log_n in zip(best_sizes, sizes, strict=True)]
  tokens = np.log(np.maximum(bought, 1e-300))
  below = losses <= math.log(loss)
  first = np.argmax(below, axis=0)
  before = np.maximum(first - 1, 0)

  def taken(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, place[None], axis=0)[0]

  high, low = taken(losses, before), taken(losses, first)
  share = np.where(first > 0, (high - math.log(loss)) / np.where(high > low, high - low, 1.0), 1.0)
  mixed = [
    taken(values, before) * (1 - share) + taken(values, first) * share
    for values in (np.broadcast_to(grid[:, None, None], losses.shape), sizes, tokens)
  ]
  return np.where(below.any(axis=0), mixed[0], np.inf), mixed[1], mixed[2], draws[0].weights


def payoff(forecaster: Forecaster) -> list[Payoff]:
  """The change of the loss if the model or the data of the largest run were doubled, with 90% intervals.

  The interval includes the discrepancy where the larger run lies beyond the points.
  """
  points = forecaster.points
  largest = int(np.argmax(points.C))
  N, D, k = float(points.N[largest]), float(points.D[largest]), points.flops_per_nd
  n, d = np.array([N, 2 * N, N]), np.array([D, D, 2 * D])
  center, draws = forecaster.log_loss(n, d, k * n * d), forecaster.draws(n, d, k * n * d)
  discrepancy = forecaster.predict(n, d, k * n * d).discrepancy
  normal = np.random.default_rng(0).normal(size=(len(draws), 1))
  drawn_losses = np.exp(draws + normal * discrepancy)
  rows = []
  for what, i in (("a model twice as large", 1), ("twice the data", 2)):
    low, high = np.quantile(drawn_losses[:, i] - drawn_losses[:, 0], [0.05, 0.95])
    change = float(np.exp(center[i]) - np.exp(center[0]))
    rows.append(Payoff(what, float(n[i]), float(d[i]), change, (float(low), float(high))))
  return rows


def weighted_interval(values: np.ndarray, weights: np.ndarray, level: float = 0.9) -> tuple[float, float] | None:
  """The central interval of draws [F, S] of fits with these weights, without NaN; None if none is finite.

  No ends are interpolated, since some draws may be infinite.
  """
  each = np.broadcast_to(weights[:, None] / values.shape[1], values.shape)[~np.isnan(values)]
  flat = values[~np.isnan(values)]
  if not np.isfinite(flat).any():
    return None
  order = np.argsort(flat)
  share = np.cumsum(each[order]) / each.sum()
  low, high = np.searchsorted(share, [(1 - level) / 2, (1 + level) / 2])
  return float(flat[order][low]), float(flat[order][min(high, len(flat) - 1)])


def _interval(logs: np.ndarray, weights: np.ndarray) -> Interval | None:
  ends = weighted_interval(logs, weights)
  return None if ends is None else (math.exp(ends[0]), math.exp(ends[1]))
