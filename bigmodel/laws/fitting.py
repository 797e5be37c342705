"""Fits of a law to points: from all its starts, to resamples, and to many data sets at once."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from bigmodel.errors import UserError
from bigmodel.laws import solver
from bigmodel.laws.law import Law

LOSSES = ("squares", "huber", "l1", "student")
DELTA = 1e-3  # of Huber's loss of differences of logs, as in Hoffmann et al. 2022
SCALE = 1e3  # objectives are about 1e-3
FREEDOM = 4.0  # degrees of freedom of Student's loss
PAD = 64  # data sets are padded with points of weight zero to a multiple of this, so that subsets share a program
REACHED = 1e-5  # a start whose objective is relatively this close to the best has reached the optimum


@dataclasses.dataclass(frozen=True)
class Loss:
  """The loss that is summed over residuals; `scale` is Huber's delta or Student's scale.

  Residuals are differences of logs unless `plain`.
  """

  kind: str = "huber"
  scale: float = DELTA
  plain: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Fit:
  """A law with parameters estimated from points, unbounded as `theta` [P]; `draws` are those of resamples."""

  law: Law
  columns: tuple[np.ndarray, ...]
  loss: np.ndarray
  weights: np.ndarray
  how: Loss
  theta: np.ndarray
  objective: float
  starts: int
  reached: int  # how many of the starts reached the optimum
  draws: np.ndarray  # [S, P]

  def __repr__(self) -> str:
    params = ", ".join(f"{name}={value:.5g}" for name, value in self.params.items())
    return f"Fit({self.law.name}, {len(self.loss)} points, {params})"

  @property
  def plain(self) -> bool:
    """Whether residuals are differences of the losses rather than of their logs."""
    return self.how.plain or self.law.plain

  @property
  def params(self) -> dict[str, float]:
    """The parameters by name, within their bounds."""
    return {name: float(x) for name, x in zip(self.law.names, self.law.readable(self.theta), strict=True)}

  def intervals(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the draws for every parameter."""
    tail = (1 - level) / 2
    values = zip(self.law.names, self.law.readable(self.draws), strict=True)
    ends = {name: np.quantile(x, [tail, 1 - tail]) for name, x in values}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}

  def predict(self, *columns: ArrayLike, theta: np.ndarray | None = None) -> np.ndarray:
    """Losses at the columns [points]; with `theta` [S, P] those of other parameters [S, points]."""
    return predict(self.law, self.theta if theta is None else theta, columns)

  def residuals(self) -> np.ndarray:
    """Measured minus fitted, in logs unless `plain`."""
    fitted = self.predict(*self.columns)
    return self.loss - fitted if self.plain else np.log(self.loss / fitted)


@functools.partial(jax.jit, static_argnames=("law",))
def _predict(law: Law, theta_SxP: jax.Array, columns: tuple[jax.Array, ...]) -> jax.Array:
  return jax.vmap(lambda theta: law.predict(theta, columns))(theta_SxP)


