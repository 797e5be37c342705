"""Fits of laws by Levenberg and Marquardt's method, for many data sets and starts side by side.

The loss is that of squares, or Huber's with a delta for each data set, whose curvature is that of reweighted squares.

Its program computes residuals and their first derivatives only, and compiles in a fifth of the time of `laws.solver`,
which matters where dozens of laws are tried once. Damping in proportion to the curvature of each parameter makes it
insensitive to the parameters' units.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel.laws import fitting
from bigmodel.laws.fitting import Sets
from bigmodel.laws.law import Law

STEPS = 60
PRUNED_AFTER = 8  # steps, after which a data set keeps its `KEPT` best starts
KEPT = 4
LARGEST_STEP = 2.0  # of an unbounded parameter
LANE = 64  # problems of one call, so that every number of them shares a program
SETTLED = 1e-9  # relative change of the cost at which a problem has converged


@functools.cache
def _residuals(law: Law, plain: bool):
  def residual(theta: jax.Array, columns: tuple[jax.Array, ...], y: jax.Array, root: jax.Array) -> jax.Array:
    expected = law.predict(theta, columns)
    return root * (expected - y if plain else jnp.log(expected) - jnp.log(y))

  def both(theta: jax.Array, *row) -> tuple[jax.Array, jax.Array]:
    return residual(theta, *row), jax.jacfwd(residual)(theta, *row)

  return jax.jit(jax.vmap(both))


@dataclasses.dataclass(frozen=True)
class _Problem:
  """What is minimised: the residuals of a law over data sets, with Huber's `delta` [R] or, without it, as squares."""

  law: Law
  sets: Sets
  plain: bool
  delta: np.ndarray | None


def _evaluate(problem: _Problem, theta: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """`(costs [S], gradients [S, P], Gauss and Newton's curvature [S, P, P])`; a cost is twice the loss."""
  sets = problem.sets
  program, root = _residuals(problem.law, problem.plain), np.sqrt(sets.weights)
  costs, gradients, curvatures = [], [], []
  with jax.enable_x64(True):
    for first in range(0, len(theta), LANE):
      count = len(theta[first : first + LANE])
      rows = np.resize(np.arange(first, first + count), LANE)
      of = which[rows]
      columns = tuple(jnp.asarray(x[of]) for x in sets.columns)
      r, jacobian = map(np.asarray, program(jnp.asarray(theta[rows]), columns, sets.loss[of], root[of]))
      r, jacobian = r[:count], jacobian[:count]
      if problem.delta is None:
        costs.append(np.sum(r**2, axis=1))
      else:
        cost, slope = _huber(r, root[of[:count]], problem.delta[of[:count], None])
        costs.append(cost)
        r, jacobian = slope * r, slope[:, :, None] * jacobian
      gradients.append(np.einsum("snp,sn->sp", jacobian, r))
      curvatures.append(np.matmul(jacobian.transpose(0, 2, 1), jacobian))
  return np.concatenate(costs), np.concatenate(gradients), np.concatenate(curvatures)


def _huber(r: np.ndarray, root: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Twice Huber's loss [S] of residuals r [S, n] times `root`, the roots of weights; and roots of its reweighting."""
  size, limit = np.abs(r), root * delta
  inside = size <= limit
  cost = np.sum(np.where(inside, r**2, 2 * limit * size - limit**2), axis=1)
  return cost, np.where(inside, 1.0, np.sqrt(limit / np.where(inside, 1.0, size)))


def best(law: Law, sets: Sets, plain: bool = False, delta: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
  """`(theta [R, P], cost [R])` of each data set from all starts of the law; infinite where none is finite.

  Residuals are differences of logs unless `plain`. The cost is the sum of squares or, with `delta` [R], twice that of
  Huber's loss.
  """
  sets, restore = fitting.in_units(law, sets)
  theta, which = _starts(law, sets)
  theta, cost = _minimize(_Problem(law, sets, plain, delta), theta, which)
  return restore(theta), cost


def refine(law: Law, sets: Sets, starts: np.ndarray, delta: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
  """As `best`, from a few starts [R, S, P] of each data set, which are usually fits of similar data sets."""
  count, each, parameters = starts.shape
  columns = [[x[i] for x in sets.columns] for i in range(count)]
  theta = [fitting.theta_in_units(law, start, columns[i]) for i in range(count) for start in starts[i]]
  sets, restore = fitting.in_units(law, sets)
  problem = _Problem(law, sets, law.plain, delta)
  theta, cost = _minimize(problem, np.reshape(theta, (-1, parameters)), np.repeat(np.arange(count), each))
  return restore(theta), cost


def _minimize(problem: _Problem, theta: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """`(theta [R, P], cost [R])`, the best of starts theta [S, P], each for the data set whose index is in `which`."""
  count = len(problem.sets)
  cost, gradient, curvature = _evaluate(problem, theta, which)
  cost = np.where(np.isfinite(cost), cost, np.inf)
  damping, active = np.full(len(theta), 1e-2), np.flatnonzero(np.isfinite(cost))
  for step in range(STEPS):
    if step == PRUNED_AFTER:
      active = np.intersect1d(active, _leaders(cost, which, count))
    if not len(active):
      break
    new = theta[active] - _step(gradient[active], curvature[active], damping[active])
    new_cost, new_gradient, new_curvature = _evaluate(problem, new, which[active])
    better = new_cost < cost[active]  # also False for NaN
    settled = better & (cost[active] - new_cost <= SETTLED * cost[active] + 1e-28)
    places = active[better]
    theta[places], cost[places] = new[better], new_cost[better]
    gradient[places], curvature[places] = new_gradient[better], new_curvature[better]
    damping[active] = np.where(better, damping[active] * 0.2, damping[active] * 6)
    active = active[~settled & (damping[active] < 1e10)]
  winners = [rows[np.argmin(cost[rows])] for rows in (np.flatnonzero(which == i) for i in range(count))]
  return theta[winners], cost[winners]


def _starts(law: Law, sets: Sets) -> tuple[np.ndarray, np.ndarray]:
  rows = zip(zip(*sets.columns, strict=True), sets.loss, sets.weights, strict=True)
  starts = [np.unique(fitting.project(law, law.starts(row[0]), *row), axis=0) for row in rows]
  return np.concatenate(starts), np.repeat(np.arange(len(sets)), [len(each) for each in starts])


def _leaders(cost: np.ndarray, which: np.ndarray, count: int) -> np.ndarray:
  """The `KEPT` starts of each data set with the least cost."""
  groups: Sequence[np.ndarray] = [np.flatnonzero(which == i) for i in range(count)]
  return np.concatenate([rows[np.argsort(cost[rows], kind="stable")[:KEPT]] for rows in groups])


def _step(gradient: np.ndarray, curvature: np.ndarray, damping: np.ndarray) -> np.ndarray:
  diagonal = np.einsum("spp->sp", curvature)
  floor = 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
  added = damping[:, None] * np.maximum(diagonal, floor) + floor
  system = curvature + added[:, :, None] * np.eye(curvature.shape[1])
  step = np.linalg.solve(system, gradient[..., None])[..., 0]
  return np.clip(step, -LARGEST_STEP, LARGEST_STEP)
