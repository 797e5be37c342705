"""Fits of a law to data: from all its starts, to resamples and to many data sets at once."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel.errors import UserError
from bigmodel.laws import solver
from bigmodel.laws.forms import Law

LOSSES = ("squares", "huber", "l1", "student")
DELTA = 1e-3  # of Huber's loss of residuals in logs, as Hoffmann et al. 2022 have it
SCALE = 1e3  # objectives are about 1e-3
FREEDOM = 4.0  # degrees of freedom of Student's loss
PAD = 64  # points are filled up with weight zero to a multiple of it, so that subsets share a program
REACHED = 1e-5  # starts whose objective is this near to the best one, relatively, have found it


@dataclasses.dataclass(frozen=True)
class Loss:
  """What is summed over residuals, which are of logs unless `plain`; `scale` is Huber's delta, or Student's scale."""

  kind: str = "huber"
  scale: float = DELTA
  plain: bool = False


@dataclasses.dataclass(frozen=True)
class Fit:
  """A law with its parameters, unbounded as `theta`; `draws` are of their uncertainty."""

  law: Law
  columns: tuple[np.ndarray, ...]
  loss: np.ndarray
  weights: np.ndarray
  how: Loss
  theta: np.ndarray
  objective: float
  starts: int
  reached: int  # of the starts, the optimum
  draws: np.ndarray  # [S, P]

  @property
  def plain(self) -> bool:
    return self.how.plain or self.law.plain

  @property
  def params(self) -> dict[str, float]:
    return {name: float(x) for name, x in zip(self.law.names, self.law.readable(self.theta), strict=True)}

  def intervals(self, level: float = 0.9) -> dict[str, list[float]]:
    """Percentile intervals of the draws for every parameter."""
    tail = (1 - level) / 2
    values = zip(self.law.names, self.law.readable(self.draws), strict=True)
    return {name: np.quantile(x, [tail, 1 - tail]).tolist() for name, x in values}

  def predict(self, *columns: Any, theta: np.ndarray | None = None) -> np.ndarray:
    return predict(self.law, self.theta if theta is None else theta, columns)

  def residuals(self) -> np.ndarray:
    """In logs, but of plain laws."""
    known = self.predict(*self.columns)
    return self.loss - known if self.plain else np.log(self.loss / known)


@functools.partial(jax.jit, static_argnames=("law",))
def _predict(law: Law, theta_SxP: Any, columns: Any) -> Any:
  return jax.vmap(lambda theta: law.predict(theta, columns))(theta_SxP)


def predict(law: Law, theta: np.ndarray, columns: Sequence[Any]) -> np.ndarray:
  """Values at columns [points], for one theta [P] or for many [S, P]: [points] or [S, points]."""
  with jax.enable_x64(True):
    columns = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in columns))
    many = np.atleast_2d(theta)
    values = np.asarray(_predict(law, jnp.asarray(many), tuple(map(jnp.atleast_1d, columns))))
  values = values.reshape(len(many), *np.shape(columns[0]))
  return values if np.ndim(theta) > 1 else values[0]


@functools.cache
def objective(law: Law, kind: str, plain: bool) -> Callable[..., jax.Array]:
  """The sum of a loss of residuals; `mask` says which parameters are held, at what `pinned` says."""

  def value(theta: Any, columns: Any, y: Any, weights: Any, scale: Any, mask: Any = False, pinned: Any = 0.0) -> Any:
    theta = jnp.where(mask, pinned, theta)
    expected = law.predict(theta, columns)
    residual = expected - y if plain else jnp.log(expected) - jnp.log(y)
    size = jnp.abs(residual)
    each = {
      "squares": lambda: 0.5 * residual**2,
      "huber": lambda: jnp.where(size <= scale, 0.5 * residual**2, scale * (size - 0.5 * scale)),
      "l1": lambda: jnp.sqrt(residual**2 + 1e-8) - 1e-4,
      "student": lambda: 0.5 * (FREEDOM + 1) * scale**2 * jnp.log1p((residual / scale) ** 2 / FREEDOM),
    }[kind]()
    return SCALE * jnp.sum(jnp.where(weights > 0, weights * each, 0.0))

  return value


@dataclasses.dataclass(frozen=True)
class Sets:
  """Data sets of up to n points each: columns [R, n], losses and weights, filled up with weight zero."""

  columns: tuple[np.ndarray, ...]
  loss: np.ndarray
  weights: np.ndarray

  def __len__(self) -> int:
    return len(self.loss)


def stack(sets: Sequence[tuple[Sequence[np.ndarray], np.ndarray, np.ndarray | None]]) -> Sets:
  """Data sets of (columns, losses, weights) of different lengths, side by side."""
  size = -(-max(len(y) for _, y, _ in sets) // PAD) * PAD
  fill = lambda x: np.pad(np.asarray(x, np.float64), (0, size - len(x)), mode="edge")
  zeros = lambda x: np.pad(np.asarray(x, np.float64), (0, size - len(x)))
  columns = tuple(np.stack([fill(own[i]) for own, _, _ in sets]) for i in range(len(sets[0][0])))
  weights = [zeros(np.ones(len(y)) if w is None else w) for _, y, w in sets]
  return Sets(columns, np.stack([fill(y) for _, y, _ in sets]), np.stack(weights))


def solve(
  law: Law, sets: Sets, starts: np.ndarray, which: np.ndarray, how: Loss, settled: float = solver.SETTLED,
  held: tuple[np.ndarray, ...] = (),
) -> solver.Solution:  # fmt: skip
  """From every start [S, P], each for the data set that `which` says; `held` is (which parameters, at what) of each."""
  data = (sets.columns, sets.loss, sets.weights, np.full(len(sets), how.scale), *held)
  return solver.settle(objective(law, how.kind, how.plain or law.plain), starts, which, data, settled)


def best(
  law: Law, sets: Sets, how: Loss, starts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """`(theta [R, P], objective [R], starts that reached it [R])` of each data set, from all starts of the law.

  Linear parameters are solved for first: starts that differ in these alone become one, and count as many.
  """
  rows = zip(zip(*sets.columns, strict=True), sets.loss, sets.weights, strict=True)
  projected = [project(law, law.starts(row[0]) if starts is None else starts, *row) for row in rows]
  unique, counts = zip(*(np.unique(own, axis=0, return_counts=True) for own in projected), strict=True)
  which = np.repeat(np.arange(len(sets)), [len(own) for own in unique])
  found = solve(law, sets, np.concatenate(unique), which, how)
  values = np.where(np.isfinite(found.value), found.value, np.inf)
  theta, objectives, reached = [], [], []
  for i in range(len(sets)):
    mine = np.flatnonzero(which == i)
    winner = mine[np.argmin(values[mine])]
    theta.append(found.theta[winner])
    objectives.append(values[winner] / SCALE)
    near = values[mine] <= values[winner] * (1 + REACHED) + 1e-12 * SCALE
    reached.append(int(counts[i][near].sum()))
  return np.array(theta), np.array(objectives), np.array(reached)


def project(
  law: Law, starts: np.ndarray, columns: Sequence[np.ndarray], y: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Starts with the law's linear parameters solved for: least squares of relative errors, none below zero."""
  if not law.linear:
    return starts
  names = list(law.names)
  places = [names.index(name) for name in law.linear]
  k = len(places)
  root = np.sqrt(weights) / (1.0 if law.plain else y)
  basis = []
  for i in range(k):
    only = starts.copy()
    only[:, places] = -np.inf  # exp(-inf) is 0
    only[:, places[i]] = 0.0
    basis.append(predict(law, only, columns) * root)
  basis = np.stack(basis, axis=-1)  # [S, n, k]
  size = np.sqrt(np.sum(basis**2, axis=1)) + 1e-300  # [S, k]
  basis = basis / size[:, None]
  target = y * root
  gram = np.einsum("snk,snj->skj", basis, basis)
  moment = np.einsum("snk,n->sk", basis, target)
  chosen, lowest = np.full((len(starts), k), 1e-6) * np.sum(target**2) ** 0.5, np.full(len(starts), np.inf)
  for subset in (s for r in range(1, k + 1) for s in itertools.combinations(range(k), r)):
    own = np.ix_(range(len(starts)), subset, subset)
    inner = gram[own] + 1e-12 * np.eye(len(subset))
    solved = np.linalg.solve(inner, moment[:, subset][..., None])[..., 0]
    cost = -np.sum(solved * moment[:, subset], axis=1)
    better = (solved > 0).all(axis=1) & (cost < lowest)
    lowest = np.where(better, cost, lowest)
    new = np.full((len(starts), k), 1e-6 * np.sum(target**2) ** 0.5)
    new[:, subset] = solved
    chosen = np.where(better[:, None], new, chosen)
  projected = starts.copy()
  projected[:, places] = np.log(chosen / size)
  return projected


def check(law: Law, columns: Sequence[np.ndarray], y: np.ndarray) -> None:
  """Refuses data from which the law cannot be told."""
  if len(y) <= len(law.names):
    raise UserError(f"law {law.name} has {len(law.names)} parameters and {len(y)} points; it needs more points")
  for name, column in zip(law.columns, columns, strict=True):
    if len(np.unique(column)) == 1:
      raise UserError(f"law {law.name}: {name} is {column[0]:g} in all {len(y)} points; it says nothing of {name}")


def fit(
  law: Law, columns: Sequence[np.ndarray], y: np.ndarray, weights: np.ndarray | None = None, how: Loss = Loss(),
  starts: np.ndarray | None = None,
) -> Fit:  # fmt: skip
  """Fits the law from all its starts; raises `UserError` where points are too few."""
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