def predict(law: Law, theta: np.ndarray, columns: Sequence[ArrayLike]) -> np.ndarray:
  """Values at columns [points], for one theta [P] or for many [S, P]: [points] or [S, points]."""
  columns = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in columns))
  shape, many = np.shape(columns[0]), np.atleast_2d(theta)
  # Few different sizes, since each is compiled.
  padded = tuple(np.resize(x, -(-x.size // PAD) * PAD) for x in columns)
  thetas = many if len(many) == 1 else np.resize(many, (-(-len(many) // PAD) * PAD, many.shape[1]))
  with jax.enable_x64(True):
    values = np.asarray(_predict(law, jnp.asarray(thetas), padded))
  values = values[: len(many), : columns[0].size].reshape(len(many), *shape)
  return values if np.ndim(theta) > 1 else values[0]


@functools.cache
def objective(law: Law, kind: str, plain: bool) -> solver.Objective:
  """The weighted sum of a loss of residuals, as a function of theta [P] and of one row of `Sets.data`."""

  def value(
    theta: jax.Array,
    columns: tuple[jax.Array, ...],
    y: jax.Array,
    weights: jax.Array,
    scale: jax.Array,
    held: tuple[jax.Array, jax.Array] | None = None,
  ) -> jax.Array:
    if held is not None:
      mask, values = held
      theta = jnp.where(mask, values, theta)
    expected = law.predict(theta, columns)
    residual = expected - y if plain else jnp.log(expected) - jnp.log(y)
    each = _loss(kind, residual, scale)
    return SCALE * jnp.sum(jnp.where(weights > 0, weights * each, 0.0))

  return value


def _loss(kind: str, residual: jax.Array, scale: jax.Array) -> jax.Array:
  if kind == "squares":
    return 0.5 * residual**2
  if kind == "huber":
    size = jnp.abs(residual)
    return jnp.where(size <= scale, 0.5 * residual**2, scale * (size - 0.5 * scale))
  if kind == "l1":
    return jnp.sqrt(residual**2 + 1e-8) - 1e-4
  return 0.5 * (FREEDOM + 1) * scale**2 * jnp.log1p((residual / scale) ** 2 / FREEDOM)


@dataclasses.dataclass(frozen=True)
class Sets:
  """R data sets of up to n points each, padded with points of weight zero: columns, losses and weights [R, n].

  `held` are parameters that are not fitted: (which of them [R, P], their unbounded values [R, P]).
  """

  columns: tuple[np.ndarray, ...]
  loss: np.ndarray
  weights: np.ndarray
  held: tuple[np.ndarray, np.ndarray] | None = None

  def __len__(self) -> int:
    return len(self.loss)


def stack(sets: Sequence[tuple[Sequence[np.ndarray], np.ndarray, np.ndarray | None]]) -> Sets:
  """Data sets of (columns, losses, weights) of different lengths, side by side; weights of None are 1."""
  size = -(-max(len(y) for _, y, _ in sets) // PAD) * PAD

  def with_last(x: np.ndarray) -> np.ndarray:
    return np.pad(np.asarray(x, np.float64), (0, size - len(x)), mode="edge")

  def with_zeros(x: np.ndarray) -> np.ndarray:
    return np.pad(np.asarray(x, np.float64), (0, size - len(x)))

  columns = tuple(np.stack([with_last(each[i]) for each, _, _ in sets]) for i in range(len(sets[0][0])))
  weights = [with_zeros(np.ones(len(y)) if w is None else w) for _, y, w in sets]
  return Sets(columns, np.stack([with_last(y) for _, y, _ in sets]), np.stack(weights))


def solve(
  law: Law, sets: Sets, starts: np.ndarray, which: np.ndarray, how: Loss, settled: float = solver.SETTLED
) -> solver.Solution[np.ndarray]:
  """Minimises from every start [S, P], each for the data set whose index is in `which` [S]."""
  data = (sets.columns, sets.loss, sets.weights, np.full(len(sets), how.scale))
  data += () if sets.held is None else (sets.held,)
  return solver.settle(objective(law, how.kind, how.plain or law.plain), starts, which, data, settled)


def best(
  law: Law, sets: Sets, how: Loss, starts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """`(theta [R, P], objective [R], starts that reached it [R])` of each data set, from all starts of the law.

  Linear parameters are solved for first. Starts that differ only in these become one, and count as many.
  """
  if starts is not None:
    return _best(law, sets, how, starts)
  scaled, restore = in_units(law, sets)
  theta, objectives, reached = _best(law, scaled, how, None)
  return restore(theta), objectives, reached


def in_units(law: Law, sets: Sets) -> tuple[Sets, Callable[[np.ndarray], np.ndarray]]:
  """The data sets in the units of `Law.unit`, and a function from theta [R, P] fitted to them to that of `sets`."""
  unit = law.unit
  if unit is None:
    return sets, np.asarray
  place = law.columns.index(unit.column)
  largest = sets.columns[place].max(axis=1)
  scaled = [x / largest[:, None] if i == place else x for i, x in enumerate(sets.columns)]

  def restore(theta: np.ndarray) -> np.ndarray:
    params = dict(zip(law.names, law.readable(theta), strict=True))
    return law.theta({**params, **unit.convert(params, largest)})

  return dataclasses.replace(sets, columns=tuple(scaled)), restore


def theta_in_units(law: Law, theta: np.ndarray, columns: Sequence[np.ndarray]) -> np.ndarray:
  """The parameters theta [P] of points with these columns, for the columns in the units of `Law.unit`."""
  if law.unit is None:
    return theta
  params = dict(zip(law.names, law.readable(np.atleast_2d(theta)), strict=True))
  smaller = 1 / np.max(columns[law.columns.index(law.unit.column)])
  return law.theta({**params, **law.unit.convert(params, np.atleast_1d(smaller))})[0]


def _best(law: Law, sets: Sets, how: Loss, starts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  rows = zip(zip(*sets.columns, strict=True), sets.loss, sets.weights, strict=True)
  projected = [project(law, law.starts(row[0]) if starts is None else starts, *row) for row in rows]
  unique, counts = zip(*(np.unique(points, axis=0, return_counts=True) for points in projected), strict=True)
  which = np.repeat(np.arange(len(sets)), [len(points) for points in unique])
  solution = solve(law, sets, np.concatenate(unique), which, how)
  values = np.where(np.isfinite(solution.value), solution.value, np.inf)
  theta, objectives, reached = [], [], []
  for i in range(len(sets)):
    candidates = np.flatnonzero(which == i)
    winner = candidates[np.argmin(values[candidates])]
    theta.append(solution.theta[winner])
    objectives.append(values[winner] / SCALE)
    near = values[candidates] <= values[winner] * (1 + REACHED) + 1e-12 * SCALE
    reached.append(int(counts[i][near].sum()))
  return np.array(theta), np.array(objectives), np.array(reached)


def project(
  law: Law, starts: np.ndarray, columns: Sequence[np.ndarray], y: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """The starts [S, P] with the law's linear parameters solved for: non-negative least squares of relative errors."""
  if not law.linear:
    return starts
  names = list(law.names)
  places = [names.index(name) for name in law.linear]
  root = np.sqrt(weights) / (1.0 if law.plain else y)
  basis = []
  for place in places:
    only = starts.copy()
    only[:, places] = -np.inf  # exp(-inf) is 0
    only[:, place] = 0.0
    basis.append(predict(law, only, columns) * root)
  basis = np.stack(basis, axis=-1)  # [S, n, k]
  size = np.sqrt(np.sum(basis**2, axis=1)) + 1e-300  # [S, k]
  projected = starts.copy()
  projected[:, places] = np.log(non_negative(basis / size[:, None], y * root) / size)
  return projected


def non_negative(basis: np.ndarray, target: np.ndarray) -> np.ndarray:
  """Coefficients [S, k] of the least squares of `target` [n] by `basis` [S, n, k], almost 0 where they would be less.

  There are few coefficients, so every subset of them is tried.
  """
  count, _, k = basis.shape
  gram = np.einsum("snk,snj->skj", basis, basis)
  moment = np.einsum("snk,n->sk", basis, target)
  almost_zero = 1e-6 * np.sum(target**2) ** 0.5
  chosen, lowest = np.full((count, k), almost_zero), np.full(count, np.inf)
  for subset in (s for r in range(1, k + 1) for s in itertools.combinations(range(k), r)):
    block = np.ix_(range(count), subset, subset)
    inner = gram[block] + 1e-12 * np.eye(len(subset))
    solved = np.linalg.solve(inner, moment[:, subset][..., None])[..., 0]
    cost = -np.sum(solved * moment[:, subset], axis=1)
    better = (solved > 0).all(axis=1) & (cost < lowest)
    lowest = np.where(better, cost, lowest)
    new = np.full((count, k), almost_zero)
    new[:, subset] = solved
    chosen = np.where(better[:, None], new, chosen)
  return chosen


def check(law: Law, columns: Sequence[np.ndarray], y: np.ndarray) -> None:
  """Raises `UserError` for points that cannot identify the law."""
  if len(y) <= len(law.names):
    raise UserError(f"law {law.name} has {len(law.names)} parameters and {len(y)} points; it needs more points")
  scales = len(np.unique(np.stack(columns), axis=1).T)
  for name, column in zip(law.columns, columns, strict=True):
    if len(np.unique(column)) == 1:
      raise UserError(
        f"law {law.name}: {name} is {column[0]:g} in all {len(y)} points, so its effect cannot be identified;"
        f" add points with other values of {name}"
      )
  if scales < len(law.names):
    raise UserError(
      f"law {law.name} has {len(law.names)} parameters and points at {scales} different scales; it needs more"
    )


def fit(
  law: Law,
  columns: Sequence[ArrayLike],
  y: ArrayLike,
  weights: ArrayLike | None = None,
  how: Loss = Loss(),
  starts: np.ndarray | None = None,
) -> Fit:
  """Fits the law to losses y [n] at its columns [n] from all its starts; raises `UserError` if points are too few."""
  columns = tuple(np.asarray(x, np.float64) for x in columns)
  y = np.asarray(y, np.float64)
  check(law, columns, y)
  weights = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
  sets = stack([(columns, y, weights)])
  (theta,), (value,), (reached,) = best(law, sets, how, starts)
  if not np.isfinite(value):
    raise UserError(f"law {law.name}: no start gives finite losses for these points")
  count = len(law.starts() if starts is None else starts)
  return Fit(law, columns, y, weights, how, theta, float(value), count, int(reached), np.empty((0, len(law.names))))
